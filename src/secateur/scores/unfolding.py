"""What the weights of a layer are multiplied with: its inputs, unfolded for a convolution."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from math import prod
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.errors import ScoreError
from secateur.targets import PRUNABLE_MODULES

Convolution: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d
Transposed: TypeAlias = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
_MOST_UNFOLDED = 1 << 26
"""Numbers unfolded at a time: 256 MB of float32."""


def layers_of(model: nn.Module, targets: dict[str, nn.Parameter]) -> dict[str, list[nn.Module]]:
    """The layers that hold each weight; more than one if they share it."""
    names = {id(weight): name for name, weight in targets.items()}
    layers: dict[str, list[nn.Module]] = {name: [] for name in targets}
    for layer in model.modules():
        if isinstance(layer, PRUNABLE_MODULES) and id(layer.weight) in names:
            layers[names[id(layer.weight)]].append(layer)
    return layers


def input_of(
    name: str, layer: nn.Module, args: Sequence[object], named: Mapping[str, object], output: object
) -> Tensor:
    """The input in one call of a layer, as a forward hook sees it.

    Raises:
        ScoreError: naming the weight, if the layer is of a class of its own that takes or gives something
            else than one tensor.
    """
    given = [*args, *named.values()]
    if len(given) == 1 and isinstance(given[0], Tensor) and isinstance(output, Tensor):
        return given[0].detach()
    raise ScoreError(
        f"the layer of {name!r}, a {type(layer).__name__}, takes or gives something else than one tensor, so "
        "what its weights are multiplied with is not known. Exclude it, or choose another criterion."
    )


def under_kernel(layer: Convolution, x: Tensor, size: Sequence[int]) -> Iterator[Tensor]:
    """What of `x` each place of the kernel visits, in the order of the kernel's elements.

    Args:
        layer: With its stride, dilation and padding.
        x: Its input, shape (…, channels, *positions).
        size: Positions of its output, along each axis of the kernel.

    Yields:
        Shape (…, channels, *size), for one place of the kernel after the other.
    """
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(x, _padding_of(layer), mode=mode)
    for offset in product(*map(range, layer.kernel_size)):
        visited = tuple(
            slice(k * dilation, k * dilation + stride * (n - 1) + 1, stride)
            for k, dilation, stride, n in zip(offset, layer.dilation, layer.stride, size, strict=True)
        )
        yield padded[(..., *visited)]


def as_rows(layer: nn.Linear | Convolution, x: Tensor, output: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """One call of a layer as the product of matrices that it is: ``outputs = inputs @ Wᵀ`` in each group.

    Args:
        layer: The layer.
        x: Its input.
        output: Its output for `x`, or what stands for it.

    Yields:
        Some samples at a time, inputs (groups, rows, K) and outputs (groups, rows, outputs of a group): a
        row is a sample at a position, and K goes through the elements of ``weight[o]`` in their order.
    """
    if isinstance(layer, nn.Linear):
        yield x.reshape(1, -1, x.shape[-1]), output.reshape(1, -1, output.shape[-1])
        return
    if x.ndim == len(layer.kernel_size) + 1:  # one sample without a batch axis
        x, output = x[None], output[None]
    size = output.shape[2:]
    most = max(1, _MOST_UNFOLDED // (x.shape[1] * prod(layer.kernel_size) * prod(size)))
    for some, wanted in zip(x.split(most), output.split(most), strict=True):
        columns = torch.stack([*under_kernel(layer, some, size)], dim=2)
        yield _by_group(columns.flatten(1, 2), layer.groups), _by_group(wanted, layer.groups)


def _by_group(x: Tensor, groups: int) -> Tensor:
    """(samples, channels, *positions) as (groups, samples · positions, channels of a group)."""
    return x.flatten(2).unflatten(1, (groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)


def _padding_of(layer: Convolution) -> list[int]:
    """Padding before and after each axis, the last axis first, as ``F.pad`` takes it."""
    pairs: list[tuple[int, int]] = []
    for axis, (kernel, dilation) in enumerate(zip(layer.kernel_size, layer.dilation, strict=True)):
        if layer.padding == "valid":
            pairs.append((0, 0))
        elif layer.padding == "same":
            total = dilation * (kernel - 1)
            pairs.append((total // 2, total - total // 2))
        else:
            padding = cast("tuple[int, ...]", layer.padding)
            pairs.append((padding[axis], padding[axis]))
    return [amount for pair in reversed(pairs) for amount in pair]
