"""Rice codes: short bytes for many small numbers, coded and decoded without a loop over them.

With parameter r, a number x is ``x >> r`` in unary (that many 0 bits, then a 1) and its r low bits
as they are (R. F. Rice, JPL Publication 79-22, 1979). The unary bits of all numbers come first,
then all low bits, each part filled up with 0 bits to a whole byte; the first bit is the lowest.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_RICE = 7
"""Largest parameter. It bounds what a few bytes may claim to be: 2^(7 + 3) weights a byte."""

Numbers = NDArray[np.integer[Any]]


def encode(numbers: Numbers, rest: int = 0) -> tuple[bytes, int]:
    """The shortest Rice code of some numbers.

    Args:
        numbers: Whole numbers ≥ 0, shape (n,).
        rest: A last number that has no 1 bit and no low bits, only its ``rest >> r`` zeros.

    Returns:
        The code and its parameter, the smallest one that gives so few bytes.
    """
    rice, _ = shortest(numbers, rest)
    high = numbers >> rice
    unary = np.zeros(_unary_bits(numbers, rest, rice), np.uint8)
    unary[np.cumsum(high, dtype=np.int64) + np.arange(numbers.size)] = 1
    low = (numbers & ((1 << rice) - 1)).astype(np.uint8)
    bits = np.unpackbits(low[:, None], axis=1, bitorder="little")[:, :rice]
    return _pack(unary) + _pack(bits), rice


def decode(code: bytes, *, count: int, rice: int) -> NDArray[np.int64]:
    """The numbers of a code; the caller has to compare its length with that of `shortest`.

    Args:
        code: What `encode` gave.
        count: How many numbers it holds.
        rice: Its parameter.

    Raises:
        ValueError: if it cannot be such a code.
    """
    low_bytes = -(-count * rice // 8)
    if not 0 <= rice <= MAX_RICE or low_bytes > len(code):
        raise ValueError(f"{len(code)} bytes of parameter {rice} cannot hold {count} numbers")
    stream = np.frombuffer(code, np.uint8)
    unary, low = np.split(stream, [len(code) - low_bytes])
    ends = np.flatnonzero(np.unpackbits(unary, bitorder="little"))
    bits = np.unpackbits(low, bitorder="little")
    if ends.size != count:
        raise ValueError(f"a code holds {ends.size} numbers instead of {count}")
    if bits[count * rice :].any():
        raise ValueError("a padding bit is set")
    padded = np.zeros((count, 8), np.uint8)
    padded[:, :rice] = bits[: count * rice].reshape(count, rice)
    high = np.diff(ends, prepend=-1) - 1
    return (high << rice) | np.packbits(padded, axis=1, bitorder="little").reshape(count)


def shortest(numbers: Numbers, rest: int = 0) -> tuple[int, int]:
    """Parameter and length in bytes of the code that `encode` gives."""
    lengths = [
        -(-_unary_bits(numbers, rest, rice) // 8) - (-numbers.size * rice // 8)
        for rice in range(MAX_RICE + 1)
    ]
    return lengths.index(min(lengths)), min(lengths)


def _unary_bits(numbers: Numbers, rest: int, rice: int) -> int:
    return numbers.size + int((numbers >> rice).sum(dtype=np.int64)) + (rest >> rice)


def _pack(bits: NDArray[np.uint8]) -> bytes:
    return np.packbits(bits.reshape(-1), bitorder="little").tobytes()
