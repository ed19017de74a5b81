"""From a name to training, validation, test and calibration batches."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from secateur.data.catalog import CATALOG, IMAGENET_MEAN, IMAGENET_STD, DatasetSpec
from secateur.data.files import read_folder
from secateur.data.images import ImageSplit, seeded, split_by_class
from secateur.data.loader import Augmentation, ImageLoader
from secateur.data.options import Data, DataOptions
from secateur.data.records import Layout, Progress, Records, Source, decode, guess_layout
from secateur.data.tables import read_hub
from secateur.errors import DataError, InvalidArgument
from secateur.factories import call_factory

_DIGITS_TEST_FRACTION = 0.2
_MOST_CLASSES = 1_000_000
"""Above all classifiers of images there are, and with a last layer that still fits into memory."""
_FACTORY_OPTIONS = ("data", "data_dir", "batch_size")


def load_data(options: DataOptions, *, seed: int, progress: Progress | None = None) -> Data:
    """Read a data set and cut it into training, validation, test and calibration batches.

    Images are held in memory as uint8. If the data set has a test split and no validation split,
    `options.val_fraction` of the training images, the same share of each class, becomes validation;
    if it has a validation split and no test split, that one is the test split. Calibration images
    are training images chosen at random, never validation or test images.

    Args:
        options: Which data set, and how.
        seed: Decides the validation and calibration images, and the order and augmentation of training.
        progress: Called as ``progress(split, done, total)`` while images are decoded.

    Raises:
        DataError: if the data set is unknown, unreadable, or not usable.
        InvalidArgument: if an option does not fit the data set.
        MissingExtra: if a package that is needed is not installed.
    """
    if ":" in options.data and not options.data.startswith("hf:"):
        return _from_factory(options, seed)
    spec, source = _find(options)
    layout = _layout(spec, source, options.image_size)
    parts = {
        name: decode(records, layout, split=name, progress=progress)
        for name, records in source.splits.items()
    }
    n_classes = _count_classes(spec, source, parts)
    train, val, test = _train_val_test(parts, options, seed)
    chosen = torch.randperm(len(train), generator=seeded("calibration", seed))[: options.n_calibration]
    mean, std = _normalisation(options, spec, layout.channels)

    def plain(split: ImageSplit) -> ImageLoader:
        return ImageLoader(split, batch_size=options.batch_size, mean=mean, std=std)

    return Data(
        name=options.data,
        n_classes=n_classes,
        input_shape=(layout.channels, layout.height, layout.width),
        train=ImageLoader(
            train,
            batch_size=options.batch_size,
            mean=mean,
            std=std,
            augmentation=_augmentation(spec, layout) if options.augment else None,
            shuffle=True,
            seed=seed,
        ),
        val=plain(val),
        test=plain(test),
        calibration=plain(train.take(chosen)),
        classes=source.classes or spec.classes,
    )


def _from_factory(options: DataOptions, seed: int) -> Data:
    unused = [
        field.name
        for field in fields(options)
        if field.name not in _FACTORY_OPTIONS and getattr(options, field.name) != field.default
    ]
    if unused:
        raise InvalidArgument(
            f"{', '.join(unused)} cannot be given with data {options.data!r}; its factory decides them."
        )
    offered = {"seed": seed, "batch_size": options.batch_size, "data_dir": options.data_dir}
    data = call_factory(options.data, offered, kind="data")
    if not isinstance(data, Data):
        raise DataError(
            f"data factory {options.data!r} returned an object of type {type(data).__name__}, "
            "not a secateur.data.Data."
        )
    return data


def _find(options: DataOptions) -> tuple[DatasetSpec, Source]:
    """What is known about the data set that the options name, and its pictures."""
    name, folder = options.data, options.data_dir
    if name == "digits":
        if folder is not None:
            raise InvalidArgument("data_dir cannot be given with data 'digits', which scikit-learn brings.")
        return CATALOG[name], _read_digits()
    if name == "imagefolder":
        if folder is None:
            raise InvalidArgument(
                "data 'imagefolder' needs data_dir, the folder that holds train/ and test/."
            )
        return DatasetSpec(), read_folder(Path(folder).expanduser(), DatasetSpec(), only_images=True)
    if name.startswith("hf:"):
        spec = DatasetSpec(hub_id=name.removeprefix("hf:"))
    elif name in CATALOG:
        spec = CATALOG[name]
    else:
        raise DataError(_unknown(name))
    if folder is not None:
        return spec, read_folder(Path(folder).expanduser(), spec)
    return spec, read_hub(spec.hub_id or name, spec)


def _unknown(name: str) -> str:
    known = [*CATALOG, "imagefolder"]
    close = [f"hf:{name}"] if "/" in name else difflib.get_close_matches(name.lower(), known, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    return f"unknown data {name!r}.{hint} Known: {', '.join(known)}, hf:OWNER/NAME, pkg.mod:factory."


def _read_digits() -> Source:
    """The 1,797 digits of scikit-learn; the test images never change, whatever the seed of a run."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)  # they count from 0 to 16
    labels = bunch.target.astype(np.int64)
    train, test = split_by_class(torch.from_numpy(labels), _DIGITS_TEST_FRACTION, seeded("digits"))
    parts = {"train": train.numpy(), "test": test.numpy()}
    return Source({name: Records(list(images[at]), labels[at], ()) for name, at in parts.items()})


def _layout(spec: DatasetSpec, source: Source, image_size: int | None) -> Layout:
    size = image_size or spec.size
    if spec.channels is not None and size is not None:
        return Layout(spec.channels, size, size)
    return guess_layout(source.splits.values(), size)


def _count_classes(spec: DatasetSpec, source: Source, parts: Mapping[str, ImageSplit]) -> int:
    if "train" not in parts:
        raise DataError(f"the data set has no training split, only {', '.join(parts) or 'nothing'}.")
    largest = {name: int(split.labels.max()) for name, split in parts.items()}
    for name, label in largest.items():
        if label >= _MOST_CLASSES:
            raise DataError(
                f"split {name!r} has label {label}, which is no number of a class: these count from 0 and "
                f"stay below {_MOST_CLASSES:,}. Number the classes from 0 on."
            )
    n_classes = spec.n_classes or len(source.classes) or largest["train"] + 1
    if spec.n_classes and source.classes and spec.n_classes != len(source.classes):
        raise DataError(f"the files have {len(source.classes)} classes, the data set {spec.n_classes}.")
    for name, label in largest.items():
        if label >= n_classes:
            raise DataError(
                f"split {name!r} has label {label}, but {n_classes} classes have labels below {n_classes}."
            )
    return n_classes


def _train_val_test(
    parts: Mapping[str, ImageSplit], options: DataOptions, seed: int
) -> tuple[ImageSplit, ImageSplit, ImageSplit]:
    train = parts["train"]
    if "val" in parts and "test" in parts:
        return train, parts["val"], parts["test"]
    test = parts.get("test") or parts.get("val")
    if test is None:
        raise DataError(
            f"data {options.data!r} has no test split; numbers on training images are worth nothing."
        )
    kept, held_out = split_by_class(train.labels, options.val_fraction, seeded("validation", seed))
    return train.take(kept), train.take(held_out), test


def _normalisation(
    options: DataOptions, spec: DatasetSpec, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    grey = channels == 1
    mean = options.mean or spec.mean or ((0.5,) if grey else IMAGENET_MEAN)
    std = options.std or spec.std or ((0.5,) if grey else IMAGENET_STD)
    return mean, std


def _augmentation(spec: DatasetSpec, layout: Layout) -> Augmentation:
    """That of the catalogue, its padding in proportion; otherwise an eighth, and mirrored if in colour."""
    smaller = min(layout.height, layout.width)
    if spec.augmentation is None or spec.size is None:
        return Augmentation(crop_padding=smaller // 8, flip=layout.channels == 3)
    return Augmentation(spec.augmentation.crop_padding * smaller // spec.size, flip=spec.augmentation.flip)
