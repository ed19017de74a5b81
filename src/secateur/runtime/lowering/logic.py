"""Conditions: comparisons, what joins them, and what they choose.

A condition is a value of floats, 1 where it holds and 0 where not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from secateur.runtime.lowering.base import (
    LOWERINGS,
    Activation,
    Lowering,
    Operand,
    Unsupported,
    lowers,
)
from secateur.runtime.lowering.composed import absolute, largest, smallest
from secateur.runtime.lowering.maths import mul


def _comparison(name: str, kind: str, *, turned: bool) -> None:
    def apply(low: Lowering, x: Operand, other: Operand) -> Activation:
        return low.compare(kind, *((other, x) if turned else (x, other)))

    for overload in ("Tensor", "Scalar"):
        LOWERINGS[f"aten.{name}.{overload}"] = apply


for _name, _kind, _turned in (
    ("eq", "equal", False),
    ("lt", "less", False),
    ("le", "less_equal", False),
    ("gt", "less", True),
    ("ge", "less_equal", True),
):
    _comparison(_name, _kind, turned=_turned)


@lowers("ne.Tensor", "ne.Scalar")
def differ(low: Lowering, x: Operand, other: Operand) -> Activation:
    """Whether two numbers differ; NaN differs from itself."""
    return negation(low, low.compare("equal", x, other))


@lowers("isnan.default")
def is_nan(low: Lowering, x: Activation) -> Activation:
    """Whether it is no number, and so differs from itself."""
    return differ(low, x, x)


@lowers("isinf.default")
def is_infinite(low: Lowering, x: Activation) -> Activation:
    """Whether it is ∞ or −∞."""
    return low.compare("equal", absolute(low, x), math.inf)


@lowers("logical_not.default")
def negation(low: Lowering, x: Operand) -> Activation:
    """Where it is not so."""
    return low.compare("equal", low.to(x, torch.bool), False)


@lowers("logical_and.default")
def both(low: Lowering, x: Operand, other: Operand) -> Activation:
    """Where both hold."""
    return mul(low, low.to(x, torch.bool), low.to(other, torch.bool))


@lowers("logical_or.default")
def either(low: Lowering, x: Operand, other: Operand) -> Activation:
    """Where one holds, or both: where not both of the opposites do."""
    return negation(low, both(low, negation(low, x), negation(low, other)))


@lowers("logical_xor.default")
def only_one(low: Lowering, x: Operand, other: Operand) -> Activation:
    """Where one holds and the other does not."""
    return differ(low, low.to(x, torch.bool), low.to(other, torch.bool))


def _bitwise(function: Callable[..., Activation], *names: str) -> None:
    def apply(low: Lowering, **operands: Operand) -> Activation:
        if low.dtypes[0] != torch.bool:
            raise Unsupported("it works on the bits of whole numbers")
        return function(low, **operands)

    for name in names:
        LOWERINGS[f"aten.{name}"] = apply


_bitwise(negation, "bitwise_not.default")
_bitwise(both, "bitwise_and.Tensor", "__and__.Tensor", "bitwise_and.Scalar")
_bitwise(either, "bitwise_or.Tensor", "__or__.Tensor", "bitwise_or.Scalar")
_bitwise(only_one, "bitwise_xor.Tensor", "__xor__.Tensor", "bitwise_xor.Scalar")


@lowers("any.dim", "any.dims")
def any_holds(low: Lowering, x: Activation, dim: int | Sequence[int] | None, keepdim: bool) -> Activation:
    """Whether one holds along dimensions other than the batch."""
    return _over(largest, low, x, dim, keepdim=keepdim)


@lowers("all.dim", "all.dims")
def all_hold(low: Lowering, x: Activation, dim: int | Sequence[int] | None, keepdim: bool) -> Activation:
    """Whether all hold along dimensions other than the batch."""
    return _over(smallest, low, x, dim, keepdim=keepdim)


def _over(
    extreme: Callable[..., Activation],
    low: Lowering,
    x: Activation,
    dim: int | Sequence[int] | None,
    *,
    keepdim: bool,
) -> Activation:
    dims = [dim] if isinstance(dim, int) else dim
    numbers = low.to(low.to(x, torch.bool), torch.float32)
    return replace(extreme(low, numbers, dims, keepdim), is_condition=True)


@lowers("masked_fill.Scalar", "masked_fill.Tensor")
def masked_fill(low: Lowering, x: Operand, mask: Operand, value: Operand) -> Activation:
    """One number where a mask holds."""
    return low.choose(mask, value, x)


@lowers("where.self", "where.ScalarSelf", "where.ScalarOther", "where.Scalar")
def where(low: Lowering, condition: Operand, x: Operand, other: Operand) -> Activation:
    """One operand where a condition holds, and another in the rest."""
    return low.choose(condition, x, other)
