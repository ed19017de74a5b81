"""Normalisations without an operation of their own, made of some that have one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from secateur.runtime.lowering.base import (
    Activation,
    Lowering,
    Operand,
    Unsupported,
    dimension,
    lowers,
    optional,
)
from secateur.runtime.lowering.composed import absolute, largest
from secateur.runtime.lowering.layers import batch_norm, layer_norm
from secateur.runtime.lowering.maths import add, div, mean, mul, power, sub, total


@lowers("group_norm.default")
def group_norm(
    low: Lowering,
    input: Activation,  # noqa: A002
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    cudnn_enabled: bool,
) -> Activation:
    """LayerNorm over the pixels of a group of channels, then a scale and a shift for each channel."""
    batch, channels, *plane = input.shape
    size = math.prod(plane) * channels // num_groups
    grouped = low.reshape(input, (batch, num_groups, size))
    found = low.reshape(layer_norm(low, grouped, [size], None, None, eps, False), input.shape)
    scale, shift = optional(weight, "weight"), optional(bias, "bias")
    if scale is None and shift is None:
        return found
    names = {
        "scale": low.weight(torch.ones(channels) if scale is None else scale, "scale"),
        "shift": low.weight(torch.zeros(channels) if shift is None else shift, "shift"),
    }
    return low.add("scale_shift", [found], activation="none", **names)


@lowers("instance_norm.default")
def instance_norm(
    low: Lowering,
    input: Activation,  # noqa: A002
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Operand,
    running_var: Operand,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Activation:
    """GroupNorm with as many groups as channels; with running statistics, BatchNorm."""
    if not use_input_stats:
        return batch_norm(low, input, weight, bias, running_mean, running_var, eps)
    return group_norm(low, input, input.shape[1], weight, bias, eps, cudnn_enabled)


@lowers("rms_norm.default")
def rms_norm(
    low: Lowering,
    input: Activation,  # noqa: A002
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    eps: float | None,
) -> Activation:
    """Numbers over the root of the mean of their squares, over the last dimensions."""
    dims = range(len(input.shape) - len(normalized_shape), len(input.shape))
    squares = mean(low, mul(low, input, input), list(dims), keepdim=True, dtype=None)
    least = torch.finfo(torch.float32).eps if eps is None else eps
    found = div(low, input, low.activate(add(low, squares, least, 1), "sqrt"))
    return found if weight is None else mul(low, found, weight)


@lowers("linalg_vector_norm.default")
def vector_norm(
    low: Lowering,
    x: Activation,
    ord: float,  # noqa: A002
    dim: Sequence[int] | None,
    keepdim: bool,
    dtype: object,
) -> Activation:
    """Norm of an order above 0 along dimensions other than the batch."""
    if ord == 2:
        return low.activate(total(low, mul(low, x, x), dim, keepdim, dtype), "sqrt")
    magnitudes = absolute(low, x)
    if ord == math.inf:
        return largest(low, magnitudes, dim, keepdim)
    if ord <= 0:
        raise Unsupported(f"its norm is of order {ord:g}")
    return power(low, total(low, power(low, magnitudes, ord), dim, keepdim, dtype), 1 / ord)


@lowers("var.dim")
def variance(
    low: Lowering, x: Activation, dim: Sequence[int] | None, unbiased: bool, keepdim: bool
) -> Activation:
    """Variance along dimensions other than the batch, divided by n − 1 or by n."""
    return corrected_variance(low, x, dim, float(unbiased), keepdim)


@lowers("var.correction")
def corrected_variance(
    low: Lowering, x: Activation, dim: Sequence[int] | None, correction: float | None, keepdim: bool
) -> Activation:
    """Mean of the squared distances from the mean, times n/(n − correction)."""
    dims = [dimension(d, x.shape) for d in (dim or range(len(x.shape)))]
    size = math.prod(x.shape[d] for d in dims)
    less = 1.0 if correction is None else float(correction)
    if size <= less:
        raise Unsupported(f"it is taken of {size} numbers with a correction of {less:g}")
    apart = sub(low, x, mean(low, x, dims, keepdim=True, dtype=None), 1)
    found = mean(low, mul(low, apart, apart), dims, keepdim=keepdim, dtype=None)
    return mul(low, found, size / (size - less))


@lowers("std.dim")
def deviation(
    low: Lowering, x: Activation, dim: Sequence[int] | None, unbiased: bool, keepdim: bool
) -> Activation:
    """Root of the variance."""
    return low.activate(variance(low, x, dim, unbiased, keepdim), "sqrt")


@lowers("std.correction")
def corrected_deviation(
    low: Lowering, x: Activation, dim: Sequence[int] | None, correction: float | None, keepdim: bool
) -> Activation:
    """Root of the variance with a correction."""
    return low.activate(corrected_variance(low, x, dim, correction, keepdim), "sqrt")


@lowers("var_mean.correction")
def variance_and_mean(
    low: Lowering, x: Activation, dim: Sequence[int] | None, correction: float | None, keepdim: bool
) -> list[Activation]:
    """Variance with a correction, and the mean; what is not used drops out of the plan."""
    return [corrected_variance(low, x, dim, correction, keepdim), mean(low, x, dim, keepdim, None)]


@lowers("std_mean.correction")
def deviation_and_mean(
    low: Lowering, x: Activation, dim: Sequence[int] | None, correction: float | None, keepdim: bool
) -> list[Activation]:
    """Root of the variance, and the mean."""
    return [corrected_deviation(low, x, dim, correction, keepdim), mean(low, x, dim, keepdim, None)]
