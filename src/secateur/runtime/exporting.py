"""From a PyTorch model to operators of torch, with the batch size open."""

from __future__ import annotations

import ast
import io
import logging
import operator
import re
import sys
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.export.graph_signature import OutputKind
from torch.fx import Node

from secateur.errors import CompileError
from secateur.inputs import Arguments
from secateur.modules import plain_attention
from secateur.runtime.export_faults import check_runs, said, why_not
from secateur.runtime.lowering import LOWERINGS

aten: Any = torch.ops.aten

_CHECKS = {
    aten._assert_scalar.default,
    aten._assert_tensor_metadata.default,
    aten.sym_constrain_range_for_size.default,
}
"""Operators that torch inserts to check sizes and types; the engine checks its inputs itself."""

_A_BATCH_SIZE = re.compile(r"[\w'\[\].]+\.size\(\)\[0\]")
"""The batch size of an input, in the conditions that export writes down."""


def export(model: nn.Module, example: Arguments) -> ExportedProgram:
    """A model in operators of torch, captured for any batch size.

    Args:
        model: In eval mode.
        example: Its inputs, the batch first.

    Raises:
        CompileError: if it cannot be captured, or only for some batch sizes.
    """
    # With a batch of one, export would take the batch size for a fixed 1.
    # Copies, as export takes two inputs that are one tensor for one input.
    inputs = example.map(lambda x: torch.cat([x, x] if x.shape[0] == 1 else [x]).detach())
    shapes = ShapesCollection()
    for x in inputs.tensors:
        shapes[x] = {0: Dim.DYNAMIC}
    with plain_attention(), torch.no_grad(), _quiet():
        try:
            whole = torch.export.export(
                model, inputs.positional, dict(inputs.named), dynamic_shapes=cast("Any", shapes)
            )
        # Export runs the model: whatever the model raises comes out of it.
        except Exception as error:
            check_runs(model, inputs)
            raise CompileError(why_not(error, model, inputs)) from error
        try:
            exported = _taken_apart(whole)
        except Exception as error:
            raise CompileError(
                f"torch cannot take the operators of this model apart: {said(error)}. Write what it names "
                "in other operators."
            ) from error
    # Of the model itself: what torch makes of an operator may depend on sizes only in how it gets there.
    _check_paths(whole)
    return exported


_LOGS = ("torch.fx.experimental.symbolic_shapes", "torch._subclasses.fake_tensor")


@contextmanager
def _quiet() -> Generator[None]:
    """Nothing of what torch warns of, logs and prints when export fails: graphs, stacks, what to guard."""
    logs = [logging.getLogger(name) for name in _LOGS]
    before = [log.disabled for log in logs]
    for log in logs:
        # Who asks for more than warnings by TORCH_LOGS gets it.
        log.disabled |= not log.isEnabledFor(logging.INFO)
    try:
        with redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, disabled in zip(logs, before, strict=True):
            log.disabled = disabled


def _taken_apart(exported: ExportedProgram) -> ExportedProgram:
    """What has no lowering replaced by what torch makes it of; recurrent layers go step by step.

    Where each operator has one, nothing is changed in place either, and another round of export, which takes
    as long as the first or several times that, is not needed.
    """
    for node in exported.graph.nodes:
        _without_dropout(node)
        _one_by_one(node)
        _out_of_place(node)
    if all(map(_has_lowering, exported.graph.nodes)):
        exported.graph.eliminate_dead_code()
        return exported
    known = torch.export.default_decompositions()

    def missing() -> dict[Any, Any]:
        """Each once: some are taken apart only for some arguments."""
        here = {node.target for node in exported.graph.nodes if not _has_lowering(node)}
        return {target: known.pop(target) for target in here if target in known}

    exported = exported.run_decompositions(missing())
    while here := missing():
        exported = exported.run_decompositions(here)
    return exported


_NEW = {
    *("aten.conv1d.default", "aten.conv1d.padding", "aten.conv2d.default", "aten.conv2d.padding"),
    *("aten.linear.default", "aten.batch_norm.default", "aten.add.Tensor", "aten.mul.Tensor"),
}
"""Operators whose result shares no memory with what they were given."""
_IN_PLACE = {
    *("add", "sub", "mul", "div", "clamp", "relu", "relu6", "hardtanh", "leaky_relu", "elu", "celu", "selu"),
    *("silu", "mish", "hardswish", "hardsigmoid", "sigmoid", "tanh"),
}
"""Arithmetic and activation functions, which give floats of what is in floats."""


def _without_dropout(node: Node) -> None:
    """Hand on what dropout hands on: in eval mode the very tensor, which may be changed in place later."""
    if node.target not in (aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default):
        return
    given, p, training = node.args
    if isinstance(given, Node) and (p == 0 or not training):
        node.replace_all_uses_with(given, lambda user: user.op != "output")
        if node.users:  # an output, which export knows by the name of its node
            node.target, node.args = aten.alias.default, (given,)
        else:
            node.graph.erase_node(node)


def _one_by_one(node: Node) -> None:
    """Take parts of what is unbound by themselves: changed in place, they would cost torch the open batch."""
    if node.target is aten.unbind.int:
        for part in list(node.users):
            part.target, part.args = aten.select.int, (node.args[0], *(node.args[1:] or (0,)), part.args[1])
        node.graph.erase_node(node)


def _out_of_place(node: Node) -> None:
    """Make an operator that changes a new tensor in place, which nobody else sees, one that does not.

    As in most networks of convolutions: ``relu_(batch_norm(x))``.
    """
    name, _, overload = str(node.target).removeprefix("aten.").partition("_.")
    if name not in _IN_PLACE:
        return
    changed = node.args[0]
    is_new = isinstance(changed, Node) and str(changed.target) in _NEW and len(changed.users) == 1
    types = {x.meta["val"].dtype for x in node.all_input_nodes if isinstance(x.meta.get("val"), Tensor)}
    # in place a tensor keeps its type, which of several types, or of whole numbers, it would not otherwise
    if is_new and types == {torch.float32}:
        node.target = getattr(getattr(aten, name), overload)


def _has_lowering(node: Node) -> bool:
    if node.op != "call_function":
        return node.op in ("placeholder", "output")
    if node.target is aten.batch_norm.default and node.args[5]:
        return False  # with the statistics of the batch it may change those that it keeps
    return concerns_sizes(node) or str(node.target) in LOWERINGS or node.target is operator.getitem


def _check_paths(exported: ExportedProgram) -> None:
    """Refuse a model in which batch sizes decide what is done, as far as export saw that."""
    # Some versions of torch keep no list of them; what a bound is made of is seen all the same.
    guards: Sequence[str] = getattr(exported, "_guards_code", ())
    found = [_A_BATCH_SIZE.sub("batch", guard) for guard in guards]
    conditions = [condition for condition in found if not _always_holds(condition)]
    for symbol, bounds in exported.range_constraints.items():
        # Export takes no size of 0 or 1 for one of many.
        if not depends_on_values(symbol) and (bounds.lower > 2 or bounds.upper < sys.maxsize):
            conditions.append(f"{bounds.lower} ≤ batch ≤ {bounds.upper}")
    if conditions:
        raise CompileError(
            f"the model takes another path for some batch sizes: this one holds for {conditions[0]}. A plan "
            "holds one path for all: take out of forward what depends on the batch size."
        )


def _always_holds(condition: str) -> bool:
    """Whether a condition on the batch size, such as ``10 * batch % batch == 0``, holds for all of many."""
    try:
        tree = ast.parse(condition, mode="eval").body
        # From 2 on: export takes no size of 1 for one of many, and conditions say so.
        return all(_value(tree, n) for n in (*range(2, 257), *(2**k for k in range(9, 41))))
    except (SyntaxError, TypeError, ZeroDivisionError):
        return False


def _value(node: ast.expr, batch: int) -> Any:  # noqa: ANN401  a number or a truth value
    """What a Python expression of numbers and the name `batch` gives.

    Raises:
        TypeError: if there is anything else in it.
    """
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.Name) and node.id == "batch":
        return batch
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left, batch), _value(node.right, batch))
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _OPERATORS:
        return _OPERATORS[type(node.ops[0])](_value(node.left, batch), _value(node.comparators[0], batch))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("max", "min"):
        numbers = [_value(argument, batch) for argument in node.args]
        return max(numbers) if node.func.id == "max" else min(numbers)
    raise TypeError(ast.dump(node))


_OPERATORS: Mapping[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


def results_of(exported: ExportedProgram) -> list[object]:
    """What the model returns; not what becomes of its inputs and buffers, which export returns as well.

    An input that the model changes in place is left alone by an engine, which works on values of its own.

    Raises:
        CompileError: if an output depends on a buffer that the model changes.
    """
    (end,) = (node for node in exported.graph.nodes if node.op == "output")
    given, kinds = cast("Sequence[object]", end.args[0]), exported.graph_signature.output_specs
    results = [x for x, spec in zip(given, kinds, strict=True) if spec.kind is OutputKind.USER_OUTPUT]
    changed = exported.graph_signature.buffers_to_mutate.values()
    seen, waiting = set[str](), [x for x in results if isinstance(x, Node)]
    while waiting:
        node = waiting.pop()
        if node.name not in seen:
            seen.add(node.name)
            waiting.extend(node.all_input_nodes)
    for name, buffer in exported.graph_signature.inputs_to_buffers.items():
        if buffer in changed and name in seen:
            raise CompileError(
                f"the model changes its buffer {buffer!r} and returns what depends on it. A plan keeps "
                "nothing from one call to the next: pass it in as an input, and return what becomes of it."
            )
    return results


def is_symbolic(x: object) -> bool:
    """Whether something is a number that stands for one of each batch size."""
    return isinstance(x, torch.SymInt | torch.SymBool | torch.SymFloat)


def concerns_sizes(node: Node) -> bool:
    """Whether a node computes with sizes, or checks them; in a plan nothing is left of it."""
    return is_symbolic(node.meta.get("val")) or node.target in _CHECKS


def depends_on_values(symbol: object) -> bool:
    """Whether a number depends on values and not on the batch; torch calls those u0, zuf0 and so on."""
    return str(symbol).startswith(("u", "zuf"))


def place_of(node: Node) -> str:
    """The module that a node belongs to, as its name in the model."""
    stack = cast("Mapping[str, tuple[str, object]]", node.meta.get("nn_module_stack") or {})
    names = [name for name, _ in stack.values() if name and not name.startswith("_empty")]
    return names[-1] if names else ""


def where_of(node: Node) -> str:
    """The place of a node for an error: module, and line of code where it is known."""
    place = place_of(node)
    lines = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines()]
    files = [line for line in lines if line.startswith("File ")]
    at = f" in {place}" if place else " in the model itself"
    return at + (f" ({files[-1]})" if files else "")
