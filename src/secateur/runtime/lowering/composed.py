"""Operators without an operation of their own, which are made of some that have one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from secateur.runtime.lowering.base import (
    LARGEST,
    Activation,
    Lowering,
    Operand,
    Unsupported,
    constant,
    dimension,
    lowers,
    optional,
)


@lowers("square.default")
def square(low: Lowering, x: Activation) -> Activation:
    """x²."""
    return low.add("mul", [x, x], activation="none")


@lowers("abs.default")
def absolute(low: Lowering, x: Activation) -> Activation:
    """|x|, what is above zero less what is below."""
    return low.add("sub", [low.activate(x, "relu"), _below(low, x)], activation="none")


@lowers("leaky_relu.default")
def leaky_relu(low: Lowering, x: Activation, negative_slope: float) -> Activation:
    """What is above zero, and a part of what is below."""
    return _leaky(low, x, negative_slope)


@lowers("prelu.default")
def prelu(low: Lowering, x: Activation, weight: Tensor) -> Activation:
    """The same with one slope, or one for each channel."""
    slope = constant(weight, "slope").reshape(-1, *(1 for _ in x.shape[2:]))
    return _leaky(low, x, slope)


def _leaky(low: Lowering, x: Activation, slope: Operand) -> Activation:
    part = low.add("mul", [_below(low, x), slope], activation="none")
    return low.add("add", [low.activate(x, "relu"), part], activation="none")


def _below(low: Lowering, x: Activation) -> Activation:
    return low.add("clip", [x], low=-LARGEST, high=0.0)


@lowers("glu.default")
def glu(low: Lowering, x: Activation, dim: int) -> Activation:
    """One half of a dimension times the sigmoid of the other."""
    dim = dimension(dim, x.shape)
    half = x.shape[dim] // 2
    first, second = (
        low.add("slice", [x], dim=dim, start=start, stop=start + half, step=1) for start in (0, half)
    )
    return low.add("mul", [first, low.activate(second, "sigmoid")], activation="none")


@lowers("channel_shuffle.default", "native_channel_shuffle.default")
def channel_shuffle(low: Lowering, x: Activation, groups: int) -> Activation:
    """First channels of all groups, then the second ones, and so on."""
    batch, channels, *plane = x.shape
    apart = low.reshape(x, (batch, groups, channels // groups, *plane))
    order = [0, 2, 1, *range(3, len(apart.shape))]
    return low.reshape(low.add("permute", [apart], dims=order), x.shape)


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
    normal = low.add("layer_norm", [grouped], n_dims=1, eps=float(eps), scale=None, shift=None)
    found = low.reshape(normal, input.shape)
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
