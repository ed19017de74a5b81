"""The weights of a plan: dense, or the numbers that are not zero and where they are.

`docs/plan.md` specifies how positions are coded: as bits, or as steps from one to the next.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

STORED = {"f32": np.dtype("<f4"), "f16": np.dtype("<f2"), "bf16": np.dtype("<u2"), "i64": np.dtype("<i8")}
"""How the numbers of each type lie in memory and in the file; NumPy has no bf16, so its bits."""
CODINGS = ("dense", "bitmask", "delta4", "delta8")
PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
"""Type in which a plan of each precision stores its weights."""

DENSE_FROM = 0.9
"""Density from which zeros are stored too: positions would cost more than they save."""


@dataclass(frozen=True)
class Weight:
    """One weight, immutable.

    Attributes:
        shape: Its shape.
        dtype: "f32", "f16", "bf16" or "i64".
        numbers: All numbers, of shape `shape`; or those stored, shape (n,), if there are positions.
        positions: Where the stored numbers are, strictly rising, flat in C order; None if all are stored.
    """

    shape: tuple[int, ...]
    dtype: str
    numbers: NDArray[Any]
    positions: NDArray[np.uint32] | None = None

    @property
    def numel(self) -> int:
        """How many numbers the shape holds."""
        return math.prod(self.shape)

    @property
    def n_stored(self) -> int:
        """How many of them are stored: zeros too where the weight is dense."""
        return self.numbers.size

    @property
    def density(self) -> float:
        """Fraction of the numbers that are not zero, 1 for an empty weight."""
        return np.count_nonzero(self.numbers) / self.numel if self.numel else 1.0

    def to_dense(self) -> NDArray[Any]:
        """All numbers in the shape of the weight, as float32 or int64."""
        numbers = _widened(self.numbers, self.dtype)
        if self.positions is None:
            return numbers
        flat = np.zeros(self.numel, numbers.dtype)
        flat[self.positions] = numbers
        return flat.reshape(self.shape)


def make_weight(numbers: NDArray[Any], precision: str = "fp32") -> Weight:
    """A weight from a dense array, stored sparse where that is smaller.

    Args:
        numbers: float32 or int64.
        precision: Type to store floats in, a key of `PRECISIONS`; rounded to nearest, ties to even.
    """
    dtype = "i64" if numbers.dtype == np.int64 else PRECISIONS[precision]
    stored = np.asarray(_narrowed(numbers, dtype), order="C")
    if stored.dtype.kind != "i" and np.count_nonzero(stored) < DENSE_FROM * stored.size:
        flat = stored.reshape(-1)
        positions = np.flatnonzero(flat)
        return Weight(numbers.shape, dtype, flat[positions], positions.astype(np.uint32))
    return Weight(numbers.shape, dtype, stored)


def encode(weight: Weight) -> tuple[str, NDArray[np.uint8] | None]:
    """The shortest coding of a weight, and its index in that coding; None for a dense one."""
    if weight.positions is None:
        return "dense", None
    mask = np.zeros(weight.numel, np.bool_)
    mask[weight.positions] = True
    codes = {
        "bitmask": np.packbits(mask, bitorder="little"),
        "delta4": _encode_delta(weight.positions, 4),
        "delta8": _encode_delta(weight.positions, 8),
    }
    best = min(codes, key=lambda coding: codes[coding].size)
    return best, codes[best]


def decode(coding: str, index: NDArray[np.uint8], numel: int) -> NDArray[np.uint32]:
    """Positions of the stored numbers, all of them less than `numel`.

    Memory stays in proportion to `index`, whatever `numel` claims.

    Raises:
        ValueError: if the index is not one of a weight of so many numbers.
    """
    if coding == "bitmask":
        if index.size != (numel + 7) // 8:
            raise ValueError(f"a bitmask of {index.size} bytes does not fit {numel} numbers")
        bits = np.unpackbits(index, bitorder="little")
        if bits[numel:].any():
            raise ValueError("the bitmask has bits past its end")
        return np.flatnonzero(bits).astype(np.uint32)
    width = 4 if coding == "delta4" else 8
    steps = np.stack((index & 15, index >> 4), axis=1).reshape(-1) if width == 4 else index
    skip = (1 << width) - 1
    if width == 4 and steps.size and steps[-1] == skip:  # half a byte was left over
        steps = steps[:-1]
    if steps.size and steps[-1] == skip:
        raise ValueError("its index ends without a number")
    stores = steps != skip
    places = np.cumsum(steps + stores.astype(np.int64)) - 1
    if places.size and places[-1] >= numel:
        raise ValueError(f"position {places[-1]} lies outside {numel} numbers")
    return places[stores].astype(np.uint32)


def _encode_delta(positions: NDArray[np.uint32], width: int) -> NDArray[np.uint8]:
    """Steps of so many bits; the largest moves on by as many places and stores nothing."""
    skip = (1 << width) - 1
    gaps = np.diff(positions.astype(np.int64), prepend=-1) - 1
    skips = gaps // skip
    steps = np.full(positions.size + int(skips.sum()), skip, np.uint8)
    steps[np.cumsum(skips + 1) - 1] = gaps - skips * skip
    if width == 8:
        return steps
    halves = np.append(steps, np.uint8(skip))[: steps.size + steps.size % 2].reshape(-1, 2)
    return (halves[:, 0] | (halves[:, 1] << 4)).astype(np.uint8)


def _widened(numbers: NDArray[Any], dtype: str) -> NDArray[Any]:
    if dtype == "bf16":
        return (numbers.astype(np.uint32) << 16).view(np.float32)
    return numbers if dtype == "i64" else numbers.astype(np.float32, copy=False)


def _narrowed(numbers: NDArray[Any], dtype: str) -> NDArray[Any]:
    if dtype == "bf16":
        bits = np.asarray(numbers, np.float32, order="C").view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        rounded[rounded == 0x8000] = 0  # −0, which is not worth storing
        # A NaN whose upper half is zero would round to infinity; keep it a NaN.
        return np.where(np.isnan(numbers), (bits >> 16) | 0x40, rounded).astype(np.uint16)
    with np.errstate(over="ignore"):
        return numbers.astype(STORED[dtype], copy=False)
