"""The index of a sparse tensor as bytes: Rice-coded gaps, of which parameter 0 is the flat bitmask.

The positions of the rarer kind of weight, kept or pruned, are listed in C order as gaps between
neighbours. A Rice code with parameter r writes a gap as ``gap >> r`` in unary and its r low bits as
they are (R. F. Rice, JPL Publication 79-22, 1979): within 3 % of the entropy of random masks, with
vectorised code both ways. `docs/format.md` has the layout bit by bit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MAX_RICE = 7
"""Largest Rice parameter. It bounds what a few bytes may claim to be: 2^(7 + 3) weights a byte."""


def encode_index(mask: NDArray[np.bool_]) -> tuple[bytes, int]:
    """A flat mask as its shortest code.

    Args:
        mask: Shape (numel,), True = keep.

    Returns:
        The bytes, at most ``ceil(numel / 8)``, and the Rice parameter they were written with.
    """
    kept = int(np.count_nonzero(mask))
    positions = np.flatnonzero(mask if _lists_kept(kept, mask.size) else ~mask)
    gaps = np.diff(positions, prepend=-1) - 1
    tail = mask.size - 1 - int(positions[-1]) if positions.size else mask.size
    rice = _best_rice(gaps, tail)
    unary = np.zeros(_unary_bits(gaps, tail, rice), np.uint8)
    unary[np.cumsum((gaps >> rice) + 1) - 1] = 1
    low = np.unpackbits((gaps & ((1 << rice) - 1)).astype(np.uint8)[:, None], axis=1, bitorder="little")
    return _pack(unary) + _pack(low[:, :rice]), rice


def decode_index(data: bytes, *, numel: int, n_keep: int, rice: int) -> NDArray[np.bool_]:
    """The inverse of `encode_index`; takes nothing but what `encode_index` writes.

    Memory stays in proportion to `data`, whatever the numbers claim.

    Args:
        data: The code.
        numel: Number of weights.
        n_keep: Number of weights kept.
        rice: The Rice parameter.

    Returns:
        The mask, shape (numel,), True = keep.

    Raises:
        ValueError: saying what is wrong with the code.
    """
    if not 0 <= rice <= MAX_RICE:
        raise ValueError(f"the Rice parameter is {rice}, not in 0…{MAX_RICE}")
    if not 0 <= n_keep <= numel:
        raise ValueError(f"{n_keep} values for {numel} weights")
    listed = min(n_keep, numel - n_keep)
    low_bytes = -(-listed * rice // 8)
    unary_bytes = len(data) - low_bytes
    if unary_bytes < 0 or numel >= (8 * unary_bytes + 1) << rice:
        raise ValueError(f"{len(data)} bytes are too few for {numel} weights")
    stream = np.frombuffer(data, np.uint8)
    gaps = _read_gaps(stream[:unary_bytes], stream[unary_bytes:], listed, rice)
    positions = np.cumsum(gaps + 1) - 1
    tail = numel - 1 - (int(positions[-1]) if listed else -1)
    if tail < 0:
        raise ValueError(f"a position lies outside the {numel} weights")
    if _size(gaps, tail, rice) != len(data):
        raise ValueError(f"{len(data)} bytes, where {_size(gaps, tail, rice)} hold all")
    if _best_rice(gaps, tail) != rice:
        raise ValueError(f"the Rice parameter is {rice}, but {_best_rice(gaps, tail)} is shorter")
    lists_kept = _lists_kept(n_keep, numel)
    mask = np.full(numel, not lists_kept)
    mask[positions] = lists_kept
    return mask


def _lists_kept(n_keep: int, numel: int) -> bool:
    return 2 * n_keep <= numel


def _read_gaps(unary: NDArray[np.uint8], low: NDArray[np.uint8], n: int, rice: int) -> NDArray[np.int64]:
    ends = np.flatnonzero(np.unpackbits(unary, bitorder="little"))
    if ends.size != n:
        raise ValueError(f"{ends.size} positions, where the number of values asks for {n}")
    bits = np.unpackbits(low, bitorder="little")
    if bits[n * rice :].any():
        raise ValueError("a padding bit is set")
    padded = np.zeros((n, 8), np.uint8)
    padded[:, :rice] = bits[: n * rice].reshape(n, rice)
    high = np.diff(ends, prepend=-1) - 1
    return (high << rice) | np.packbits(padded, axis=1, bitorder="little").reshape(n)


def _best_rice(gaps: NDArray[np.int64], tail: int) -> int:
    """The parameter of the shortest code, the smallest one among equals."""
    return min(range(MAX_RICE + 1), key=lambda rice: _size(gaps, tail, rice))


def _size(gaps: NDArray[np.int64], tail: int, rice: int) -> int:
    return -(-_unary_bits(gaps, tail, rice) // 8) - (-gaps.size * rice // 8)


def _unary_bits(gaps: NDArray[np.int64], tail: int, rice: int) -> int:
    """Bits of the unary part: the end of each gap, and zeros for the weights after the last position."""
    return gaps.size + int((gaps >> rice).sum()) + (tail >> rice)


def _pack(bits: NDArray[np.uint8]) -> bytes:
    return np.packbits(bits.reshape(-1), bitorder="little").tobytes()
