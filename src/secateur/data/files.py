"""Data sets that lie in a folder: which kind it is, image folders, and IDX files."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from secateur.data.catalog import DatasetSpec
from secateur.data.records import Records, Source
from secateur.data.tables import find_parquet, read_parquet
from secateur.errors import DataError

_FOLDERS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_IDX = {"train": "train", "test": "t10k"}
_SHOWN = 12


def read_folder(folder: Path, spec: DatasetSpec, *, only_images: bool = False) -> Source:
    """The data set in `folder`, whichever of the three kinds it is; the network is not touched.

    Parquet files: ``train*.parquet``, ``test*.parquet``, ``val*.parquet``, here or in a subfolder.
    Image folder: ``train/CLASS/…``, ``test/CLASS/…``, ``val/CLASS/…``.
    IDX files: ``train-images-idx3-ubyte``, ``t10k-images-idx3-ubyte`` and their labels, or with .gz.

    Args:
        folder: Where to look.
        spec: What is known about the data set.
        only_images: Look for an image folder only.

    Raises:
        DataError: if the folder holds none or more than one of them, or what it holds is unusable.
        MissingExtra: if a package that is needed is not installed.
    """
    if not folder.is_dir():
        raise DataError(f"data_dir {str(folder)!r} is not a folder.")
    parquet = {} if only_images else find_parquet(folder)
    idx = {} if only_images else _find_idx(folder)
    images = _find_images(folder)
    kinds = {"parquet files": parquet, "IDX files": idx, "an image folder": images}
    present = [kind for kind, files in kinds.items() if "train" in files]
    if len(present) > 1:
        raise DataError(
            f"data_dir {str(folder)!r} holds {' and '.join(present)}; leave only one of them there."
        )
    if not present:
        raise DataError(_nothing_found(folder, only_images=only_images))
    if "train" in parquet:
        return read_parquet(parquet, spec)
    return _read_idx(idx) if "train" in idx else _read_images(images)


def _nothing_found(folder: Path, *, only_images: bool) -> str:
    there = sorted(path.name + ("/" if path.is_dir() else "") for path in folder.iterdir())
    more = f" and {len(there) - _SHOWN} more" if len(there) > _SHOWN else ""
    others = "" if only_images else "train*.parquet, train-images-idx3-ubyte[.gz], "
    return (
        f"data_dir {str(folder)!r} holds no training data. Looked for {others}train/CLASS/*.png; "
        f"the folder holds {', '.join(there[:_SHOWN]) or 'nothing'}{more}."
    )


def _find_images(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for split, names in _FOLDERS.items():
        present = [folder / name for name in names if (folder / name).is_dir()]
        if len(present) > 1:
            raise DataError(f"data_dir {str(folder)!r} holds both {present[0].name}/ and {present[1].name}/.")
        if present and any(path.is_dir() for path in present[0].iterdir()):
            found[split] = present[0]
    return found


def _read_images(folders: dict[str, Path]) -> Source:
    classes = _class_names(folders["train"])
    splits: dict[str, Records] = {}
    for split, folder in folders.items():
        strange = [name for name in _class_names(folder) if name not in classes]
        if strange:
            raise DataError(
                f"{str(folder)!r} has classes that train/ has not: {', '.join(strange[:_SHOWN])}."
            )
        files = [(path, label) for label, name in enumerate(classes) for path in _images_in(folder / name)]
        labels = np.array([label for _, label in files], np.int64)
        if split == "train" and len(missing := set(range(len(classes))) - set(labels.tolist())):
            raise DataError(
                f"{str(folder / classes[min(missing)])!r} holds no image ({', '.join(_SUFFIXES)})."
            )
        splits[split] = Records([path for path, _ in files], labels, ())
    return Source(splits, classes)


def _class_names(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")))


def _images_in(folder: Path) -> list[Path]:
    files = sorted(folder.rglob("*"))
    return [p for p in files if p.suffix.lower() in _SUFFIXES and not p.name.startswith(".") and p.is_file()]


def _find_idx(folder: Path) -> dict[str, tuple[Path, Path]]:
    found: dict[str, tuple[Path, Path]] = {}
    for split, prefix in _IDX.items():
        for suffix in ("", ".gz"):
            images = folder / f"{prefix}-images-idx3-ubyte{suffix}"
            labels = folder / f"{prefix}-labels-idx1-ubyte{suffix}"
            if images.is_file():
                found.setdefault(split, (images, labels))
    return found


def _read_idx(files: dict[str, tuple[Path, Path]]) -> Source:
    splits: dict[str, Records] = {}
    for split, (image_path, label_path) in files.items():
        images, labels = _read_idx_file(image_path, 3), _read_idx_file(label_path, 1)
        if len(images) != len(labels):
            raise DataError(f"{image_path.name} holds {len(images)} images for {len(labels)} labels.")
        splits[split] = Records(list(images), labels.astype(np.int64), ((image_path.name, len(images)),))
    return Source(splits)


def _read_idx_file(path: Path, n_dims: int) -> NDArray[np.uint8]:
    """The array of unsigned bytes in an IDX file: two zeros, type 8, dimensions, sizes (big-endian), data."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(4 + 4 * n_dims)
            body = file.read()
    except (OSError, EOFError, zlib.error) as cause:
        raise DataError(f"{str(path)!r} cannot be read ({cause}). Fetch it again.") from cause
    shape = [int.from_bytes(header[i : i + 4], "big") for i in range(4, len(header), 4)]
    if header[:4] != bytes((0, 0, 8, n_dims)) or len(shape) != n_dims or len(body) != math.prod(shape):
        raise DataError(
            f"{str(path)!r} is not an IDX file of unsigned bytes with {n_dims} dimensions, "
            "or is cut short or too long. Fetch it again."
        )
    return np.frombuffer(body, np.uint8).reshape(shape)
