"""What a user chooses about data, and what comes of it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch

from secateur.counts import check_whole
from secateur.data.loader import ImageLoader
from secateur.errors import DataError, InvalidArgument
from secateur.naming import Batches, IndexedLoader, length_of


@dataclass(frozen=True)
class DataOptions:
    """Which data set, how it is cut and how it is fed.

    Raises:
        InvalidArgument: if a number is outside what is allowed.
    """

    data: str = "digits"
    """digits, cifar10, cifar100, tiny-imagenet, fashion-mnist; hf:OWNER/NAME on the Hugging Face hub;
    imagefolder (with --data-dir); or pkg.mod:factory, called with those of seed, batch_size and data_dir
    that it accepts."""

    data_dir: str | None = None
    """Folder to read instead of the network: parquet files, an image folder (train/CLASS/*, test/CLASS/*,
    and val/CLASS/* if there is one), or IDX files."""

    batch_size: int = 128
    """Images a batch."""

    val_fraction: float = 0.1
    """Fraction of the training images kept for validation, in (0, 1). Not used where the data set
    has a validation split beside its test split."""

    n_calibration: int = 5120
    """Training images, without augmentation, that score the weights. At most all of them."""

    mean: tuple[float, ...] | None = None
    """Mean of the pixels in [0, 1], one number a channel. Default: the data set's usual one."""

    std: tuple[float, ...] | None = None
    """Standard deviation of the pixels in [0, 1], one number a channel. Default: the data set's usual one."""

    image_size: int | None = None
    """Height and width in pixels to which images are scaled and cropped. Default: the data set's own;
    for an image folder or hf: its common size up to 64 pixels, otherwise 224."""

    augment: bool = True
    """Crop training images at random and, where that keeps the class, mirror them; on by default."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "n_calibration"):
            check_whole(name, getattr(self, name), least=1)
        if not 0 < self.val_fraction < 1:
            raise InvalidArgument(
                f"val_fraction must lie between 0 and 1, got {self.val_fraction}. "
                "It is a fraction of the training images, such as 0.1."
            )
        if self.image_size is not None and self.image_size < 1:
            raise InvalidArgument(f"image_size must be at least 1 pixel, got {self.image_size}.")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and not (values and all(math.isfinite(v) for v in values)):
                raise InvalidArgument(f"{name} must be finite numbers, one a channel, got {values}.")
        if self.std is not None and min(self.std) <= 0:
            raise InvalidArgument(f"std must be greater than 0 in every channel, got {self.std}.")


@dataclass(frozen=True, eq=False)
class Data:
    """A data set, ready to train, select, test and calibrate on.

    Any iterable of ``(inputs, labels)`` batches that can be iterated again will do for the four
    parts, such as a DataLoader, and the inputs may be several tensors; the built-in data sets give
    `ImageLoader`.

    Attributes:
        name: What reports call it.
        n_classes: Number of classes, ≥ 1.
        input_shape: Of the input of one sample, such as (C, H, W); () where there are several.
        train: Shuffled, augmented training batches.
        val: Validation batches, for every choice that is made.
        test: Test batches, for nothing but the numbers that are reported.
        calibration: Training batches without augmentation, to score weights with.
        classes: Names of the classes in the order of their labels; empty if not known.

    Raises:
        DataError: if `n_classes`, `input_shape` or `classes` make no sense, or a part is not iterable.
    """

    name: str
    n_classes: int
    input_shape: tuple[int, ...]
    train: Batches
    val: Batches
    test: Batches
    calibration: Batches
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.n_classes < 1:
            raise DataError(f"data {self.name!r}: n_classes must be at least 1, got {self.n_classes}.")
        if min(self.input_shape, default=1) < 1:
            raise DataError(
                f"data {self.name!r}: input_shape must be sizes of at least 1, got {self.input_shape}."
            )
        for part in self._parts():
            batches: object = getattr(self, part)
            if not (isinstance(batches, Iterable) or hasattr(batches, "__getitem__")):
                raise DataError(
                    f"data {self.name!r}: {part} must be batches, such as a DataLoader or a list, got "
                    f"{type(batches).__name__}. Pass [] where there are none."
                )
        if self.classes and len(self.classes) != self.n_classes:
            raise DataError(
                f"data {self.name!r}: {len(self.classes)} names of classes for {self.n_classes} classes."
            )

    @property
    def in_channels(self) -> int:
        """First size of an input, the channels of an image; 1 where there are several inputs."""
        return self.input_shape[0] if self.input_shape else 1

    def to(self, device: torch.device | str) -> Data:
        """The same data, the images of every `ImageLoader` on `device`, where its batches are then made."""
        return replace(self, **{name: part.to(device) for name, part in self._image_loaders().items()})

    def near(self, device: torch.device) -> Data:
        """The same data on `device` if it is a CUDA device with twice the memory free; else unchanged.

        Batches are made much faster there than they are carried there.
        """
        if device.type != "cuda":
            return self
        size_bytes = sum(part.split.images.nbytes for part in self._image_loaders().values())
        free_bytes, _ = torch.cuda.mem_get_info(device)
        return self.to(device) if 2 * size_bytes <= free_bytes else self

    def _parts(self) -> dict[str, Batches]:
        return {"train": self.train, "val": self.val, "test": self.test, "calibration": self.calibration}

    def _image_loaders(self) -> dict[str, ImageLoader]:
        return {name: part for name, part in self._parts().items() if isinstance(part, ImageLoader)}

    def describe(self) -> dict[str, Any]:
        """Name, classes, shape and sizes, as plain values for a report.

        A size is None where a part does not tell it: an `ImageLoader` does by ``n_samples``, a
        DataLoader by its data set.
        """
        sizes = {f"n_{name}": _n_samples(part) for name, part in self._parts().items()}
        about = {"name": self.name, "n_classes": self.n_classes, "input_shape": list(self.input_shape)}
        return about | sizes


def _n_samples(batches: Batches) -> int | None:
    """Number of samples in a loader, where it can be known without reading it."""
    if isinstance(batches, IndexedLoader):
        return batches.n_samples
    dataset = getattr(batches, "dataset", None)
    return None if dataset is None else length_of(dataset)
