"""Slow oracles of allocation: plain loops over one sorted list of all scores."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction

import numpy as np
from torch import Tensor


def n_prune(n: int, sparsity: str) -> int:
    """`n` times a decimal given as text, rounded half up."""
    return int((n * Decimal(sparsity)).to_integral_value(ROUND_HALF_UP))


def order(scores: Mapping[str, Tensor]) -> list[tuple[str, int]]:
    """Places (tensor, flat index) from the lowest score up: a stable argsort of the concatenation."""
    places = [(name, index) for name, tensor in scores.items() for index in range(tensor.numel())]
    flat = [tensor.detach().float().reshape(-1).numpy() for tensor in scores.values()]
    ranking = np.argsort(np.concatenate(flat), kind="stable") if flat else []
    return [places[rank] for rank in ranking]


def lowest(scores: Mapping[str, Tensor], n: int) -> dict[str, list[bool]]:
    """Masks that remove the `n` lowest scores."""
    return with_floors(scores, n, dict.fromkeys(scores, 0))


def with_floors(scores: Mapping[str, Tensor], n: int, floors: Mapping[str, int]) -> dict[str, list[bool]]:
    """Masks that remove `n` scores from the lowest up, passing over tensors that are at their floor."""
    keep = {name: [True] * tensor.numel() for name, tensor in scores.items()}
    for name, index in order(scores):
        if n and sum(keep[name]) > floors[name]:
            keep[name][index] = False
            n -= 1
    assert n == 0, "the floors leave too little to remove"
    return keep


def in_turn(
    shares: Mapping[str, int], lows: Mapping[str, int], highs: Mapping[str, int], total: int
) -> dict[str, int]:
    """`total` things given away one by one, each to whom it brings nearest to half a thing over its share."""
    counts = dict(lows)
    while sum(counts.values()) < total:
        waiting = [name for name in counts if counts[name] < highs[name]]
        turn = min(waiting, key=lambda name: Fraction(2 * counts[name] + 1, 2 * shares[name]))
        counts[turn] += 1
    return counts


def erk_densities(shapes: Mapping[str, tuple[int, ...]], density: float) -> dict[str, float]:
    """Erdős–Rényi-Kernel densities as their authors find them: overfull layers are made dense one by one."""
    dense: set[str] = set()
    raw = {name: sum(shape) / np.prod(shape) for name, shape in shapes.items()}
    sizes = {name: float(np.prod(shape)) for name, shape in shapes.items()}
    while True:
        left = density * sum(sizes.values()) - sum(sizes[name] for name in dense)
        factor = left / sum(raw[name] * sizes[name] for name in shapes if name not in dense)
        fullest = max((name for name in shapes if name not in dense), key=lambda name: raw[name])
        if factor * raw[fullest] <= 1:
            return {name: 1.0 if name in dense else factor * raw[name] for name in shapes}
        dense.add(fullest)
