"""Maxima and means of windows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch

from secateur.runtime.lowering.base import Activation, Lowering, Unsupported, lowers, pair
from secateur.runtime.lowering.composed import largest, largest_of
from secateur.runtime.lowering.maths import mul
from secateur.runtime.lowering.views import broadcast, joined, pad, repeated, sliced


@lowers("max_pool2d.default", "max_pool1d.default")
def max_pool(
    low: Lowering,
    x: Activation,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> Activation:
    """Maximum of windows."""
    if any(d != 1 for d in dilation):
        return _dilated_max_pool(low, x, kernel_size, stride, padding, dilation)
    return _pool(low, "max_pool", x, kernel_size, stride, padding)


@lowers("max_pool2d_with_indices.default")
def max_pool_with_places(
    low: Lowering,
    x: Activation,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> list[Activation]:
    """Maximum of windows; and its place, counted over the image, where they lie side by side."""
    maxima = max_pool(low, x, kernel_size, stride, padding, dilation, ceil_mode)
    kernel, (rows, columns) = pair(kernel_size), low.shapes[0][2:]
    beside = pair(stride or kernel_size) == kernel and not any(padding) and all(d == 1 for d in dilation)
    if not beside or rows * kernel[0] > x.shape[2] or columns * kernel[1] > x.shape[3]:
        return [maxima]
    numbered = torch.arange(x.shape[2] * x.shape[3]).reshape(1, 1, *x.shape[2:])
    offsets = list(itertools.product(*map(range, kernel)))
    places = [numbered[:, :, i :: kernel[0], j :: kernel[1]][:, :, :rows, :columns] for i, j in offsets]
    strips = [_every(low, x, 2, i, rows, kernel[0]) for i in range(kernel[0])]
    numbers = [_every(low, strips[i], 3, j, columns, kernel[1]) for i, j in offsets]
    best, place = numbers[0], broadcast(low, places[0], (*x.shape[:2], rows, columns))
    for one, here in zip(numbers[1:], places[1:], strict=True):
        is_better = low.compare("less", best, one)
        best, place = low.choose(is_better, one, best), low.choose(is_better, here, place)
    return [maxima, place]


@lowers("max_unpool2d.default")
def max_unpool(low: Lowering, x: Activation, indices: Activation, output_size: Sequence[int]) -> Activation:
    """Each number back at its place, zeros elsewhere; places are those of windows that lie side by side."""
    plane = [size // n for size, n in zip(output_size, x.shape[2:], strict=True)]
    numbers, places = (repeated(low, value, dict(enumerate(plane, 2))) for value in (x, indices))
    rows, columns = numbers.shape[2:]
    here = torch.arange(math.prod(output_size)).reshape(1, 1, *output_size)[:, :, :rows, :columns]
    found = low.choose(low.compare("equal", places, here), numbers, 0.0)
    below, right = output_size[0] - rows, output_size[1] - columns
    return pad(low, found, [0, right, 0, below])


@lowers("avg_pool2d.default", "avg_pool1d.default")
def avg_pool(
    low: Lowering,
    x: Activation,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None = None,
) -> Activation:
    """Mean of windows."""
    if divisor_override is not None:
        means = _pool(low, "avg_pool", x, kernel_size, stride, padding, count_padding=True)
        return mul(low, means, math.prod(pair(kernel_size)) / divisor_override)
    counts = count_include_pad and not ceil_mode
    if ceil_mode and count_include_pad:
        # Padding counts, but not what lies behind it, where a window reaches as far: an image with a margin.
        edges = pair(padding) if len(x.shape) == 4 else list(padding)
        x = pad(low, x, [p for p in reversed(edges) for _ in range(2)])
        padding = [0]
    return _pool(low, "avg_pool", x, kernel_size, stride, padding, count_padding=counts)


@lowers("avg_pool3d.default")
def avg_pool_of_volumes(
    low: Lowering,
    x: Activation,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    **counting: Any,  # noqa: ANN401  as of `avg_pool`
) -> Activation:
    """Mean of windows along the first of three dimensions, as those of channels in LocalResponseNorm."""
    steps = stride or kernel_size
    if [*kernel_size[1:], *steps[1:], *padding[1:]] != [1, 1, 1, 1, 0, 0]:
        raise Unsupported("its window is of more than one of the three dimensions")
    shape, flat = low.shapes[0], low.reshape(x, (*x.shape[:3], math.prod(x.shape[3:])))
    low.shapes = [(*shape[:3], math.prod(shape[3:]))]
    window = ([kernel_size[0], 1], [steps[0], 1], [padding[0], 0])
    return low.reshape(avg_pool(low, flat, *window, **counting), shape)


def _pool(
    low: Lowering,
    kind: str,
    x: Activation,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    **attributes: object,
) -> Activation:
    shape = low.shapes[0]
    image, wanted, kernel, steps, edges = _windows(low, x, kernel_size, stride, padding)
    # Rounding the output up lets windows reach past the padding: the same as more padding there.
    after = [
        max(0, (n - 1) * s + k - size - before)
        for n, s, k, size, before in zip(wanted, steps, kernel, image.shape[2:], edges, strict=True)
    ]
    found = low.add(kind, [image], kernel=kernel, stride=steps, padding=[*edges, *after], **attributes)
    return low.reshape(found, shape)


def _windows(
    low: Lowering, x: Activation, kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> tuple[Activation, list[int], list[int], list[int], list[int]]:
    """Images; how many windows there are of them, how large, how far apart, and from how far outside."""
    shape = low.shapes[0]
    if x.shape[0] > 0:
        raise Unsupported("its input has no batch dimension")
    if len(kernel_size) > len(shape) - 2:
        raise Unsupported("its input has no dimension of channels")
    if len(shape) == 4:
        return x, list(shape[2:]), pair(kernel_size), pair(stride or kernel_size), pair(padding)
    row = low.row_as_image(x)
    return row, [1, shape[2]], [1, *kernel_size], [1, *(stride or kernel_size)], [0, *padding]


def _every(low: Lowering, x: Activation, dim: int, first: int, n: int, step: int) -> Activation:
    """So many places of a dimension, at equal distances."""
    return sliced(low, x, dim, first, first + (n - 1) * step + 1, step)


def _dilated_max_pool(
    low: Lowering,
    x: Activation,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Activation:
    """The maximum along one dimension after the other: of as many shifted images as a window is wide."""
    shape = low.shapes[0]
    image, *window = _windows(low, x, kernel_size, stride, padding)
    apart = pair(dilation) if len(shape) == 4 else [1, *dilation]
    for dim, (n, k, s, before, d) in enumerate(zip(*window, apart, strict=True), 2):
        after = max(0, (n - 1) * s + d * (k - 1) + 1 - before - image.shape[dim])
        margins = [0, 0] * (3 - dim) + [before, after]
        image = pad(low, image, margins, value=-math.inf)
        shifted = [_every(low, image, dim, d * i, n, s) for i in range(k)]
        image = shifted[0] if k == 1 else largest_of(low, shifted)
    return low.reshape(image, shape)


@lowers("adaptive_avg_pool2d.default", "adaptive_avg_pool1d.default")
def adaptive_avg_pool(low: Lowering, x: Activation, output_size: Sequence[int]) -> Activation:
    """Mean of windows that cover the image in so many rows and columns."""
    shape = low.shapes[0]
    image = low.row_as_image(x) if len(shape) == 3 else x
    wanted = (1, shape[2]) if len(shape) == 3 else shape[2:]
    if tuple(wanted) == (1, 1):
        return low.reshape(low.add("mean", [image], dims=[2, 3], keep=True), shape)
    if any(size % n for size, n in zip(image.shape[2:], wanted, strict=True)):
        return low.reshape(low.add("adaptive_avg_pool", [image], size=list(wanted)), shape)
    kernel = [size // n for size, n in zip(image.shape[2:], wanted, strict=True)]
    found = low.add("avg_pool", [image], kernel=kernel, stride=kernel, padding=[0] * 4, count_padding=True)
    return low.reshape(found, shape)


@lowers("adaptive_max_pool2d.default")
def adaptive_max_pool(low: Lowering, x: Activation, output_size: Sequence[int]) -> list[Activation]:
    """Maximum of windows that cover the image: of each row of them, then of each column."""
    kernel = [size // n for size, n in zip(x.shape[2:], output_size, strict=True)]
    if all(size % n == 0 for size, n in zip(x.shape[2:], output_size, strict=True)):
        return [low.add("max_pool", [x], kernel=kernel, stride=kernel, padding=[0] * 4)]
    for dim, n in enumerate(output_size, 2):
        size = x.shape[dim]
        windows = [sliced(low, x, dim, i * size // n, -(-(i + 1) * size // n)) for i in range(n)]
        found = [largest(low, window, [dim], keepdim=True) for window in windows]
        x = joined(low, found, dim)
    return [x]
