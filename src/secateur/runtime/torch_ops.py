"""Operations of a plan that torch runs, because a plan has none of its own for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from secateur.errors import PlanError
from secateur.runtime.attributes import is_shape
from secateur.runtime.program import Op
from secateur.runtime.reference import concrete

_FORBIDDEN = ("from_file", "set_", "resize", "storage", "print", "random", "rand", "dropout", "bernoulli")
"""Parts of names of operators that do more than compute a tensor from tensors, or draw numbers."""

_ORDER = ("sort", "msort", "argsort", "median", "nanmedian", "kthvalue")
"""Operators that put numbers in order and return their places as well, which torch cannot do in a plan."""


def check_fits(target: str, dtypes: Sequence[torch.dtype], shapes: Sequence[Sequence[int]]) -> None:
    """Refuse an operator that could not be run in torch inside a plan.

    Args:
        target: Its name, such as "aten.atan.default".
        dtypes: Types of what it returns.
        shapes: Their shapes; −k is k times the batch size.

    Raises:
        ValueError: saying what of it does not fit, and what is allowed.
    """
    if not target.startswith("aten."):
        raise ValueError("only operators of torch itself (aten) are allowed")
    if len(dtypes) != 1:
        raise ValueError(f"it returns {len(dtypes)} tensors, one is allowed")
    if dtypes[0] not in (torch.float32, torch.int64, torch.bool):
        raise ValueError(f"it returns {dtypes[0]}; float32, int64 and bool are allowed")
    if not is_shape(list(shapes[0]), batch=True):
        raise ValueError(
            f"it returns the shape {list(shapes[0])}, −1 being the batch; sizes of at least 1 are allowed, "
            "and the batch in one of them"
        )
    try:
        _operator(target)
    except PlanError as error:
        raise ValueError("only operators that make one tensor of others are allowed") from error


def instead_of(target: str) -> str:
    """What to do about an operator that a plan can neither hold nor run in torch."""
    name = target.removeprefix("aten.").partition(".")[0]
    if name in _ORDER:
        return "Use x.topk(k, dim), which a plan holds for a small fixed k, or take it out of forward."
    return "Write it in other operators, or take it out of forward."


class TorchOp:
    """One operator of torch, by its name in a plan.

    Args:
        op: An operation of kind "torch".
        shape: Shape of what it gives; −k is k times the batch size.

    Raises:
        PlanError: if the operator does not exist or is not one that a plan may name.
    """

    def __init__(self, op: Op, shape: Sequence[int]) -> None:
        _operator(op.attributes["target"])
        self._op = op
        self._shape = shape

    def run(self, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """What the operator returns, as a list of one.

        Args:
            inputs: An array whose first dimension is the batch, then those of the operation.

        Raises:
            ValueError: if the operator fails, or returns something else than the plan says.
        """
        batch = inputs[0].shape[0]
        # A copy: the arrays may be read-only or the caller's.
        tensors = [torch.from_numpy(np.array(x)) for x in inputs[1:]]
        try:
            with torch.no_grad():
                found = run_in_torch(self._op, tensors, batch)
        except (RuntimeError, TypeError, IndexError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"{self._op.attributes['target']} in {self._op.name!r} fails: {reason}"
            ) from error
        if tuple(found.shape) != concrete(self._shape, batch):
            raise ValueError(f"{self._op.attributes['target']} in {self._op.name!r} gives another shape")
        return [found.contiguous().numpy()]


def run_in_torch(op: Op, inputs: Sequence[Tensor], batch: int) -> Tensor:
    """What an operation of kind "torch" gives.

    Raises:
        PlanError: if the operator does not exist or is not one that a plan may name.
    """
    arguments = _filled(op.attributes["arguments"], inputs, batch)
    keywords = _filled(op.attributes["keywords"], inputs, batch)
    found = _operator(op.attributes["target"])(*arguments, **keywords)
    return found.to(torch.float32 if op.attributes["dtype"] == "f32" else torch.int64)


def _operator(target: str) -> Any:  # noqa: ANN401  torch does not type its operators
    """The operator of a name, if a plan may use it."""
    space, _, rest = target.partition(".")
    name, _, overload = rest.partition(".")
    packet = getattr(torch.ops.aten, name, None) if space == "aten" and name.isidentifier() else None
    function = getattr(packet, overload, None) if overload.isidentifier() else None
    schema: Any = getattr(function, "_schema", None)
    if schema is None or not _computes_only(name, schema):
        raise PlanError(f"a plan may not run {target!r} in torch. Compile it again.")
    return function


def _computes_only(name: str, schema: Any) -> bool:  # noqa: ANN401
    takes = [str(argument.type) for argument in schema.arguments]
    returns = [str(result.type) for result in schema.returns]
    changes = any(a.alias_info is not None and a.alias_info.is_write for a in schema.arguments)
    plain = any("Tensor" in kind for kind in takes) and returns == ["Tensor"]
    return plain and not changes and not any(part in name for part in _FORBIDDEN)


def _filled(x: Any, tensors: Sequence[Tensor], batch: int) -> Any:  # noqa: ANN401  JSON of any structure
    """Arguments from their JSON: tensors and the batch size in their places."""
    if isinstance(x, list):
        return [_filled(item, tensors, batch) for item in cast("list[Any]", x)]
    if not isinstance(x, dict):
        return x
    found = cast("Mapping[str, Any]", x)
    if set(found) in ({"input"}, {"condition"}):
        ((kind, place),) = found.items()
        if place >= len(tensors):
            raise ValueError(f"an argument is input {place}, there are {len(tensors)}")
        return tensors[place] if kind == "input" else tensors[place].bool()
    if set(found) == {"batch"}:
        return found["batch"] * batch
    return {key: _filled(value, tensors, batch) for key, value in found.items()}
