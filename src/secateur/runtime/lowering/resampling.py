"""Operators that change the number of pixels: shuffles, interpolation, transposed convolutions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from secateur.runtime.lowering.base import Activation, Lowering, constant, lowers, optional, pair
from secateur.runtime.lowering.layers import padded_conv
from secateur.runtime.lowering.views import permuted, repeated, sliced


@lowers("channel_shuffle.default", "native_channel_shuffle.default")
def channel_shuffle(low: Lowering, x: Activation, groups: int) -> Activation:
    """First channels of all groups, then the second ones, and so on."""
    batch, channels, *plane = x.shape
    apart = low.reshape(x, (batch, groups, channels // groups, *plane))
    return low.reshape(permuted(low, apart, [0, 2, 1, *range(3, len(apart.shape))]), x.shape)


@lowers("pixel_shuffle.default")
def pixel_shuffle(low: Lowering, x: Activation, upscale_factor: int) -> Activation:
    """Channels to pixels."""
    return _interleaved(low, x, [upscale_factor, upscale_factor])


def _interleaved(low: Lowering, x: Activation, factors: Sequence[int]) -> Activation:
    """(N, C · r · s, H, W) as (N, C, H · r, W · s)."""
    batch, channels, height, width = x.shape
    r, s = factors
    kept = channels // (r * s)
    apart = low.reshape(x, (batch, kept, r, s, height, width))
    return low.reshape(permuted(low, apart, [0, 1, 4, 2, 5, 3]), (batch, kept, height * r, width * s))


@lowers("pixel_unshuffle.default")
def pixel_unshuffle(low: Lowering, x: Activation, downscale_factor: int) -> Activation:
    """Pixels to channels."""
    batch, channels, height, width = x.shape
    r = downscale_factor
    apart = low.reshape(x, (batch, channels, height // r, r, width // r, r))
    return low.reshape(
        permuted(low, apart, [0, 1, 3, 5, 2, 4]), (batch, channels * r * r, height // r, width // r)
    )


@lowers("im2col.default")
def image_windows(
    low: Lowering,
    x: Activation,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> Activation:
    """Windows of an image as columns: a convolution with an output for each place of a window."""
    places, edges, channels = _places(kernel_size, x.shape[1]), [(p, p) for p in padding], x.shape[1]
    found = padded_conv(low, x, places, None, edges=edges, stride=stride, dilation=dilation, groups=channels)
    return low.reshape(found, low.shapes[0])


@lowers("col2im.default")
def image_of_windows(
    low: Lowering,
    x: Activation,
    output_size: Sequence[int],
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> Activation:
    """Columns added up where they belong: the transposed convolution."""
    sizes = zip(output_size, kernel_size, dilation, padding, stride, strict=True)
    plane = [(size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, d, p, s in sizes]
    columns = low.reshape(x, (*x.shape[:2], *plane))
    groups = x.shape[1] // math.prod(kernel_size)
    places = _places(kernel_size, groups)
    return conv_transpose(low, columns, places, None, stride, padding, (), groups, dilation)


def _places(kernel_size: Sequence[int], channels: int) -> Tensor:
    """Weights that take one place of a window each, (channels · kh · kw, 1, kh, kw)."""
    n = math.prod(kernel_size)
    return torch.eye(n).reshape(n, 1, *kernel_size).repeat(channels, 1, 1, 1)


@lowers("upsample_nearest1d.vec", "upsample_nearest2d.vec")
def upsample_nearest(low: Lowering, input: Activation, **options: object) -> Activation:  # noqa: A002
    """The nearest pixel; each repeated, if there are so many times as many."""
    plane, wanted = input.shape[2:], low.shapes[0][2:]
    if any(more % size for more, size in zip(wanted, plane, strict=True)):
        return _interpolated(low, input, "nearest", options)
    sizes = enumerate(zip(plane, wanted, strict=True), 2)
    return repeated(low, input, {dim: more // size for dim, (size, more) in sizes})


def _interpolates(operator: str, mode: str) -> None:
    def apply(low: Lowering, input: Activation, **options: object) -> Activation:  # noqa: A002
        return _interpolated(low, input, mode, options)

    lowers(operator)(apply)


for _operator, _mode in (
    ("_upsample_nearest_exact1d.vec", "nearest-exact"),
    ("_upsample_nearest_exact2d.vec", "nearest-exact"),
    ("upsample_linear1d.vec", "bilinear"),
    ("upsample_bilinear2d.vec", "bilinear"),
    ("upsample_bicubic2d.vec", "bicubic"),
):
    _interpolates(_operator, _mode)


def _interpolated(low: Lowering, x: Activation, mode: str, options: dict[str, object]) -> Activation:
    """Interpolation is linear, and one dimension after the other: two products with constant matrices."""
    wanted = low.shapes[0][2:]
    factors = options.get("scale_factors") or [None] * len(wanted)
    aligned = options.get("align_corners")
    for dim in range(len(x.shape) - 1, 1, -1):
        size, more, factor = x.shape[dim], wanted[dim - 2], factors[dim - 2]  # pyright: ignore
        if size == more:
            continue
        matrix = _matrix(size, more, factor, mode, aligned)
        order = [*(d for d in range(len(x.shape)) if d != dim), dim]
        back = [order.index(d) for d in range(len(order))]
        x = permuted(low, low.add_layer("linear", permuted(low, x, order), matrix, None), back)
    return x


def _matrix(size: int, wanted: int, factor: float | None, mode: str, aligned: object) -> Tensor:
    """What torch makes of each of `size` pixels alone, as rows of `wanted` new pixels."""
    alone = torch.eye(size).reshape(size, 1, 1, size)
    corners = {} if aligned is None else {"align_corners": bool(aligned)}
    given = {"size": (1, wanted)} if factor is None else {"scale_factor": (1.0, factor)}
    found = torch.nn.functional.interpolate(alone, mode=mode, **given, **corners)
    return found.reshape(size, wanted).t()


@lowers("conv_transpose1d.default", "conv_transpose2d.input")
def conv_transpose(
    low: Lowering,
    input: Activation,  # noqa: A002
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    groups: int,
    dilation: Sequence[int],
) -> Activation:
    """A convolution with as many outputs as its stride gives phases, whose channels are then made pixels.

    Along one dimension, output pixel Y sums up weight k times input pixel x wherever s · x + d · k = Y + p.
    For Y + p = s · m + r these are the weights with d · k ≡ r (mod s), and x = m − (d · k − r)/s: for each
    phase r a convolution of stride 1. So each weight is in one phase, and zeros stay zeros.
    """
    x, shape = input, low.shapes[0]
    weight, bias = constant(weight, "weight"), optional(bias, "bias")
    if weight.ndim == 3:  # one row of pixels
        x, weight = low.row_as_image(x), weight[:, :, None]
        stride, padding, dilation = [1, *stride], [0, *padding], [1, *dilation]
    steps, cut, apart = pair(stride), pair(padding), pair(dilation)
    wanted = (1, shape[2]) if len(shape) == 3 else shape[2:]
    phases = _phases(weight, steps, apart, groups)
    edges = []
    for size, more, taps, s, p in zip(x.shape[2:], wanted, phases.shape[2:], steps, cut, strict=True):
        edges.append((taps - 1 - p // s, (more - 1 + p) // s + 1 - size))
    biases = None if bias is None else bias.repeat_interleave(math.prod(steps))
    found = padded_conv(low, x, phases, biases, edges=edges, groups=groups)
    found = _interleaved(low, found, steps)
    for dim, (more, s, p) in enumerate(zip(wanted, steps, cut, strict=True), 2):
        found = sliced(low, found, dim, p % s, p % s + more)
    return low.reshape(found, shape)


def _phases(weight: Tensor, stride: Sequence[int], dilation: Sequence[int], groups: int) -> Tensor:
    """The weight (I, O/groups, kh, kw) as (O · s_h · s_w, I/groups, …) of the convolution in its place."""
    n_in, n_each, *kernel = weight.shape
    last = [d * (k - 1) // s for d, k, s in zip(dilation, kernel, stride, strict=True)]
    grouped = weight.reshape(groups, n_in // groups, n_each, *kernel).transpose(1, 2)
    phases = weight.new_zeros(groups, n_each, *stride, n_in // groups, *(t + 1 for t in last))
    for i, j in itertools.product(*map(range, kernel)):
        (down, r), (right, s) = divmod(dilation[0] * i, stride[0]), divmod(dilation[1] * j, stride[1])
        phases[:, :, r, s, :, last[0] - down, last[1] - right] = grouped[..., i, j]
    return phases.flatten(0, 3)
