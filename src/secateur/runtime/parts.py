"""A program cut into parts at the operations that torch runs; without such, it is one part."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.runtime.program import Op, Program


@dataclass(frozen=True)
class Part:
    """A piece of a program that is a program itself.

    Attributes:
        program: The piece, with ids of its own.
        inputs: Ids in the whole program of what it is given; the first has the batch as its first
            dimension, whether it is read or not.
        outputs: Ids in the whole program of what it gives.
        places: Places of its operations in the whole program.
    """

    program: Program
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    places: range


@dataclass(frozen=True)
class TorchPart:
    """One operation that torch runs.

    Attributes:
        op: The operation.
        inputs: Ids of what it is given: one whose first dimension is the batch, then what it reads.
        outputs: The id of what it gives.
        output_shape: Shape of what it gives.
    """

    op: Op
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    output_shape: tuple[int, ...]


def parts_of(program: Program) -> list[Part | TorchPart]:
    """The parts of a program, in order."""
    parts: list[Part | TorchPart] = []
    start = 0
    for place, op in enumerate(program.ops):
        if op.kind == "torch":
            if place > start:
                parts.append(_part(program, range(start, place)))
            parts.append(
                TorchPart(
                    op, (program.inputs[0][1], *op.inputs), (op.output,), program.values[op.output].shape
                )
            )
            start = place + 1
    if start < len(program.ops):
        parts.append(_part(program, range(start, len(program.ops))))
    return parts


def _part(program: Program, places: range) -> Part:
    if len(places) == len(program.ops):
        inputs, outputs = (tuple(v for _, v in ends) for ends in (program.inputs, program.outputs))
        return Part(program, inputs, outputs, places)
    ops = [program.ops[place] for place in places]
    written = {op.output for op in ops}
    read = [program.inputs[0][1], *(i for op in ops for i in op.inputs if i not in written)]
    inputs = list(dict.fromkeys(read))
    read_later = {i for op in program.ops[places.stop :] for i in op.inputs}
    read_later |= {value for _, value in program.outputs}
    outputs = [op.output for op in ops if op.output in read_later]
    ids = {value: place for place, value in enumerate((*inputs, *(op.output for op in ops)))}
    names = {name for op in ops for name in op.weights}
    piece = Program(
        values=tuple(program.values[value] for value in ids),
        inputs=tuple((f"value {value}", ids[value]) for value in inputs),
        outputs=tuple((f"value {value}", ids[value]) for value in outputs),
        weights={name: spec for name, spec in program.weights.items() if name in names},
        ops=tuple(
            Op(op.kind, op.name, tuple(ids[i] for i in op.inputs), ids[op.output], op.attributes)
            for op in ops
        ),
        precision=program.precision,
        working_set=program.working_set,
        one_thread=program.one_thread,
    )
    return Part(piece, tuple(inputs), tuple(outputs), places)
