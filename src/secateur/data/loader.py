"""Batches of images that are a pure function of seed and epoch, augmented and normalised in bulk."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.data.images import ImageSplit, seeded
from secateur.errors import InvalidArgument
from secateur.naming import IndexedBatch


@dataclass(frozen=True)
class Augmentation:
    """Random crop after padding, and random horizontal flip.

    The padding is black: zeros are added to the uint8 image, before it is normalised, as
    ``RandomCrop(padding=…)`` does in the usual CIFAR recipes.

    Attributes:
        crop_padding: Pixels added on each side, ≥ 0; the crop has the size of the image.
        flip: Whether half of the images, at random, are mirrored left to right.

    Raises:
        InvalidArgument: if `crop_padding` is negative.
    """

    crop_padding: int
    flip: bool

    def __post_init__(self) -> None:
        if self.crop_padding < 0:
            raise InvalidArgument(f"crop_padding must be at least 0 pixels, got {self.crop_padding}.")

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """What happens to each of `n` images: rows of (top, left, mirrored), int64, shape (n, 3)."""
        corners = torch.randint(0, 2 * self.crop_padding + 1, (n, 2), generator=generator)
        mirrored = torch.randint(0, 2 if self.flip else 1, (n, 1), generator=generator)
        return torch.cat([corners, mirrored], dim=1)

    def apply(self, images: Tensor, choices: Tensor) -> Tensor:
        """Crop and mirror uint8 `images` (B, C, H, W) as `choices` (B, 3) from `draw` says."""
        height, width = images.shape[2:]
        top, left, mirrored = choices.unbind(1)
        if self.crop_padding:
            padded = F.pad(images, (self.crop_padding,) * 4)
            windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (B, C, tops, lefts, H, W), a view
            images = windows[torch.arange(len(images), device=images.device), :, top, left]
        if self.flip:
            images = torch.where(mirrored.bool()[:, None, None, None], images.flip(-1), images)
        return images


@dataclass(frozen=True, eq=False)
class ImageLoader:
    """Batches over a split, the same ones for the same seed and epoch. Stands in for a DataLoader.

    Iterating yields ``(inputs, labels)`` of epoch 0; `epoch` gives any epoch. Inputs are float32 of
    shape (B, C, H, W), labels int64 of shape (B,); the last batch may be smaller than the others.

    Attributes:
        split: The images.
        batch_size: Images a batch, ≥ 1.
        mean: Subtracted from pixels in [0, 1]; one number a channel.
        std: What the difference is divided by, > 0; one number a channel.
        augmentation: What is done to the images, or None.
        shuffle: Whether each epoch has an order of its own.
        seed: Decides order and augmentation.

    Raises:
        InvalidArgument: if a number is outside what is allowed, or `mean` or `std` does not fit the channels.
    """

    split: ImageSplit
    _: KW_ONLY
    batch_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation | None = None
    shuffle: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InvalidArgument(f"batch_size must be at least 1, got {self.batch_size}.")
        channels = self.split.images.shape[1]
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != channels or not all(math.isfinite(v) for v in values):
                raise InvalidArgument(
                    f"{name} must be {channels} finite numbers, one a channel, got {values}."
                )
        if min(self.std) <= 0:
            raise InvalidArgument(f"std must be greater than 0 in every channel, got {self.std}.")

    @property
    def n_samples(self) -> int:
        """Number of images."""
        return len(self.split)

    def __len__(self) -> int:
        return -(-self.n_samples // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.epoch(0):
            yield batch.inputs, batch.labels

    def to(self, device: torch.device | str) -> ImageLoader:
        """The same batches made on another device, from images moved there once."""
        split = ImageSplit(self.split.images.to(device), self.split.labels.to(device))
        return replace(self, split=split)

    def epoch(self, number: int, *, view: int | None = None) -> Iterator[IndexedBatch]:
        """The batches of epoch `number`.

        The order follows from `seed` and `number`, the augmentation from `seed` and `view`: the same
        image in the same view always looks the same. Without augmentation all views are view 0.

        Args:
            number: Of the epoch, from 0.
            view: Of the augmentation, from 0; by default `number`.

        Raises:
            InvalidArgument: if `number` or `view` is negative.
        """
        view = number if view is None else view
        if number < 0 or view < 0:
            raise InvalidArgument(f"epochs and views count from 0, got epoch {number} and view {view}.")
        return self._batches(number, view if self.augmentation is not None else 0)

    def _batches(self, number: int, view: int) -> Iterator[IndexedBatch]:
        n, images, labels = self.n_samples, self.split.images, self.split.labels
        order = torch.randperm(n, generator=seeded("order", self.seed, number)) if self.shuffle else None
        order = (torch.arange(n) if order is None else order).to(images.device)
        augment, choices = self.augmentation, self._choices(view)
        scale, shift = self._normalisation()
        for indices in order.split(self.batch_size):
            batch = images[indices]
            if augment is not None:
                batch = augment.apply(batch, choices[indices])
            yield IndexedBatch(batch.float().mul_(scale).add_(shift), labels[indices], indices, view)

    def _choices(self, view: int) -> Tensor:
        """What the augmentation does to each image of the split in `view`; empty without one."""
        if self.augmentation is None:
            return torch.empty(0, dtype=torch.int64)
        # drawn on the CPU for the whole split: the same on every device, whatever the order and batch size
        choices = self.augmentation.draw(self.n_samples, seeded("augmentation", self.seed, view))
        return choices.to(self.split.images.device)

    def _normalisation(self) -> tuple[Tensor, Tensor]:
        """Scale and shift, shape (C, 1, 1), so that ``(x / 255 − mean) / std = x · scale + shift``."""
        mean = torch.tensor(self.mean, dtype=torch.float64)
        std = torch.tensor(self.std, dtype=torch.float64)
        both = torch.stack([1 / (255 * std), -mean / std]).float().to(self.split.images.device)
        scale, shift = both[:, :, None, None]
        return scale, shift
