"""A program while it is being made: operations can still be added and rewritten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur.runtime.attributes import WEIGHTS_OF
from secateur.runtime.container import INDEX, PROGRAM, VALUES
from secateur.runtime.program import Op, Program, Value, WeightSpec
from secateur.runtime.shapes import Shape, output_of
from secateur.runtime.weights import Weight, encode, make_weight

UNCHOSEN = {"kernels": [[1, "dense"]], "measured": []}
"""The kernel attributes of a layer before anything was measured."""


class Graph:
    """Operations in order, the values they write and the weights they use.

    Attributes:
        values: Every activation, by id.
        inputs: Name and id of each input.
        outputs: Name and id of each output.
        ops: In an order in which they can run.
        weights: Dense weights by name, float32 or int64.
        exact: Names of weights that are never stored narrower, besides constants.
    """

    def __init__(self) -> None:
        self.values: list[Value] = []
        self.inputs: list[tuple[str, int]] = []
        self.outputs: list[tuple[str, int]] = []
        self.ops: list[Op] = []
        self.weights: dict[str, NDArray[Any]] = {}
        self.exact: set[str] = set()

    def add_input(self, name: str, value: Value) -> int:
        """A new input; returns its id."""
        self.values.append(value)
        self.inputs.append((name, len(self.values) - 1))
        return len(self.values) - 1

    def add(
        self, kind: str, name: str, inputs: Sequence[int], shape: Shape = (), /, **attributes: object
    ) -> int:
        """A new operation at the end; returns the id of what it gives.

        Args:
            kind: The operation.
            name: Where it stands in the model.
            inputs: Ids of what it reads.
            shape: Shape of what it gives, for operations that do not determine it.
            attributes: Those of its kind.

        Raises:
            ValueError: if they do not fit each other.
        """
        signatures = [(self.values[i].shape, self.values[i].dtype) for i in inputs]
        output = len(self.values)
        op = Op(kind, name, tuple(inputs), output, attributes)
        stated = output_of(kind, attributes, signatures, self._weights_of(op), shape)
        self.values.append(Value(*stated))
        self.ops.append(op)
        return output

    def add_weight(self, name: str, numbers: NDArray[Any]) -> str:
        """A new weight under `name`, or that name with a number if it is taken; returns the name."""
        unique, n = name, 1
        while self._is_taken(unique):
            n += 1
            unique = f"{name}#{n}"
        self.weights[unique] = numbers
        return unique

    def shape(self, value: int) -> Shape:
        """Shape of a value."""
        return self.values[value].shape

    def users(self) -> dict[int, list[Op | None]]:
        """By value, the operations that read it, once for each reading; None stands for an output."""
        users: dict[int, list[Op | None]] = {i: [] for i in range(len(self.values))}
        for op in self.ops:
            for value in op.inputs:
                users[value].append(op)
        for _, value in self.outputs:
            users[value].append(None)
        return users

    def drop_unused(self) -> None:
        """Remove operations and weights that no output depends on."""
        needed = {value for _, value in self.outputs}
        kept: list[Op] = []
        for op in reversed(self.ops):
            if op.output in needed:
                needed.update(op.inputs)
                kept.append(op)
        self.ops = kept[::-1]
        names = {name for op in self.ops for name in op.weights}
        self.weights = {name: numbers for name, numbers in self.weights.items() if name in names}

    def exact_weights(self) -> set[str]:
        """Names of weights never stored narrower: operands of their own, and tables of whole numbers.

        In half precision, the 1e-8 of a norm would be 0, the −1e9 of a mask no number, and 2049 another one.
        """
        return self.exact | {name for op in self.ops if op.kind == "constant" for name in op.weights}

    def finish(self, precision: str, provenance: Mapping[str, Any]) -> tuple[Program, dict[str, Weight]]:
        """The program and its weights; ids are given anew, without gaps."""
        order = [value for _, value in self.inputs] + [op.output for op in self.ops]
        ids = {value: place for place, value in enumerate(order)}
        exact = self.exact_weights()
        weights = {
            name: make_weight(numbers, "fp32" if name in exact else precision)
            for name, numbers in self.weights.items()
        }
        program = Program(
            values=tuple(self.values[value] for value in order),
            inputs=tuple((name, ids[value]) for name, value in self.inputs),
            outputs=tuple((name, ids[value]) for name, value in self.outputs),
            weights={name: WeightSpec(w.shape, w.dtype, encode(w)[0]) for name, w in weights.items()},
            ops=tuple(
                Op(op.kind, op.name, tuple(ids[i] for i in op.inputs), ids[op.output], op.attributes)
                for op in self.ops
            ),
            precision=precision,
            provenance=provenance,
        )
        return program, weights

    def _is_taken(self, name: str) -> bool:
        """Whether a weight of this name could not be told apart from another one in a file."""
        ends = (VALUES, INDEX)
        others = {name, *(name + end for end in ends), *(name.removesuffix(end) for end in ends)}
        return name == PROGRAM or not others.isdisjoint(self.weights)

    def _weights_of(self, op: Op) -> dict[str, tuple[Shape, str]]:
        found: dict[str, tuple[Shape, str]] = {}
        for key in WEIGHTS_OF:
            name = op.attributes.get(key)
            if name is not None:
                numbers = self.weights[name]
                found[key] = (numbers.shape, "i64" if numbers.dtype == np.int64 else "f32")
        return found
