"""The program of a plan: values, operations, weights; from JSON and back, checked.

`docs/plan.md` specifies it. A program that `parse_program` returns obeys that page, so what runs it
need not look again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast

from secateur.errors import PlanError
from secateur.files import parse_json
from secateur.runtime.attributes import ATTRIBUTES, WEIGHTS_OF, fields_of, is_shape
from secateur.runtime.shapes import Shape, Signature, output_of
from secateur.runtime.weights import CODINGS, PRECISIONS, STORED

MAX_OPS = 100_000
MAX_NUMEL = 2**40
MAX_WEIGHT_NUMEL = 2**31 - 1


@dataclass(frozen=True)
class Value:
    """An activation: shape, in which −k stands for k times the batch size, and type."""

    shape: Shape
    dtype: str = "f32"


@dataclass(frozen=True)
class WeightSpec:
    """What the program says of a weight."""

    shape: tuple[int, ...]
    dtype: str
    coding: str


@dataclass(frozen=True)
class Op:
    """One operation.

    Attributes:
        kind: Its row in the table of operations, such as "conv".
        name: Where it stands in the model.
        inputs: Ids of the values it reads.
        output: Id of the value it writes.
        attributes: Those of its kind, as JSON values.
    """

    kind: str
    name: str
    inputs: tuple[int, ...]
    output: int
    attributes: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def weights(self) -> list[str]:
        """Names of its weights."""
        names = (self.attributes.get(key) for key in WEIGHTS_OF)
        return [name for name in names if name is not None]

    def kernel_for(self, batch: int) -> str:
        """The kernel that a convolution or linear layer is to run with at a batch size."""
        first, *later = self.attributes["kernels"]
        return next((kernel for least, kernel in reversed(later) if least <= batch), first[1])

    def to_dict(self) -> dict[str, Any]:
        """As in the file."""
        head = {"op": self.kind, "name": self.name, "inputs": list(self.inputs), "output": self.output}
        return {**head, **{key: self.attributes[key] for key in ATTRIBUTES[self.kind]}}


@dataclass(frozen=True)
class Program:
    """A whole program; see `docs/plan.md` for what its parts mean.

    Attributes:
        values: Every activation; its place is its id.
        inputs: Name and id of each input.
        outputs: Name and id of each output.
        weights: What each weight is, by name.
        ops: In an order in which they can run.
        precision: "fp32", "bf16" or "fp16".
        working_set: Pairs of a batch size and how many bytes an operation should read and write at a
            time from that size on; batch sizes rise.
        one_thread: The largest batch size for which one thread was faster than several; 0 if none was.
        provenance: How it was made.
    """

    values: tuple[Value, ...]
    inputs: tuple[tuple[str, int], ...]
    outputs: tuple[tuple[str, int], ...]
    weights: Mapping[str, WeightSpec]
    ops: tuple[Op, ...]
    precision: str = "fp32"
    working_set: tuple[tuple[int, int], ...] = ()
    one_thread: int = 0
    provenance: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def to_json(self) -> str:
        """The program as JSON text, equal for equal programs."""
        content = {
            "precision": self.precision,
            "working_set": [list(pair) for pair in self.working_set],
            "one_thread": self.one_thread,
            "values": [{"shape": list(v.shape), "dtype": v.dtype} for v in self.values],
            "inputs": [{"name": name, "value": value} for name, value in self.inputs],
            "outputs": [{"name": name, "value": value} for name, value in self.outputs],
            "weights": {
                name: {"shape": list(w.shape), "dtype": w.dtype, "coding": w.coding}
                for name, w in self.weights.items()
            },
            "ops": [op.to_dict() for op in self.ops],
            "provenance": self.provenance,
        }
        return json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def parse_program(text: str) -> Program:
    """A program from JSON text.

    Raises:
        PlanError: saying what is wrong, for anything that `docs/plan.md` does not allow.
    """
    try:
        return _program(parse_json(text))
    except ValueError as error:
        raise PlanError(
            f"this is not a program that an engine can run: {error}. Compile it again."
        ) from error


def _program(content: object) -> Program:
    keys = ("precision", "working_set", "one_thread", "values", "inputs", "outputs", "weights", "ops")
    found = fields_of(content, (*keys, "provenance"), "the program")
    if not isinstance(found["precision"], str) or found["precision"] not in PRECISIONS:
        raise ValueError(f"precision {found['precision']!r} is none of {', '.join(PRECISIONS)}")
    one_thread = found["one_thread"]
    if type(one_thread) is not int or not 0 <= one_thread <= MAX_NUMEL:
        raise ValueError(f"one_thread {one_thread!r} must be a batch size, or 0")
    if not isinstance(found["provenance"], dict):
        raise ValueError("provenance must be an object")
    program = Program(
        values=tuple(_value(item, place) for place, item in enumerate(_listed(found, "values"))),
        inputs=tuple(_named_value(item, "inputs") for item in _listed(found, "inputs")),
        outputs=tuple(_named_value(item, "outputs") for item in _listed(found, "outputs")),
        weights=_weights(found["weights"]),
        ops=tuple(_op(item, place) for place, item in enumerate(_listed(found, "ops"))),
        precision=found["precision"],
        working_set=_working_set(found),
        one_thread=one_thread,
        provenance=cast("dict[str, Any]", found["provenance"]),
    )
    check_program(program)
    return program


def check_program(program: Program) -> None:
    """Refuse a program whose parts do not fit each other.

    Raises:
        ValueError: naming the operation or value.
    """
    written: set[int] = set()
    for name, value in program.inputs:
        _check_id(value, program, f"input {name!r}")
        shape = program.values[value].shape
        if not shape or shape[0] != -1:
            raise ValueError(f"input {name!r} must have the batch as its first dimension, got {list(shape)}")
        _claim(value, written, f"input {name!r}")
    if not program.inputs or not program.outputs:
        raise ValueError("it has no inputs or no outputs")
    for place, op in enumerate(program.ops):
        try:
            _check_op(op, program, written)
        except ValueError as error:
            raise ValueError(f"operation {place}, {op.kind} {op.name!r}: {error}") from error
    for name, value in program.outputs:
        _check_id(value, program, f"output {name!r}")
    missing = sorted(set(range(len(program.values))) - written)
    if missing:
        raise ValueError(f"value {missing[0]} is never written")


def _check_op(op: Op, program: Program, written: set[int]) -> None:
    for value in op.inputs:
        _check_id(value, program, "an input")
        if value not in written:
            raise ValueError(f"it reads value {value} before it is written")
    _check_id(op.output, program, "its output")
    _claim(op.output, written, "its output")
    weights: dict[str, Signature] = {}
    for key in WEIGHTS_OF:
        name = op.attributes.get(key)
        if name is not None:
            if name not in program.weights:
                raise ValueError(f"there is no weight {name!r}")
            spec = program.weights[name]
            weights[key] = (spec.shape, "i64" if spec.dtype == "i64" else "f32")
    inputs = [(program.values[i].shape, program.values[i].dtype) for i in op.inputs]
    stated = program.values[op.output]
    found = output_of(op.kind, op.attributes, inputs, weights, stated.shape)
    if found != (stated.shape, stated.dtype):
        raise ValueError(f"it gives {found[1]} {list(found[0])}, not {stated.dtype} {list(stated.shape)}")


def _value(content: object, place: int) -> Value:
    found = fields_of(content, ("shape", "dtype"), f"value {place}")
    shape, dtype = found["shape"], found["dtype"]
    if not is_shape(shape, batch=True) or math.prod(map(abs, shape)) > MAX_NUMEL:
        raise ValueError(f"value {place} cannot have the shape {shape!r}")
    if dtype not in ("f32", "i64"):
        raise ValueError(f"value {place} cannot have the type {dtype!r}")
    return Value(tuple(shape), dtype)


def _weights(content: object) -> dict[str, WeightSpec]:
    if not isinstance(content, dict):
        raise ValueError("weights must be an object")
    specs: dict[str, WeightSpec] = {}
    for name, item in cast("dict[str, object]", content).items():
        found = fields_of(item, ("shape", "dtype", "coding"), f"weight {name!r}")
        shape, dtype, coding = found["shape"], found["dtype"], found["coding"]
        if not is_shape(shape, batch=False) or math.prod(shape) > MAX_WEIGHT_NUMEL:
            raise ValueError(f"weight {name!r} cannot have the shape {shape!r}")
        if not isinstance(dtype, str) or dtype not in STORED or coding not in CODINGS:
            raise ValueError(f"weight {name!r} cannot have type {dtype!r} and coding {coding!r}")
        specs[name] = WeightSpec(tuple(shape), dtype, coding)
    return specs


def _named_value(content: object, what: str) -> tuple[str, int]:
    found = fields_of(content, ("name", "value"), f"one of the {what}")
    if not isinstance(found["name"], str) or type(found["value"]) is not int:
        raise ValueError(f"one of the {what} must be a name and the id of a value")
    return found["name"], found["value"]


def _op(content: object, place: int) -> Op:
    kind = cast("dict[str, Any]", content).get("op") if isinstance(content, dict) else None
    if not isinstance(kind, str) or kind not in ATTRIBUTES:
        raise ValueError(f"operation {place} has the unknown kind {kind!r}")
    table = ATTRIBUTES[kind]
    found = fields_of(content, ("op", "name", "inputs", "output", *table), f"operation {place}, a {kind},")
    inputs, output = found["inputs"], found["output"]
    ids = cast("list[object]", inputs) if isinstance(inputs, list) else [None]
    if not all(type(i) is int for i in ids) or type(output) is not int or not isinstance(found["name"], str):
        raise ValueError(f"operation {place}, a {kind}, must have a name, and ids of values")
    for key, allows in table.items():
        if not allows(found[key]):
            raise ValueError(f"operation {place}, {kind} {found['name']!r}, cannot have {key} {found[key]!r}")
    attributes = {key: found[key] for key in table}
    return Op(kind, found["name"], tuple(cast("list[int]", ids)), output, attributes)


def _working_set(found: Mapping[str, Any]) -> tuple[tuple[int, int], ...]:
    pairs: list[tuple[int, int]] = []
    for item in _listed(found, "working_set"):
        numbers = cast("list[object]", item) if isinstance(item, list) else []
        if len(numbers) != 2 or not all(type(n) is int and 1 <= n <= MAX_NUMEL for n in numbers):
            raise ValueError(f"working_set has {item!r}, it must be a batch size and a number of bytes")
        pairs.append(cast("tuple[int, int]", tuple(numbers)))
    if any(a >= b for (a, _), (b, _) in pairwise(pairs)):
        raise ValueError("the batch sizes of working_set must rise")
    return tuple(pairs)


def _listed(found: Mapping[str, Any], key: str) -> Sequence[object]:
    items = found[key]
    if not isinstance(items, list) or len(cast("list[object]", items)) > MAX_OPS:
        raise ValueError(f"{key} must be a list of at most {MAX_OPS}")
    return cast("list[object]", items)


def _check_id(value: int, program: Program, what: str) -> None:
    if not 0 <= value < len(program.values):
        raise ValueError(f"{what} is value {value}, there are {len(program.values)}")


def _claim(value: int, written: set[int], what: str) -> None:
    if value in written:
        raise ValueError(f"{what} is value {value}, which is already written")
    written.add(value)
