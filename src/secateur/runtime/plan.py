"""A plan: a program with its weights, as a value, a file and a table that people can read."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Literal

import numpy as np

from secateur.errors import PlanError
from secateur.runtime.attributes import KERNELS, WITH_ZEROS
from secateur.runtime.container import INDEX, VALUES, Entry, read_container, write_container
from secateur.runtime.program import Op, Program, WeightSpec, parse_program
from secateur.runtime.table import text_table
from secateur.runtime.weights import Weight, decode, encode

_CODES = {"f32": "F32", "f16": "F16", "bf16": "BF16", "i64": "I64"}


@dataclass(frozen=True)
class Layer:
    """One convolution or linear layer of a plan.

    Attributes:
        name: Where it stands in the model.
        shape: Of its weight.
        density: Fraction of its weights that are not zero.
        batch: Batch size it was measured with; None if it was not measured.
        kernel: The kernel chosen for that batch size.
        dense_us: Microseconds of the fastest kernel that multiplies with zeros too; None if not measured.
        sparse_us: Microseconds of the fastest sparse kernel; None if not measured or if there is none.
        why: What the choice rests on.
    """

    name: str
    shape: tuple[int, ...]
    density: float
    batch: int | None
    kernel: str
    dense_us: float | None
    sparse_us: float | None
    why: str


@dataclass(frozen=True)
class Plan:
    """A compiled network; ``print(plan)`` shows what was chosen for each layer, and why.

    Attributes:
        program: What is computed, and with which kernels.
        weights: The weights, by the names that the program uses.
    """

    program: Program
    weights: Mapping[str, Weight]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as one file, specified in `docs/plan.md`; wholly or not at all.

        Args:
            path: The file to create or replace; its folder must exist.

        Raises:
            RunError: if the file cannot be written.
        """
        entries: dict[str, Entry] = {}
        specs: dict[str, WeightSpec] = {}
        for name, weight in self.weights.items():
            coding, index = encode(weight)
            specs[name] = WeightSpec(weight.shape, weight.dtype, coding)
            stored = (_CODES[weight.dtype], weight.numbers)
            if index is None:
                entries[name] = stored
            else:
                entries[name + VALUES] = stored
                entries[name + INDEX] = ("U8", index)
        write_container(path, replace(self.program, weights=specs).to_json(), entries)

    def layers(self) -> list[Layer]:
        """Its convolutions and linear layers, one for each batch size measured."""
        return [
            layer
            for op in self.program.ops
            if op.kind in KERNELS
            for layer in _layers_of(op, self.weights[op.attributes["weight"]])
        ]

    def __str__(self) -> str:
        rows = [
            (
                layer.name if n == 1 else f"{layer.name}, {n} times",
                "×".join(map(str, layer.shape)),
                f"{layer.density:.3f}",
                "" if layer.batch is None else str(layer.batch),
                layer.kernel,
                "" if layer.dense_us is None else f"{layer.dense_us:,.0f}",
                "" if layer.sparse_us is None else f"{layer.sparse_us:,.0f}",
                layer.why,
            )
            for layer, n in _together(self.layers())
        ]
        head = ("layer", "weight", "density", "batch", "kernel", "dense µs", "sparse µs", "why")
        n_layers = sum(op.kind in KERNELS for op in self.program.ops)
        summary = (
            f"{len(self.program.ops)} operations, {n_layers} of them layers; {self.n_nonzero:,} of "
            f"{self.n_weights:,} weights are not zero; {self.program.precision}"
        )
        if self.program.one_thread:
            summary += f", one thread up to batch {self.program.one_thread}"
        if "isa" in self.program.provenance:
            summary += f", timed with {self.program.provenance['isa']}"
        in_torch = sorted({op.attributes["target"] for op in self.program.ops if op.kind == "torch"})
        notes = [f"in torch, so torch is needed to run it: {', '.join(in_torch)}"] if in_torch else []
        return "\n".join((text_table(head, rows, left=(0, 1, 4, 7)), summary, *notes))

    @property
    def n_weights(self) -> int:
        """Numbers in all weights, zeros too."""
        return sum(weight.numel for weight in self.weights.values())

    @property
    def n_nonzero(self) -> int:
        """Numbers in all weights that are not zero."""
        return sum(int(np.count_nonzero(weight.numbers)) for weight in self.weights.values())


def read_plan(path: str | os.PathLike[str]) -> Plan:
    """A plan from its file, checked throughout.

    Raises:
        PlanError: if there is no such file, or it breaks any rule of `docs/plan.md`.
    """
    text, entries = read_container(path)
    program = parse_program(text)
    weights = {name: _weight(name, spec, entries) for name, spec in program.weights.items()}
    if entries:
        raise PlanError(
            f"entry {sorted(entries)[0]!r} of {str(path)!r} belongs to no weight. Compile it again."
        )
    return Plan(program, weights)


def _weight(name: str, spec: WeightSpec, entries: dict[str, Entry]) -> Weight:
    """The weight that the program describes; takes its entries away."""
    try:
        if spec.coding == "dense":
            numbers = _take(entries, name, _CODES[spec.dtype])
            if numbers.shape != spec.shape:
                raise ValueError(f"its entry has the shape {list(numbers.shape)}, not {list(spec.shape)}")
            return Weight(spec.shape, spec.dtype, numbers)
        numbers = _take(entries, name + VALUES, _CODES[spec.dtype])
        index = _take(entries, name + INDEX, "U8")
        if numbers.ndim != 1 or index.ndim != 1:
            raise ValueError("its entries must have one dimension")
        numel = math.prod(spec.shape)
        positions = decode(spec.coding, index, numel)
        if positions.size != numbers.size:
            raise ValueError(f"its index has {positions.size} positions for {numbers.size} numbers")
        return Weight(spec.shape, spec.dtype, numbers, positions)
    except ValueError as error:
        raise PlanError(f"weight {name!r} of the plan is damaged: {error}. Compile it again.") from error


def _take(entries: dict[str, Entry], name: str, code: str) -> Any:  # noqa: ANN401  an array of any type
    if name not in entries:
        raise ValueError(f"there is no entry {name!r}")
    found, array = entries.pop(name)
    if found != code:
        raise ValueError(f"entry {name!r} is {found}, not {code}")
    return array


def _together(layers: Sequence[Layer]) -> list[tuple[Layer, int]]:
    """Calls of one layer with one kernel as one, with their median times, and how many they are.

    A recurrent layer is called for each step of a sequence.
    """
    groups: dict[tuple[object, ...], list[Layer]] = {}
    for layer in layers:
        key = (layer.name, layer.shape, layer.density, layer.batch, layer.kernel)
        groups.setdefault(key, []).append(layer)
    return [
        (
            replace(calls[0], dense_us=_median(calls, "dense_us"), sparse_us=_median(calls, "sparse_us")),
            len(calls),
        )
        for calls in groups.values()
    ]


def _median(layers: Sequence[Layer], name: Literal["dense_us", "sparse_us"]) -> float | None:
    times = [time for layer in layers if (time := getattr(layer, name)) is not None]
    return median(times) if times else None


def _layers_of(op: Op, weight: Weight) -> list[Layer]:
    measured = op.attributes["measured"]
    if not measured:
        kernel = op.kernel_for(1)
        return [Layer(op.name, weight.shape, weight.density, None, kernel, None, None, "not measured")]
    layers: list[Layer] = []
    for row in measured:
        times: dict[str, float] = row["us"]
        dense = min((t for kernel, t in times.items() if kernel in WITH_ZEROS), default=None)
        sparse = min((t for kernel, t in times.items() if kernel not in WITH_ZEROS), default=None)
        kernel = op.kernel_for(row["batch"])
        why = _reason(kernel, times)
        layers.append(Layer(op.name, weight.shape, weight.density, row["batch"], kernel, dense, sparse, why))
    return layers


def _reason(kernel: str, times: Mapping[str, float]) -> str:
    if times.get(kernel) == 0:
        return "timed with the layer before, which it runs with"
    others = {name: t for name, t in times.items() if name != kernel}
    if kernel not in times or not others:
        return "the only kernel for it"
    second = min(others, key=others.__getitem__)
    return f"{times[second] / max(times[kernel], 1e-3):.1f}× as fast as {second}"
