"""Operators without an operation of their own, which are made of some that have one."""

from __future__ import annotations

import math

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
    optional,
)
from secateur.runtime.lowering.layers import layer_norm
from secateur.runtime.lowering.maths import add, clamp, mul, power, sub
from secateur.runtime.lowering.views import permuted, sliced


@lowers("square.default")
def square(low: Lowering, x: Activation) -> Activation:
    """x²."""
    return power(low, x, 2)


@lowers("abs.default")
def absolute(low: Lowering, x: Activation) -> Activation:
    """|x|, what is above zero less what is below."""
    return sub(low, low.activate(x, "relu"), clamp(low, x, max=0.0), 1)


@lowers("leaky_relu.default")
def leaky_relu(low: Lowering, x: Activation, negative_slope: Operand) -> Activation:
    """What is above zero, and a part of what is below."""
    return add(low, low.activate(x, "relu"), mul(low, clamp(low, x, max=0.0), negative_slope), 1)


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


@lowers("channel_shuffle.default", "native_channel_shuffle.default")
def channel_shuffle(low: Lowering, x: Activation, groups: int) -> Activation:
    """First channels of all groups, then the second ones, and so on."""
    batch, channels, *plane = x.shape
    apart = low.reshape(x, (batch, groups, channels // groups, *plane))
    return low.reshape(permuted(low, apart, [0, 2, 1, *range(3, len(apart.shape))]), x.shape)


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
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Activation:
    """GroupNorm with as many groups as channels."""
    if not use_input_stats:
        raise Unsupported("with running statistics it is")
    return group_norm(low, input, input.shape[1], weight, bias, eps, cudnn_enabled)
