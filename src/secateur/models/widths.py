"""Narrower versions of a network: how many channels a multiplier leaves."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from secateur.errors import ModelError


def scaled(channels: int, width: float) -> int:
    """`channels` times `width`, rounded to an even number of at least 2.

    Raises:
        ModelError: if `width` is not a number above 0.
    """
    if not width > 0:
        raise ModelError(f"width multiplies the numbers of channels and must be above 0, got {width!r}.")
    return max(2, 2 * round(channels * width / 2))


def widest_within(build: Callable[[float], nn.Module], n_parameters: int) -> nn.Module:
    """The widest network of at most `n_parameters` parameters, or the narrowest if all have more.

    Args:
        build: Makes the network for a width multiplier in (0, 1].
        n_parameters: Most parameters that it may have.
    """
    best = build(1e-9)
    low, high = 0.0, 1.0
    for _ in range(12):  # channels change in steps, so a finer width than 1/4096 changes nothing
        middle = (low + high) / 2
        candidate = build(middle)
        if sum(p.numel() for p in candidate.parameters()) <= n_parameters:
            low, best = middle, candidate
        else:
            high = middle
    return best
