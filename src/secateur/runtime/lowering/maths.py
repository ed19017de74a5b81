"""Functions of single numbers, sums, products and means."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from secateur.runtime.lowering.base import (
    LOWERINGS,
    Activation,
    Lowering,
    Operand,
    Unsupported,
    dimension,
    lowers,
    number,
)

_FUNCTIONS = (
    *("relu", "relu6", "silu", "hardswish", "hardsigmoid", "sigmoid", "tanh"),
    *("exp", "log", "log1p", "sqrt", "erf", "sin", "cos"),
)


_LAST_DIGITS = 4e-7
"""How far a logarithm may be off for rounding, relative to it."""


def _function(name: str) -> None:
    def apply(low: Lowering, x: Activation) -> Activation:
        return low.activate(x, name)

    LOWERINGS[f"aten.{name}.default"] = apply


for _name in _FUNCTIONS:
    _function(_name)


@lowers("gelu.default")
def gelu(low: Lowering, x: Activation, approximate: str) -> Activation:
    """GELU, by erf or by tanh."""
    return low.activate(x, "gelu" if approximate == "none" else "gelu_tanh")


@lowers("hardtanh.default")
def hardtanh(low: Lowering, x: Activation, min_val: float, max_val: float) -> Activation:
    """Clip to a range; 0 … 6 is ReLU6."""
    return clamp(low, x, min_val, max_val)


@lowers("floor.default")
def floor(low: Lowering, x: Activation) -> Activation:
    """The next whole number below."""
    return x if low.dtype(x) == torch.int64 else low.activate(x, "floor")


@lowers("ceil.default")
def ceil(low: Lowering, x: Activation) -> Activation:
    """The next whole number above."""
    return x if low.dtype(x) == torch.int64 else neg(low, floor(low, neg(low, x)))


@lowers("round.default")
def nearest(low: Lowering, x: Activation) -> Activation:
    """The nearest whole number, of two the even one."""
    return x if low.dtype(x) == torch.int64 else low.activate(x, "round")


@lowers("clamp.default", "clamp_min.default", "clamp_max.default", "clamp_min.Tensor", "clamp_max.Tensor")
def clamp(
    low: Lowering,
    x: Activation,
    min: float | None = None,  # noqa: A002
    max: float | None = None,  # noqa: A002
) -> Activation:
    """Clip to a range that may be open at one end."""
    if low.dtype(x) == torch.int64 and not isinstance(min, float) and not isinstance(max, float):
        x = x if min is None else low.choose(low.compare("less", x, min), min, x)
        return x if max is None else low.choose(low.compare("less", max, x), max, x)
    x = low.as_activation(low.to(x, torch.float32))
    bottom = -math.inf if min is None else number(min, "lower bound")
    top = math.inf if max is None else number(max, "upper bound")
    if (bottom, top) in ((0, 6), (0, math.inf)):
        return low.activate(x, "relu6" if top == 6 else "relu")
    if (bottom, top) == (-math.inf, math.inf):
        return x
    if not (bottom < math.inf and top > -math.inf):
        raise Unsupported(f"its range is from {bottom:g} to {top:g}")
    return low.add("clip", [x], low=_open(bottom), high=_open(top))


def _open(bound: float) -> float | None:
    return None if math.isinf(bound) else float(bound)


@lowers("exp2.default")
def exponential_of_two(low: Lowering, x: Activation) -> Activation:
    """2^x."""
    return power_of(low, 2.0, x)


def _logarithm(name: str, base: float) -> None:
    def apply(low: Lowering, x: Activation) -> Activation:
        """The natural logarithm times a factor, and of a power of the base the whole number itself.

        Without that the logarithm of 8 to base 2 may be 2.9999998, and 2 after `floor`.
        """
        found = _binary(low, "mul", low.activate(x, "log"), 1 / math.log(base))
        whole = nearest(low, found)
        off, least = _binary(low, "sub", found, whole), _binary(low, "mul", whole, _LAST_DIGITS)
        # squares are in the same order as magnitudes, whatever the signs
        near = low.compare("less_equal", _binary(low, "mul", off, off), _binary(low, "mul", least, least))
        return low.choose(near, whole, found)

    LOWERINGS[f"aten.{name}.default"] = apply


_logarithm("log2", 2)
_logarithm("log10", 10)


def _binary(low: Lowering, kind: str, x: Operand, other: Operand) -> Activation:
    return low.add(kind, [x, other], activation="none")


def _scaled(low: Lowering, x: Operand, alpha: float) -> Operand:
    if alpha == 1:
        return x
    return _binary(low, "mul", x, alpha) if isinstance(x, Activation) else x * alpha


@lowers("add.Tensor", "add.Scalar")
def add(low: Lowering, x: Operand, other: Operand, alpha: float) -> Activation:
    """Sum, x + alpha · other."""
    return _binary(low, "add", x, _scaled(low, other, alpha))


@lowers("sub.Tensor", "sub.Scalar")
def sub(low: Lowering, x: Operand, other: Operand, alpha: float) -> Activation:
    """Difference, x − alpha · other."""
    return _binary(low, "sub", x, _scaled(low, other, alpha))


@lowers("rsub.Scalar", "rsub.Tensor")
def rsub(low: Lowering, x: Operand, other: Operand, alpha: float) -> Activation:
    """Difference the other way round, other − alpha · x."""
    return _binary(low, "sub", other, _scaled(low, x, alpha))


@lowers("mul.Tensor", "mul.Scalar")
def mul(low: Lowering, x: Operand, other: Operand) -> Activation:
    """Product."""
    return _binary(low, "mul", x, other)


@lowers("div.Tensor", "div.Scalar")
def div(low: Lowering, x: Operand, other: Operand) -> Activation:
    """Quotient; by a power of two it is a product, which is the same to the last bit."""
    x, other = low.to(x, torch.float32), low.to(other, torch.float32)
    if (
        isinstance(other, int | float)
        and abs(math.frexp(other)[0]) == 0.5
        and 2**-126 <= abs(other) <= 2**126
    ):
        return _binary(low, "mul", x, 1 / other)
    return _binary(low, "div", x, other)


@lowers("neg.default")
def neg(low: Lowering, x: Activation) -> Activation:
    """Change of sign."""
    return _binary(low, "mul", x, -1)


@lowers("reciprocal.default")
def reciprocal(low: Lowering, x: Activation) -> Activation:
    """1/x."""
    return div(low, 1.0, x)


@lowers("rsqrt.default")
def reciprocal_root(low: Lowering, x: Activation) -> Activation:
    """1/√x."""
    return reciprocal(low, low.activate(x, "sqrt"))


@lowers("pow.Tensor_Scalar")
def power(low: Lowering, x: Activation, exponent: float) -> Activation:
    """A power: products for whole exponents, else a root or e^(exponent · ln x)."""
    if exponent < 0:
        return reciprocal(low, power(low, x, -exponent))
    if exponent == 0.5:
        return low.activate(x, "sqrt")
    if exponent != int(exponent):
        return low.activate(_binary(low, "mul", low.activate(x, "log"), exponent), "exp")
    if exponent == 0:
        raise Unsupported("its exponent is 0")
    if exponent == 1:
        return x
    half = power(low, x, exponent // 2)
    found = _binary(low, "mul", half, half)
    return _binary(low, "mul", found, x) if exponent % 2 else found


@lowers("pow.Tensor_Tensor")
def power_by_parameter(low: Lowering, x: Activation, exponent: Operand) -> Activation:
    """A power by one constant number, such as the parameter of GeM pooling."""
    return power(low, x, number(exponent, "exponent"))


@lowers("pow.Scalar")
def power_of(low: Lowering, x: float, exponent: Activation) -> Activation:
    """A power of a number above 0."""
    if x <= 0:
        raise Unsupported(f"it is a power of {x:g}")
    return low.activate(_binary(low, "mul", low.to(exponent, torch.float32), math.log(x)), "exp")


@lowers("mean.dim")
def mean(low: Lowering, x: Activation, dim: Sequence[int] | None, keepdim: bool, dtype: object) -> Activation:
    """Mean over dimensions other than the batch."""
    dims = dim or range(len(x.shape))
    return low.add("mean", [x], dims=[dimension(d, x.shape) for d in dims], keep=keepdim)


@lowers("sum.dim_IntList")
def total(
    low: Lowering, x: Activation, dim: Sequence[int] | None, keepdim: bool, dtype: object
) -> Activation:
    """Sum over dimensions other than the batch; of whole numbers one by one."""
    dims = [dimension(d, x.shape) for d in (dim or range(len(x.shape)))]
    if low.dtype(x) != torch.float32:
        found = low.as_activation(low.to(x, torch.int64))
        for d in dims:
            sums = low.add("cumsum", [found], dim=d)
            found = low.add("slice", [sums], dim=d, start=x.shape[d] - 1, stop=x.shape[d], step=1)
        ones = [(d, 1 if d in dims else size) for d, size in enumerate(x.shape)]
        return low.reshape(found, tuple(size for d, size in ones if keepdim or d not in dims))
    return low.add("sum", [x], dims=dims, keep=keepdim)


@lowers("cumsum.default")
def cumulative(low: Lowering, x: Activation, dim: int, dtype: object) -> Activation:
    """Sums of all up to here along a dimension other than the batch; of conditions, how many hold."""
    wide = low.to(x, torch.float32 if low.dtypes[0].is_floating_point else torch.int64)
    return low.add("cumsum", [wide], dim=dimension(dim, x.shape))


@lowers("softmax.int", "_softmax.default")
def softmax(
    low: Lowering, x: Activation, dim: int, dtype: object = None, half_to_float: bool = False
) -> Activation:
    """Softmax over a dimension other than the batch."""
    return low.add("softmax", [x], dim=dimension(dim, x.shape))


@lowers("matmul.default", "bmm.default", "mm.default")
def matmul(low: Lowering, x: Operand, other: Operand = 0.0, mat2: Operand | None = None) -> Activation:
    """Matrix product; one with a constant on the right is a linear layer."""
    right = other if mat2 is None else mat2
    if isinstance(right, Tensor) and right.ndim == 2:
        return low.add_layer("linear", x, low.transposed(right), None)
    if isinstance(right, Tensor) and right.ndim == 1:
        return low.reshape(low.add_layer("linear", x, right[None], None), low.shapes[0])
    return low.add("matmul", [x, right])


@lowers("baddbmm.default")
def matmul_added(
    low: Lowering, x: Operand, batch1: Operand, batch2: Operand, beta: float, alpha: float
) -> Activation:
    """A matrix product added to something, both times a number."""
    return add(low, _scaled(low, x, beta), matmul(low, batch1, batch2), alpha)
