"""Images moved and mirrored, each in its own way: what augmentations are made of."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


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
