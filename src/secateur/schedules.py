"""Schedules: pure functions of progress."""

from __future__ import annotations

import math


def cosine_with_warmup(progress: float, *, warmup: float) -> float:
    """Learning rate as a fraction of its peak: a linear rise, then half a cosine down to 0.

    Args:
        progress: Steps done over all steps, in [0, 1].
        warmup: Fraction of the steps spent rising, in [0, 1).

    Returns:
        In [0, 1].
    """
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))
