"""Labelled images in memory, and how a part of them is chosen by seed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.errors import DataError, InvalidArgument


@dataclass(frozen=True, eq=False)
class ImageSplit:
    """Images and their labels, held in memory.

    Attributes:
        images: uint8, shape (N, C, H, W), N ≥ 1.
        labels: int64, shape (N,), each ≥ 0.

    Raises:
        DataError: if a type, a shape or a label is another, or there is no image.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype is not torch.uint8 or self.images.ndim != 4:
            found = f"{self.images.dtype} of shape {tuple(self.images.shape)}"
            raise DataError(f"images must be torch.uint8 of shape (N, C, H, W), got {found}.")
        if self.labels.dtype is not torch.int64 or self.labels.shape != self.images.shape[:1]:
            found = f"{self.labels.dtype} of shape {tuple(self.labels.shape)}"
            raise DataError(f"labels must be torch.int64 of shape ({len(self.images)},), got {found}.")
        if self.images.numel() == 0:
            raise DataError(f"a split needs at least one image, got shape {tuple(self.images.shape)}.")
        if int(self.labels.min()) < 0:
            raise DataError(
                f"a label is {int(self.labels.min())}; labels count from 0. "
                "Published test sets without labels often say -1: use another split."
            )

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: Tensor) -> ImageSplit:
        """The images at `indices`, int64 of shape (n,), in that order."""
        return ImageSplit(self.images[indices], self.labels[indices])


def seeded(purpose: str, *numbers: int) -> torch.Generator:
    """A CPU generator of its own for each purpose and numbers.

    Hashing keeps the streams of neighbouring seeds, epochs and purposes independent.
    """
    digest = hashlib.sha256(repr((purpose, *numbers)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def split_by_class(labels: Tensor, fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two parts of a labelled set, each with nearly the same share of every class.

    Args:
        labels: int64, shape (N,).
        fraction: Size of the second part, in (0, 1); N · fraction is rounded.
        generator: Decides which images go where.

    Returns:
        Indices of the first and of the second part, int64, each ascending.

    Raises:
        InvalidArgument: if a part would be empty.
    """
    n = len(labels)
    n_second = round(n * fraction)
    if not 0 < n_second < n:
        raise InvalidArgument(
            f"a fraction of {fraction} of {n} images (val_fraction) is {n_second} images; "
            "both parts need at least one."
        )
    shuffled = torch.randperm(n, generator=generator)
    by_class = shuffled[torch.argsort(labels[shuffled], stable=True)]
    chosen = torch.zeros(n, dtype=torch.bool)
    # evenly spaced places in a list sorted by class take the same share of each class
    chosen[by_class[((torch.arange(n_second) + 0.5) * (n / n_second)).long()]] = True
    return torch.nonzero(~chosen).flatten(), torch.nonzero(chosen).flatten()
