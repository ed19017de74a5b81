"""Functions without an operation of their own, which are made of some that have one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from secateur.runtime.lowering.base import (
    Activation,
    Lowering,
    Operand,
    Unsupported,
    constant,
    dimension,
    lowers,
)
from secateur.runtime.lowering.maths import add, ceil, clamp, div, floor, mul, neg, power, rsub, sub, total
from secateur.runtime.lowering.views import broadcast, joined, permuted, sliced

_LARGEST = torch.finfo(torch.float32).max
_EXACT_THRESHOLD = 16.0
"""From here on ln(1 + e^x) and x are the same in float32."""


@lowers("square.default")
def square(low: Lowering, x: Activation) -> Activation:
    """x²."""
    return power(low, x, 2)


@lowers("abs.default")
def absolute(low: Lowering, x: Activation) -> Activation:
    """|x|, what is above zero less what is below."""
    if low.dtype(x) == torch.int64:
        return low.choose(low.compare("less", x, 0), neg(low, x), x)
    return sub(low, low.activate(x, "relu"), clamp(low, x, max=0.0), 1)


@lowers("sign.default")
def sign(low: Lowering, x: Activation) -> Activation:
    """1 above zero, −1 below, 0 at zero and of NaN."""
    above, below = low.compare("less", 0, x), low.compare("less", x, 0)
    wanted = low.dtype(x)
    return sub(low, low.to(above, wanted), low.to(below, wanted), 1)


@lowers("trunc.default")
def towards_zero(low: Lowering, x: Activation) -> Activation:
    """The whole part."""
    return low.choose(low.compare("less", x, 0.0), ceil(low, x), floor(low, x))


@lowers("leaky_relu.default")
def leaky_relu(low: Lowering, x: Activation, negative_slope: Operand) -> Activation:
    """What is above zero, and a part of what is below."""
    return add(low, low.activate(x, "relu"), mul(low, clamp(low, x, max=0.0), negative_slope), 1)


@lowers("rrelu_with_noise_functional.default")
def rrelu(low: Lowering, x: Activation, lower: float, upper: float, **_: object) -> list[Activation]:
    """In eval mode a leaky ReLU of the mean slope."""
    return [leaky_relu(low, x, (lower + upper) / 2)]


@lowers("prelu.default")
def prelu(low: Lowering, x: Activation, weight: Tensor) -> Activation:
    """The same with one slope, or one for each channel."""
    return leaky_relu(low, x, constant(weight, "slope").reshape(-1, *(1 for _ in x.shape[2:])))


@lowers("glu.default")
def glu(low: Lowering, x: Activation, dim: int) -> Activation:
    """One half of a dimension times the sigmoid of the other."""
    dim = dimension(dim, x.shape)
    size = x.shape[dim]
    first, second = sliced(low, x, dim, 0, size // 2), sliced(low, x, dim, size // 2, size)
    return mul(low, first, low.activate(second, "sigmoid"))


@lowers("elu.default")
def elu(
    low: Lowering, x: Activation, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0
) -> Activation:
    """What is above zero, and alpha · (e^(input_scale · x) − 1) for what is below, both times scale.

    e^y − 1 as 2t/(1 − t), t = tanh(y/2), which does not cancel where y is small.
    """
    t = low.activate(mul(low, clamp(low, x, max=0.0), input_scale / 2), "tanh")
    below = mul(low, div(low, t, rsub(low, t, 1.0, 1)), 2 * alpha * scale)
    return add(low, mul(low, low.activate(x, "relu"), scale), below, 1)


@lowers("celu.default")
def celu(low: Lowering, x: Activation, alpha: float) -> Activation:
    """ELU whose slope is 1 on both sides of zero."""
    return elu(low, x, alpha, 1.0, 1 / alpha)


@lowers("selu.default")
def selu(low: Lowering, x: Activation) -> Activation:
    """ELU with the two numbers of https://arxiv.org/abs/1706.02515."""
    return elu(low, x, 1.6732632423543772, 1.0507009873554805)


@lowers("softplus.default")
def softplus(low: Lowering, x: Activation, beta: float = 1.0, threshold: float = 20.0) -> Activation:
    """ln(1 + e^(βx))/β, as what is above zero and ln(1 + e^−|βx|)/β.

    Past its threshold torch returns x, which differs from this by less than the last digit if that is high.
    """
    if threshold < _EXACT_THRESHOLD:
        raise Unsupported(f"its threshold must be at least {_EXACT_THRESHOLD:g}, not {threshold:g}")
    e = low.activate(mul(low, absolute(low, x), -beta), "exp")
    rest = mul(low, low.activate(e, "log1p"), 1 / beta)
    return add(low, low.activate(x, "relu"), rest, 1)


@lowers("log_sigmoid.default")
def log_sigmoid(low: Lowering, x: Activation) -> Activation:
    """Logarithm of the sigmoid."""
    return neg(low, softplus(low, neg(low, x)))


@lowers("mish.default")
def mish(low: Lowering, x: Activation) -> Activation:
    """Mish, x · tanh(softplus(x)), which is x · σ(x) · (1 + q)/(1 + q²) with q = σ(−x)."""
    q = low.activate(neg(low, x), "sigmoid")
    part = div(low, add(low, q, 1.0, 1), add(low, mul(low, q, q), 1.0, 1))
    return mul(low, low.activate(x, "silu"), part)


@lowers("amax.default")
def largest(low: Lowering, x: Activation, dim: Sequence[int] | None, keepdim: bool) -> Activation:
    """Largest number along dimensions other than the batch: a pool over all of them."""
    if low.dtype(x) == torch.int64:
        return _winner(maximum, low, x, dim, keepdim=keepdim)
    dims = [dimension(d, x.shape) for d in (dim or range(len(x.shape)))]
    left = [d for d in range(len(x.shape)) if d not in dims]
    kept = sorted(left, key=lambda d: x.shape[d] > 0)  # the batch goes first, as a pool wants it
    if x.shape[kept[0]] > 0:
        raise Unsupported("it has no dimension for the batch")
    batch, *sizes = (x.shape[d] for d in kept)
    n = math.prod(x.shape[d] for d in dims)
    rows = low.reshape(permuted(low, x, [*kept, *dims]), (batch, math.prod(sizes), 1, n))
    found = low.add("max_pool", [rows], kernel=[1, n], stride=[1, n], padding=[0] * 4)
    if kept != left:
        found = permuted(low, low.reshape(found, (batch, *sizes)), [kept.index(d) for d in left])
    ones = [1 if d in dims else size for d, size in enumerate(x.shape)]
    return low.reshape(found, tuple(ones if keepdim else (x.shape[d] for d in left)))


@lowers("amin.default")
def smallest(low: Lowering, x: Activation, dim: Sequence[int] | None, keepdim: bool) -> Activation:
    """Smallest number along dimensions other than the batch."""
    if low.dtype(x) == torch.int64:
        return _winner(minimum, low, x, dim, keepdim=keepdim)
    return neg(low, largest(low, neg(low, x), dim, keepdim))


def _winner(
    better: Callable[..., Activation],
    low: Lowering,
    x: Activation,
    dim: Sequence[int] | None,
    *,
    keepdim: bool,
) -> Activation:
    """Of whole numbers the one that is better than the others along dimensions, found in rounds of pairs."""
    dims = [dimension(d, x.shape) for d in (dim or range(len(x.shape)))]
    for d in dims:
        while (size := x.shape[d]) > 1:
            half = size // 2
            parts = [sliced(low, x, d, start, start + half) for start in (0, half)]
            winners = [better(low, *parts), *([sliced(low, x, d, size - 1, size)] if size % 2 else [])]
            x = joined(low, winners, d)
    return x if keepdim else low.reshape(x, tuple(n for d, n in enumerate(x.shape) if d not in dims))


@lowers("maximum.default")
def maximum(low: Lowering, x: Operand, other: Operand) -> Activation:
    """The larger of two numbers, place by place: a pool over both, or of whole numbers a choice."""
    if low.is_whole(x, other):
        return low.choose(low.compare("less", x, other), other, x)
    return largest_of(low, [broadcast(low, a, low.shapes[0]) for a in (x, other)])


def largest_of(low: Lowering, several: Sequence[Activation]) -> Activation:
    """The largest of several numbers, place by place: a pool over all."""
    apart = [low.reshape(x, (x.shape[0], 1, *x.shape[1:])) for x in several]
    return largest(low, joined(low, apart, 1), [1], keepdim=False)


@lowers("minimum.default")
def minimum(low: Lowering, x: Operand, other: Operand) -> Activation:
    """The smaller of two numbers, place by place."""
    if low.is_whole(x, other):
        return low.choose(low.compare("less", x, other), x, other)
    return neg(low, maximum(low, mul(low, x, -1.0), mul(low, other, -1.0)))


@lowers("clamp.Tensor")
def clamp_each(low: Lowering, x: Operand, **bounds: Operand | None) -> Activation:
    """Clip to a range of its own in each place."""
    least, most = bounds["min"], bounds["max"]
    x = x if least is None else maximum(low, x, least)
    return low.as_activation(x if most is None else minimum(low, x, most))


@lowers("logsumexp.default")
def log_sum_exp(low: Lowering, x: Activation, dim: Sequence[int], keepdim: bool) -> Activation:
    """Logarithm of the sum of powers of e, the largest taken out first, or the finite one next to it."""
    most = clamp(low, largest(low, x, dim, keepdim=True), -_LARGEST, _LARGEST)
    powers = low.activate(sub(low, x, most, 1), "exp")
    found = add(low, low.activate(total(low, powers, dim, keepdim=True, dtype=None), "log"), most, 1)
    return found if keepdim else low.reshape(found, low.shapes[0])


@lowers("log_softmax.int", "_log_softmax.default")
def log_softmax(
    low: Lowering, x: Activation, dim: int, dtype: object = None, half_to_float: bool = False
) -> Activation:
    """Logarithm of the softmax over a dimension other than the batch."""
    return sub(low, x, log_sum_exp(low, x, [dim], keepdim=True), 1)
