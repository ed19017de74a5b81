"""Pictures as they lie in files, and their decoding to one uint8 tensor."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from secateur.data.images import ImageSplit
from secateur.errors import DataError
from secateur.factories import needs_extra

if TYPE_CHECKING:
    from PIL import Image

Picture: TypeAlias = "bytes | Path | NDArray[np.uint8]"
"""An encoded image, a file that holds one, or grey pixels (H, W)."""

Progress: TypeAlias = Callable[[str, int, int], None]
"""``progress(split, done, total)``, called now and then while images are decoded."""

_GREY_MODES = ("1", "L", "LA")
_WIDE_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_LARGEST_NATIVE = 64
_DEFAULT_SIZE = 224
_PROGRESS_EVERY = 500


@dataclass(frozen=True, eq=False)
class Records:
    """Undecoded pictures with labels.

    Attributes:
        pictures: N pictures.
        labels: int64, shape (N,).
        files: Where they come from, for error messages: names with the number of pictures in each.
    """

    pictures: Sequence[Picture]
    labels: NDArray[np.int64]
    files: tuple[tuple[str, int], ...]

    def where(self, index: int) -> str:
        """Where picture `index` came from, for a person to read."""
        picture = self.pictures[index]
        if isinstance(picture, Path):
            return str(picture)
        for name, n in self.files:
            if index < n:
                return f"row {index} of {name}"
            index -= n
        return f"picture {index}"


@dataclass(frozen=True, eq=False)
class Source:
    """A data set as it was found.

    Attributes:
        splits: Records by "train", "val" or "test".
        classes: Names of the classes, if the files tell them.
    """

    splits: Mapping[str, Records]
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """The form that all pictures are brought to: 1 (grey) or 3 (RGB) channels, height and width in pixels."""

    channels: int
    height: int
    width: int


def guess_layout(parts: Iterable[Records], size: int | None) -> Layout:
    """A layout for pictures of unknown form, from their headers.

    Grey if all of them are grey. If `size` is None, their common size where they have one of at
    most 64 pixels, otherwise 224.

    Raises:
        DataError: if a picture cannot be read.
    """
    modes: set[str] = set()
    sizes: set[tuple[int, int]] = set()
    for records in parts:
        for index in range(len(records.pictures)):
            with _open(records, index) as image:
                modes.add(image.mode)
                sizes.add(image.size)
    channels = 1 if all(mode in _GREY_MODES for mode in modes) else 3
    if size is None and len(sizes) == 1 and max(next(iter(sizes))) <= _LARGEST_NATIVE:
        (width, height) = next(iter(sizes))
        return Layout(channels, height, width)
    return Layout(channels, size or _DEFAULT_SIZE, size or _DEFAULT_SIZE)


def decode(records: Records, layout: Layout, *, split: str, progress: Progress | None = None) -> ImageSplit:
    """Decode all pictures to `layout`: scaled to cover it, then cropped at the centre.

    Args:
        records: The pictures.
        layout: What they become.
        split: What error messages and `progress` call them.
        progress: Called now and then.

    Raises:
        DataError: if there is no picture, one cannot be read, or memory does not hold them all.
        MissingExtra: if Pillow is needed and not installed.
    """
    n = len(records.pictures)
    if n == 0:
        raise DataError(f"split {split!r} holds no image.")
    shape = (n, layout.channels, layout.height, layout.width)
    try:
        pixels = np.empty(shape, np.uint8)
    except MemoryError as cause:
        raise DataError(
            f"split {split!r} needs {np.prod(shape, dtype=np.int64):,} bytes as {n} images of "
            f"{layout.height}×{layout.width} pixels. Choose a smaller image_size, or a pkg.mod:factory "
            "that reads from disk."
        ) from cause
    for index in range(n):
        pixels[index] = _pixels(records, index, layout)
        if progress is not None and ((index + 1) % _PROGRESS_EVERY == 0 or index + 1 == n):
            progress(split, index + 1, n)
    return ImageSplit(torch.from_numpy(pixels), torch.from_numpy(records.labels))


def _pixels(records: Records, index: int, layout: Layout) -> NDArray[np.uint8]:
    """One picture as uint8 (C, H, W)."""
    picture = records.pictures[index]
    if isinstance(picture, np.ndarray) and (1, *picture.shape) == (
        layout.channels,
        layout.height,
        layout.width,
    ):
        return picture[None]
    with _open(records, index) as image:
        pixels = np.asarray(_fit(image, layout, records, index), np.uint8)
    return pixels[None] if layout.channels == 1 else pixels.transpose(2, 0, 1)


def _open(records: Records, index: int) -> Image.Image:
    with needs_extra("data", "reading images"):
        from PIL import Image, UnidentifiedImageError
    picture = records.pictures[index]
    if isinstance(picture, np.ndarray):
        return Image.fromarray(picture)
    try:
        image = Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as cause:
        raise _unreadable(records, index, cause) from cause
    if image.mode in _WIDE_MODES:
        image.close()
        raise DataError(
            f"the image at {records.where(index)} has more than 8 bits a channel "
            f"(mode {image.mode}); convert it to 8 bits first."
        )
    return image


def _fit(image: Image.Image, layout: Layout, records: Records, index: int) -> Image.Image:
    from PIL import Image, ImageOps

    try:
        image = image.convert("L" if layout.channels == 1 else "RGB")
    except (OSError, SyntaxError, ValueError, EOFError) as cause:
        raise _unreadable(records, index, cause) from cause
    size = (layout.width, layout.height)
    return image if image.size == size else ImageOps.fit(image, size, Image.Resampling.BILINEAR)


def _unreadable(records: Records, index: int, cause: Exception) -> DataError:
    return DataError(
        f"the image at {records.where(index)} cannot be read ({cause}). Fetch it again, or take it out."
    )
