"""Batches of images that are a pure function of seed and epoch, augmented and normalised in bulk."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import cast

import torch
from torch import Tensor

from secateur.augment import mirrored, shifted
from secateur.counts import check_whole
from secateur.data.images import ImageSplit, seeded
from secateur.errors import InvalidArgument
from secateur.naming import IndexedBatch

_BYTES_MADE_TOGETHER = 2**25
"""Memory of the inputs that an accelerator makes at once."""


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
        top, left, turned = choices.unbind(1)
        if self.crop_padding:
            images = shifted(images, top, left, self.crop_padding)
        return mirrored(images, turned.bool()) if self.flip else images


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
        check_whole("batch_size", self.batch_size, least=1)
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
            yield cast("Tensor", batch.inputs), batch.labels

    @property
    def n_classes(self) -> int:
        """Number of classes: the largest label plus 1."""
        return int(self.split.labels.max()) + 1

    def of_classes(self, classes: Sequence[int]) -> ImageLoader:
        """Only the images of some classes, labelled 0, 1, … in the order in which the classes are given.

        Raises:
            InvalidArgument: if there is no such class.
            DataError: if there is no image of any of them.
        """
        if not all(0 <= c < self.n_classes for c in classes):
            raise InvalidArgument(f"classes must be in [0, {self.n_classes}), got {list(classes)}.")
        place = torch.full((self.n_classes,), -1, dtype=torch.int64, device=self.split.labels.device)
        place[list(classes)] = torch.arange(len(classes), device=place.device)
        labels = place[self.split.labels]
        chosen = (labels >= 0).nonzero().squeeze(1)
        return replace(self, split=ImageSplit(self.split.images[chosen], labels[chosen]))

    def to(self, device: torch.device | str) -> ImageLoader:
        """The same batches made on another device, from images moved there once."""
        split = ImageSplit(self.split.images.to(device), self.split.labels.to(device))
        return replace(self, split=split)

    def epoch(
        self, number: int, *, view: int | None = None, start: int = 0, stop: int | None = None
    ) -> Iterator[IndexedBatch]:
        """The batches of epoch `number`.

        The order follows from `seed` and `number`, the augmentation from `seed` and `view`: the same
        image in the same view always looks the same. Without augmentation all views are view 0.

        Args:
            number: Of the epoch, from 0.
            view: Of the augmentation, from 0; by default `number`.
            start: First batch to make, from 0.
            stop: Batch to stop before; by default the end.

        Raises:
            InvalidArgument: if `number`, `view`, `start` or `stop` is negative.
        """
        view = number if view is None else view
        if number < 0 or view < 0:
            raise InvalidArgument(f"epochs and views count from 0, got epoch {number} and view {view}.")
        if start < 0 or (stop is not None and stop < 0):
            raise InvalidArgument(f"batches count from 0, got start={start} and stop={stop}.")
        return self._batches(number, view if self.augmentation is not None else 0, slice(start, stop))

    def _batches(self, number: int, view: int, piece: slice) -> Iterator[IndexedBatch]:
        n, images, labels = self.n_samples, self.split.images, self.split.labels
        generator = seeded("order", self.seed, number)
        order = torch.randperm(n, generator=generator) if self.shuffle else torch.arange(n)
        augment, choices = self.augmentation, self._choices(view)
        scale, shift = self._normalisation()
        batches = order.to(images.device).split(self.batch_size)[piece]
        together = self._made_together()
        for group in (batches[at : at + together] for at in range(0, len(batches), together)):
            indices = torch.cat(group)
            inputs = images[indices]
            if augment is not None:
                inputs = augment.apply(inputs, choices[indices])
            inputs = inputs.float().mul_(scale).add_(shift)
            parts = (part.split(self.batch_size) for part in (inputs, labels[indices], indices))
            for x, y, chosen in zip(*parts, strict=True):
                yield IndexedBatch(x, y, chosen, view)

    def _made_together(self) -> int:
        """Batches that are made at once: one on a CPU, which has a cache, many small ones on a GPU.

        There each operation costs the same few microseconds of the host's time, however small.
        """
        if self.split.images.device.type == "cpu":
            return 1
        return max(1, _BYTES_MADE_TOGETHER // (4 * self.batch_size * self.split.images[0].numel()))

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
