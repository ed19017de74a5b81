"""One pruned tensor as bytes: where its weights are, then their exponents, then the rest of them.

`docs/format.md` specifies the bytes. Where: the gaps between the kept weights, or between the
pruned ones if those are fewer, as Rice codes; parameter 0 is the flat bitmask. What: trained weights
that survive a cut differ little in size, so the top byte of each (its exponent) is coded by rank,
most frequent first; sign and mantissa are noise and stay as they are. Both are lossless.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from secateur.checkpoint import rice

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}

Part = tuple[int, int]
"""Rice parameter and number of bytes of one part."""


def encode_tensor(values: Tensor, mask: Tensor) -> tuple[bytes, Part, Part]:
    """The bytes of a pruned tensor.

    Args:
        values: The kept weights in C order, shape (n_keep,), a float type of 2, 4 or 8 bytes, on the CPU.
        mask: What is kept, any shape, on the CPU.

    Returns:
        The bytes; parameter and length of the index, the first part of them; the same of the heads,
        the second part. The tails are what remains.
    """
    index, index_rice = _encode_mask(mask.numpy().reshape(-1))
    heads, heads_rice, tails = _encode_values(values)
    return index + heads + tails, (index_rice, len(index)), (heads_rice, len(heads))


def decode_tensor(
    data: bytes, *, index: Part, heads: Part, numel: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The inverse of `encode_tensor`; takes nothing but what that writes.

    Memory stays in proportion to `data`, whatever the numbers claim.

    Args:
        data: The bytes.
        index: Rice parameter and length of the index.
        heads: Rice parameter and length of the heads.
        numel: Number of weights, kept and pruned.
        dtype: Type of the kept weights.

    Returns:
        Values, shape (n_keep,), and mask, shape (numel,).

    Raises:
        ValueError: saying what is wrong with the bytes.
    """
    tails_start = index[1] + heads[1]
    n_keep, odd = divmod(len(data) - tails_start, dtype.itemsize - 1)
    if odd or not 0 <= n_keep <= numel:
        raise ValueError(f"{len(data) - tails_start} bytes of values do not fit {numel} weights of {dtype}")
    mask = _decode_mask(data[: index[1]], index[0], numel=numel, n_keep=n_keep)
    values = _decode_values(data[index[1] : tails_start], heads[0], data[tails_start:], dtype)
    return values, torch.from_numpy(mask)


def _encode_mask(mask: NDArray[np.bool_]) -> tuple[bytes, int]:
    positions = np.flatnonzero(mask == _lists_kept(int(np.count_nonzero(mask)), mask.size))
    rest = mask.size - 1 - int(positions[-1]) if positions.size else mask.size
    return rice.encode(np.diff(positions, prepend=-1) - 1, rest)


def _decode_mask(code: bytes, parameter: int, *, numel: int, n_keep: int) -> NDArray[np.bool_]:
    count = min(n_keep, numel - n_keep)
    # Before anything of size `numel` is made: a code of so many bits cannot reach further.
    if numel >= (8 * len(code) + 1) << min(parameter, rice.MAX_RICE):
        raise ValueError(f"an index of {len(code)} bytes is too short for {numel} weights")
    gaps = rice.decode(code, count=count, rice=parameter)
    positions = np.cumsum(gaps + 1) - 1
    rest = numel - 1 - int(positions[-1]) if count else numel
    if rest < 0:
        raise ValueError(f"a position lies outside the {numel} weights")
    _check_shortest("index", (parameter, len(code)), rice.shortest(gaps, rest))
    lists_kept = _lists_kept(n_keep, numel)
    mask = np.full(numel, not lists_kept)
    mask[positions] = lists_kept
    return mask


def _lists_kept(n_keep: int, numel: int) -> bool:
    """Whether the index lists the kept weights, the rarer kind, and not the pruned ones."""
    return 2 * n_keep <= numel


def _encode_values(values: Tensor) -> tuple[bytes, int, bytes]:
    """Table and code of the heads, their Rice parameter, and the tails."""
    if not values.numel():
        return b"", 0, b""
    bits = _bits(values)
    rows = _rotate(bits, 1).view(np.uint8).reshape(bits.size, -1)
    table = _ranking(np.bincount(rows[:, -1], minlength=256))
    rank_of = np.zeros(256, np.uint8)
    rank_of[table] = np.arange(table.size)
    code, parameter = rice.encode(rank_of[rows[:, -1]])
    return bytes((table.size - 1, *table.tolist())) + code, parameter, rows[:, :-1].tobytes()


def _decode_values(heads: bytes, parameter: int, tails: bytes, dtype: torch.dtype) -> Tensor:
    count = len(tails) // (dtype.itemsize - 1)
    if not count:
        if heads or parameter:
            raise ValueError("there are heads, but no values")
        return torch.empty(0, dtype=dtype)
    size = heads[0] + 1 if heads else 1
    table, code = np.frombuffer(heads[1 : size + 1], np.uint8), heads[size + 1 :]
    ranks = rice.decode(code, count=count, rice=parameter)
    _check_shortest("heads", (parameter, len(code)), rice.shortest(ranks))
    if int(ranks.max()) >= table.size:
        raise ValueError(f"a head has rank {int(ranks.max())}, the table only {table.size} entries")
    rows = np.empty((count, dtype.itemsize), np.uint8)
    rows[:, -1] = table[ranks]
    rows[:, :-1] = np.frombuffer(tails, np.uint8).reshape(count, -1)
    if not np.array_equal(_ranking(np.bincount(rows[:, -1], minlength=256)), table):
        raise ValueError("the table of heads is not in order of their frequency")
    bits = _rotate(rows.view(f"<u{dtype.itemsize}").reshape(count), 8 * dtype.itemsize - 1)
    return torch.from_numpy(bits.astype(f"i{dtype.itemsize}")).view(dtype)


def _ranking(counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The bytes that occur, most frequent first, the smaller one among equals."""
    order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    return order.astype(np.uint8)


def _bits(values: Tensor) -> rice.Numbers:
    """The bit patterns of floats as little-endian unsigned integers."""
    size = values.element_size()
    return values.contiguous().view(_INTEGERS[size]).numpy().astype(f"<u{size}")


def _rotate(bits: rice.Numbers, left: int) -> rice.Numbers:
    """Rotate bit patterns to the left. By 1, the sign goes to the bottom and the exponent to the top."""
    return (bits << left) | (bits >> (8 * bits.itemsize - left))


def _check_shortest(what: str, found: Part, best: Part) -> None:
    if found != best:
        raise ValueError(
            f"the {what} has Rice parameter {found[0]} and {found[1]} bytes; the shortest code has "
            f"{best[0]} and {best[1]}"
        )
