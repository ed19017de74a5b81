"""Inputs moved, mirrored and mixed, each in its own way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.counts import check_whole
from secateur.errors import InvalidArgument

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""``f(inputs, generator)``: another look of a batch, of the same shape."""


def shifted(images: Tensor, top: Tensor, left: Tensor, pixels: int) -> Tensor:
    """Windows of `images` with a border of zeros around them.

    Args:
        images: Shape (n, C, H, W), of any type.
        top: Row of the bordered image that each window begins with, int64 in 0 … 2·pixels, shape (n,).
        left: Column, likewise.
        pixels: Width of the border, ≥ 0.
    """
    height, width = images.shape[2:]
    windows = F.pad(images, (pixels,) * 4).unfold(2, height, 1).unfold(3, width, 1)  # a view
    return windows[torch.arange(len(images), device=images.device), :, top, left]


def mirrored(images: Tensor, which: Tensor) -> Tensor:
    """`images` of shape (n, C, H, W), those that `which` (n,), bool, chooses turned left to right."""
    return torch.where(which[:, None, None, None], images.flip(-1), images)


@dataclass(frozen=True)
class FlipShift:
    """Mirrors half of the images left to right, and moves each by up to `pixels`, zeros coming in.

    For images of shape (batch, C, H, W) whose meaning that does not change: photographs, not digits (`flip`).

    Attributes:
        pixels: Most pixels in each direction, ≥ 0.
        flip: Whether to mirror.

    Raises:
        InvalidArgument: if `pixels` is negative.
    """

    pixels: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        check_whole("pixels", self.pixels, least=0)

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Another look of each image."""
        if images.ndim != 4:
            raise InvalidArgument(
                f"flip-shift moves images of shape (batch, C, H, W), got inputs of {tuple(images.shape)}. "
                "Set augment='none' or 'mix'."
            )
        n = len(images)
        top, left = torch.randint(0, 2 * self.pixels + 1, (2, n), generator=generator).to(images.device)
        turned = (torch.rand(n, generator=generator) < 0.5).to(images.device)
        return shifted(mirrored(images, turned) if self.flip else images, top, left, self.pixels)


def mix(images: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the inputs mixed with another each, by a share drawn from [0, 1]; for any floating inputs.

    Mixup (https://arxiv.org/abs/1710.09412) without labels, as in https://arxiv.org/abs/2106.05237: the
    teacher says what a mixture is.

    Raises:
        InvalidArgument: for whole numbers, such as tokens, which have no mixture.
    """
    if not images.is_floating_point():
        raise InvalidArgument(
            f"augment='mix' takes inputs of floating type, got {images.dtype}. Set augment='none'."
        )
    n = len(images)
    share = torch.rand(n, generator=generator)
    share[: n // 2] = 1.0
    share = share.to(images.device, images.dtype).view(-1, *(1,) * (images.ndim - 1))
    return share * images + (1 - share) * images[torch.randperm(n, generator=generator).to(images.device)]


AUGMENTS: Mapping[str, Augment | None] = {"none": None, "flip-shift": FlipShift(), "mix": mix}
"""By the names that `CalibrationRecovery` takes; None leaves inputs as they are."""
