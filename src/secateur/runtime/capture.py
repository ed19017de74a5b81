"""From a PyTorch model to a graph: `torch.export`, then one lowering function for each operator."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

from secateur.errors import CompileError
from secateur.inputs import Arguments
from secateur.runtime.exporting import (
    concerns_sizes,
    depends_on_values,
    export,
    is_symbolic,
    place_of,
    results_of,
    where_of,
)
from secateur.runtime.graph import Graph
from secateur.runtime.lowering import BATCHES, LOWERINGS, Activation, Lowering, Sized, Unsupported, kept_as
from secateur.runtime.program import Value
from secateur.runtime.shapes import Shape
from secateur.runtime.torch_ops import check_fits, instead_of


def capture(model: nn.Module, example: Arguments, *, fallback: bool) -> Graph:
    """The graph of a model, operator by operator; nothing is fused yet.

    Args:
        model: In eval mode.
        example: Its inputs, the batch first.
        fallback: Whether operators without an operation become parts in torch.

    Raises:
        CompileError: if the model cannot be exported for any batch size, or uses an operator that no
            operation covers; the message names the operator and its place in the model.
    """
    exported = export(model, example)
    builder = _Builder(exported, fallback)
    for node in exported.graph.nodes:
        builder.visit(node)
    if not builder.graph.outputs:
        raise CompileError("the model returns no tensor that depends on its input. Return at least one.")
    return builder.graph


class _Builder:
    """Visits the nodes of an exported program in order and adds what they do to a graph."""

    def __init__(self, exported: ExportedProgram, fallback: bool) -> None:
        self.graph = Graph()
        self._fallback = fallback
        self._found: dict[Node, Any] = {}
        signature = exported.graph_signature
        state: Mapping[str, Any] = {**exported.state_dict, **exported.constants}
        named = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        self._constants = {node: state[name].detach() for node, name in named.items()}
        names = {id(self._constants[node]): name for node, name in named.items()}
        self._lowering = Lowering(self.graph, names)
        self._results = results_of(exported)

    def visit(self, node: Node) -> None:
        """Add one node."""
        try:
            self._visit(node)
        except CompileError:
            raise
        except Exception as error:
            raise CompileError(
                f"a plan cannot hold {node.target}{where_of(node)}: {_reason(error)}. "
                f"{instead_of(str(node.target))}"
            ) from error

    def _visit(self, node: Node) -> None:
        if node.op == "placeholder":
            self._found[node] = self._placeholder(node)
        elif node.op == "output":
            self._outputs(node)
        elif node.op == "call_function":
            self._found[node] = self._call(node)
        else:
            raise CompileError(f"a plan cannot hold {node.op} {node.target}{where_of(node)}.")

    def _placeholder(self, node: Node) -> object:
        if node.name in self._constants:
            return self._constants[node.name]
        tensor = node.meta["val"]
        if not isinstance(tensor, Tensor):
            raise CompileError(f"input {node.name!r} is no tensor; bind it before compiling.")
        dtype = _IN_PLANS.get(tensor.dtype)
        if dtype is None:
            raise CompileError(
                f"input {node.name!r} is {tensor.dtype}; a plan takes float32, int64 and bool."
            )
        shape = _shape_of(tensor)
        given = Activation(self.graph.add_input(node.name, Value(shape, dtype)), shape)
        # whatever is not 0 holds, should the numbers of a mask come as floats
        return self._lowering.to(given, torch.bool) if tensor.dtype == torch.bool else given

    def _outputs(self, node: Node) -> None:
        results = [result for result in self._results if result is not None]  # as of a loss without labels
        for place, result in enumerate(results):
            found = self._found[result] if isinstance(result, Node) else None
            if isinstance(found, Tensor | Sized):
                self._lowering.place = "output"
                found = self._lowering.as_activation(self._filled(found))
            if not isinstance(found, Activation):
                raise CompileError(
                    f"output {place} of the model is no tensor, but {result!r}. Return tensors alone."
                )
            name = "output" if len(results) == 1 else f"output{place}"
            self.graph.outputs.append((name, found.value))

    def _call(self, node: Node) -> object:
        if node.target is operator.getitem:
            return self._part(cast("Node", node.args[0]), cast("int", node.args[1]))
        if concerns_sizes(node):
            return node.meta.get("val")
        target, arguments = cast("Any", node.target), self._arguments(node)
        if _draws(target, arguments):
            raise CompileError(
                f"a plan cannot hold {target}{where_of(node)}: it draws random numbers, and a plan gives the "
                "same for the same input. Pass them in as an input."
            )
        if not any(isinstance(x, Activation) for x in _flat(arguments.values())):
            return self._constant(node, arguments)
        self._lowering.place = place_of(node)
        self._lowering.shapes = [_shape_of(x) for x in _tensors(node.meta["val"])]
        self._lowering.dtypes = [x.dtype for x in _tensors(node.meta["val"])]
        lower = LOWERINGS.get(str(target))
        try:
            if lower is None:
                raise Unsupported("there is no operation for it")
            _check_sizes(str(target), arguments)
            ranges = target is torch.ops.aten.index.Tensor
            found = lower(self._lowering, **self._filled(arguments, keep_ranges=ranges))
            return self._typed(found)
        # Not only Unsupported: an argument of a kind that nobody thought of breaks a lowering anyhow.
        except Exception as error:
            return self._otherwise(node, _empty(arguments) or _reason(error), error)

    def _otherwise(self, node: Node, reason: str, error: Exception) -> object:
        """What no operation does: run in torch if that was asked for, else refused with what would help."""
        told = f"a plan cannot hold {node.target}{where_of(node)}: {reason}"
        try:
            found = self._in_torch(node)
        except Exception as other:
            # Only what could be run in torch is offered to be.
            also = "" if _reason(other) == reason else f"; nor can torch run it there: {_reason(other)}"
            raise CompileError(f"{told}{also}. {instead_of(str(node.target))}") from error
        if self._fallback:
            return found
        raise CompileError(
            f'{told}. Compile with fallback="torch" to run this part in torch, or write it in other '
            "operators."
        ) from error

    def _constant(self, node: Node, arguments: Mapping[str, object]) -> object:
        """What an operator gives that no input goes into: constants, or what they are for each batch size."""
        target, given = cast("Any", node.target), (self._known(node.args), self._known(node.kwargs))
        if not any(isinstance(x, Sized) or is_symbolic(x) for x in _flat(arguments.values())):
            return _computed(target, *given)
        return _joined([_computed(target, *_at(given, place)) for place in range(len(BATCHES))])

    def _filled(self, x: Any, *, keep_ranges: bool = False) -> Any:  # noqa: ANN401  arguments of any structure
        """What is the same for all images repeated as often as there are some."""
        if isinstance(x, list | tuple):
            return [self._filled(item, keep_ranges=keep_ranges) for item in cast("Sequence[Any]", x)]
        if isinstance(x, dict):
            items = cast("dict[str, Any]", x).items()
            return {key: self._filled(item, keep_ranges=keep_ranges) for key, item in items}
        if not isinstance(x, Sized) or (keep_ranges and x.is_range()):
            return x
        return self._lowering.repeat(x) if x.at[0].numel() else x.at[0]

    def _typed(self, found: Activation | Tensor | list[Activation]) -> Activation | Tensor | list[Activation]:
        """What a lowering gave, checked: of the type that torch gives, which an engine does not know."""
        results = found if isinstance(found, list) else [found] if isinstance(found, Activation) else []
        for x, dtype in zip(results, self._lowering.dtypes, strict=False):
            if self._lowering.dtype(x) != kept_as(dtype):
                raise Unsupported(f"what it gives is of {dtype}")
        return found

    def _part(self, whole: Node, place: int) -> object:
        """One of the results of an operator."""
        parts = self._found[whole]
        if place >= len(parts):
            raise CompileError(
                f"a plan cannot hold {whole.target}{where_of(whole)}: of its results only the first "
                f"{len(parts)} can be used, not number {place + 1} (places of maxima, for one)."
            )
        return parts[place]

    def _in_torch(self, node: Node) -> object:
        """The operator as one that torch runs."""
        check_fits(str(node.target), self._lowering.dtypes, self._lowering.shapes)
        (dtype,) = self._lowering.dtypes
        inputs: list[Activation] = []

        def encoded(x: object) -> object:
            if isinstance(x, Activation | Tensor):
                value = self._lowering.as_activation(x)
                inputs.append(value)
                return {"condition" if value.is_condition else "input": len(inputs) - 1}
            if isinstance(x, list | tuple):
                return [encoded(item) for item in cast("Sequence[object]", x)]
            if is_symbolic(x):
                return {"batch": -_dimension(x)}
            if x is None or isinstance(x, bool | int | str) or (isinstance(x, float) and math.isfinite(x)):
                return x
            convert = f"; leave it out, and convert with .to({x})" if isinstance(x, torch.dtype) else ""
            raise Unsupported(f"a plan file has no place for its argument {x!r}{convert}")

        target, given, named = node.target, self._known(node.args), self._known(node.kwargs)
        given, named = self._filled(given), self._filled(named)
        arguments = [encoded(x) for x in given]
        keywords = {key: encoded(x) for key, x in named.items()}
        if any(0 in x.shape for x in inputs):
            raise Unsupported("what it is given holds no numbers")
        found = self._lowering.add(
            "torch",
            inputs,
            self._lowering.shapes[0],
            target=str(target),
            arguments=arguments,
            keywords=keywords,
            dtype=_IN_PLANS[dtype],
        )
        return replace(found, is_condition=dtype == torch.bool)

    def _arguments(self, node: Node) -> dict[str, Any]:
        """The arguments of a node by their names in the schema, defaults included."""
        schema: list[Any] = cast("Any", node.target)._schema.arguments
        given = dict(zip((a.name for a in schema), self._known(node.args), strict=False))
        given.update(self._known(node.kwargs))
        return {
            "x" if a.name == "self" else a.name: given.get(a.name, a.default_value)
            for a in schema
            if a.name in given or a.has_default_value()
        }

    def _known(self, x: Any) -> Any:  # noqa: ANN401  arguments of any structure
        """Nodes replaced by what was found for them."""
        if isinstance(x, Node):
            return self._found[x]
        if isinstance(x, tuple | list):
            return [self._known(item) for item in cast("Sequence[Any]", x)]
        if isinstance(x, dict):
            return {key: self._known(item) for key, item in cast("dict[str, Any]", x).items()}
        return x


_IN_PLANS = {torch.float32: "f32", torch.int64: "i64", torch.bool: "f32"}
"""Types that may pass into a plan and out of it, and what they are there."""

_UNWRITTEN = {
    torch.ops.aten.empty.memory_format,
    torch.ops.aten.empty_like.default,
    torch.ops.aten.empty_permuted.default,
    torch.ops.aten.empty_strided.default,
    torch.ops.aten.new_empty.default,
}
"""Operators whose numbers are any until they are written to."""

_SHAPES = {"size", "shape", "sizes"}
"""Arguments that are shapes, in which the batch size may stand."""


def _computed(target: Any, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """What an operator of torch gives; zeros where that is left open, so that plans agree."""
    found = target(*arguments, **keywords)
    return found.zero_() if target in _UNWRITTEN else found


def _at(x: Any, place: int) -> Any:  # noqa: ANN401  arguments of any structure
    """Arguments as they are for one of `BATCHES`."""
    if isinstance(x, Sized):
        return x.at[place]
    if isinstance(x, list | tuple):
        return [_at(item, place) for item in cast("Sequence[Any]", x)]
    if isinstance(x, dict):
        return {key: _at(item, place) for key, item in cast("dict[str, Any]", x).items()}
    if not is_symbolic(x):
        return x
    expression = x.node.expr
    symbols = list(expression.free_symbols)
    if any(map(depends_on_values, symbols)):
        raise Unsupported("its argument depends on values")
    at = _for_batches(expression)
    growth = (at[BATCHES[1]] - at[BATCHES[0]]) / (BATCHES[1] - BATCHES[0])
    if any(value != at[BATCHES[0]] + growth * (n - BATCHES[0]) for n, value in at.items()):
        raise Unsupported(f"its argument is made of the batch size and no multiple of it ({expression})")
    return int(at[BATCHES[place]])


def _joined(found: Sequence[Any]) -> Any:  # noqa: ANN401  a tensor or a sequence of them
    """Results for each of `BATCHES` as one."""
    if isinstance(found[0], Tensor):
        return Sized.or_constant(found)
    return [_joined(parts) for parts in zip(*found, strict=True)]


def _draws(target: Any, arguments: Mapping[str, object]) -> bool:  # noqa: ANN401  torch has no type for it
    """Whether an operator draws random numbers; not so dropout that is switched off."""
    switches = ("train", "training", "dropout_p")
    return torch.Tag.nondeterministic_seeded in target.tags and all(arguments.get(s, True) for s in switches)


def _check_sizes(target: str, arguments: Mapping[str, object]) -> None:
    """Refuse an operator that computes with the batch size: lowering would take that of the example."""
    for name, x in arguments.items():
        whole = target == "aten.slice.Tensor" and name in ("start", "end")
        if name not in _SHAPES and not whole and any(map(is_symbolic, _flat([x]))):
            raise Unsupported(f"its argument {name!r} depends on the batch size or on values")


def _empty(arguments: Mapping[str, object]) -> str | None:
    """Which argument holds no numbers, None if all do: most operations say something else of such ones."""
    for name, x in arguments.items():
        if isinstance(x, Activation | Tensor) and 0 in x.shape:
            return f"its {name!r} of shape {tuple(x.shape)} holds no numbers"
    return None


def _reason(error: Exception) -> str:
    """What went wrong: in its own words if it was foreseen, else with its kind."""
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def _flat(items: Iterable[object]) -> Iterable[object]:
    for item in items:
        if isinstance(item, list | tuple):
            yield from _flat(cast("Sequence[object]", item))
        else:
            yield item


def _tensors(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    items = cast("Sequence[object]", value) if isinstance(value, list | tuple) else ()
    return [x for x in items if isinstance(x, Tensor)]


def _shape_of(tensor: Tensor) -> Shape:
    return tuple(_dimension(size) for size in tensor.shape)


def _dimension(size: Any) -> int:  # noqa: ANN401  int or SymInt
    """A size as in a plan: −k for k times the batch size."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    symbols = list(expression.free_symbols)
    if not symbols:
        return int(expression)
    if any(map(depends_on_values, symbols)):
        raise Unsupported(f"a size or number in it depends on values ({expression})")
    sizes = _for_batches(expression)
    first = sizes[BATCHES[0]]
    if all(size == first for size in sizes.values()):
        return int(first)
    factor = first / BATCHES[0]
    if not factor.is_integer or factor <= 0 or any(size != factor * n for n, size in sizes.items()):
        raise Unsupported(
            f"a size or number in it is made of the batch size and no multiple of it ({expression})"
        )
    return -int(factor)


def _for_batches(expression: Any) -> dict[int, Any]:  # noqa: ANN401  of sympy
    """What an expression of the batch size is for `BATCHES` and some larger ones."""
    # Export may have a symbol for each input; all stand for the batch size.
    symbols = list(expression.free_symbols)
    return {n: expression.subs(dict.fromkeys(symbols, n)) for n in (*BATCHES, 256, 257, 1 << 20)}
