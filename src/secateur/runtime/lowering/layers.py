"""Layers with weights, and attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from secateur.runtime.lowering.base import (
    Activation,
    Lowering,
    Operand,
    Unsupported,
    constant,
    lowers,
    number,
    optional,
    pair,
)
from secateur.runtime.lowering.views import pad, repeat_interleave


@lowers("conv2d.default", "conv2d.padding", "conv1d.default", "conv1d.padding")
def conv(
    low: Lowering,
    input: Operand,  # noqa: A002  the name in torch's schema, as in all of these functions
    weight: Operand,
    bias: Operand | None,
    stride: Sequence[int],
    padding: Sequence[int] | str,
    dilation: Sequence[int],
    groups: int,
) -> Activation:
    """Convolution in one or two dimensions; the first is a second with one row."""
    x, weight = low.as_activation(input), constant(weight, "weight")
    bias = optional(bias, "bias")
    if x.shape[0] > 0 and len(x.shape) != weight.ndim:
        raise Unsupported("its input has no batch dimension")
    if weight.ndim == 3:
        image = low.row_as_image(x)
        row = padding if isinstance(padding, str) else [0, *padding]
        found = conv(low, image, weight[:, :, None], bias, [1, *stride], row, [1, *dilation], groups)
        return low.reshape(found, (*found.shape[:2], found.shape[3]))
    edges = _padding(padding, weight, pair(dilation))
    steps, apart = pair(stride), pair(dilation)
    return padded_conv(low, x, weight, bias, edges=edges, stride=steps, dilation=apart, groups=groups)


def padded_conv(
    low: Lowering,
    x: Activation,
    weight: Tensor,
    bias: Tensor | None,
    *,
    edges: Sequence[tuple[int, int]],
    stride: Sequence[int] = (1, 1),
    dilation: Sequence[int] = (1, 1),
    groups: int,
) -> Activation:
    """A convolution with any padding before and after the rows and the columns; less than 0 cuts off."""
    reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    if any(min(pads) < 0 or max(pads) > most for pads, most in zip(edges, reach, strict=True)):
        x = pad(low, x, [n for pads in reversed(edges) for n in pads])
        edges = [(0, 0), (0, 0)]
    (top, bottom), (left, right) = edges
    return low.add_layer(
        "conv",
        x,
        weight,
        bias,
        stride=list(stride),
        padding=[top, left, bottom, right],
        dilation=list(dilation),
        groups=groups,
    )


def _padding(padding: Sequence[int] | str, weight: Tensor, dilation: Sequence[int]) -> list[tuple[int, int]]:
    """Padding before and after the rows, and the columns."""
    if padding == "valid":
        return [(0, 0), (0, 0)]
    if isinstance(padding, str):
        total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        return [(t // 2, t - t // 2) for t in total]
    return [(p, p) for p in pair([int(p) for p in padding])]


@lowers("linear.default")
def linear(low: Lowering, input: Operand, weight: Operand, bias: Operand | None) -> Activation:  # noqa: A002
    """Linear layer over the last dimension."""
    return low.add_layer("linear", input, constant(weight, "weight"), optional(bias, "bias"))


@lowers("addmm.default")
def addmm(low: Lowering, x: Operand, mat1: Operand, mat2: Operand, beta: float, alpha: float) -> Activation:
    """A linear layer written as bias + input · weight."""
    weight, bias = constant(mat2, "second matrix"), constant(x, "bias")
    if beta != 1 or alpha != 1 or bias.ndim != 1:
        raise Unsupported("it is more than a bias for each output + input · weight")
    n = weight.shape[1]
    return low.add_layer("linear", mat1, low.transposed(weight), bias if len(bias) == n else bias.expand(n))


@lowers("batch_norm.default")
def batch_norm(
    low: Lowering,
    input: Operand,  # noqa: A002
    weight: Operand | None,
    bias: Operand | None,
    running_mean: Operand,
    running_var: Operand,
    eps: float,
    **_: object,
) -> Activation:
    """BatchNorm with running statistics: a scale and a shift for each channel."""
    mean = constant(running_mean, "mean").double()
    scale = 1 / torch.sqrt(constant(running_var, "variance").double() + eps)
    if weight is not None:
        scale = scale * constant(weight, "weight").double()
    shift = -mean * scale
    if bias is not None:
        shift = shift + constant(bias, "bias").double()
    names = {"scale": low.weight(scale, "scale"), "shift": low.weight(shift, "shift")}
    return low.add("scale_shift", [input], activation="none", **names)


@lowers("_native_batch_norm_legit_no_training.default")
def batch_norm_with_statistics(low: Lowering, **arguments: Any) -> list[Activation]:  # noqa: ANN401
    """The same with more results, of which nothing can be used."""
    return [batch_norm(low, **arguments)]


@lowers("layer_norm.default")
def layer_norm(
    low: Lowering,
    input: Operand,  # noqa: A002
    normalized_shape: Sequence[int],
    weight: Operand | None,
    bias: Operand | None,
    eps: float,
    cudnn_enable: bool,
) -> Activation:
    """LayerNorm over the last dimensions."""
    tensors = {"scale": optional(weight, "weight"), "shift": optional(bias, "bias")}
    names = {role: None if t is None else low.weight(t, role) for role, t in tensors.items()}
    return low.add("layer_norm", [input], n_dims=len(normalized_shape), eps=float(eps), **names)


@lowers("embedding.default")
def embedding(
    low: Lowering, weight: Operand, indices: Operand, padding_idx: int, scale_grad_by_freq: bool, sparse: bool
) -> Activation:
    """Rows of a table."""
    return low.add("embedding", [indices], weight=low.weight(constant(weight, "table"), "weight"))


@lowers("scaled_dot_product_attention.default")
def attention(
    low: Lowering,
    query: Operand,
    key: Operand,
    value: Operand,
    attn_mask: Operand | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> Activation:
    """Attention; a mask of True and False becomes one of 0 and −∞."""
    if dropout_p:
        raise Unsupported("it drops out at random; put the model in eval mode")
    q = low.as_activation(query)
    factor = q.shape[-1] ** -0.5 if scale is None else number(scale, "scale")
    inputs: list[Operand] = [q, key, value]
    if enable_gqa:
        shared = [low.as_activation(x) for x in (key, value)]
        inputs = [q, *(repeat_interleave(low, x, q.shape[-3] // x.shape[-3], -3, None) for x in shared)]
    if isinstance(attn_mask, Activation):
        attn_mask = low.filled.get(attn_mask.value, attn_mask)
    if isinstance(attn_mask, Tensor) and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros(attn_mask.shape).masked_fill(~attn_mask, float("-inf"))
    if isinstance(attn_mask, Activation) and attn_mask.is_condition:
        attn_mask = low.choose(attn_mask, 0.0, float("-inf"))
    if attn_mask is not None:
        inputs.append(attn_mask)
    return low.add("attention", inputs, factor=float(factor), causal=is_causal)
