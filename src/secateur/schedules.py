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
    return cosine_decay((progress - warmup) / (1 - warmup))


def geometric_sparsities(sparsity: float, stages: int) -> tuple[float, ...]:
    """Sparsity after each stage of a cut that keeps the same fraction of what is left in every stage.

    The density after stage i of k is ``density^(i/k)``, the exponential schedule of SynFlow
    (https://arxiv.org/abs/2006.05467 algorithm 1) and FORCE (https://arxiv.org/abs/2006.09081).

    Args:
        sparsity: Fraction removed in the end, in [0, 1); the last entry is exactly this number.
        stages: Number of stages k, ≥ 1.
    """
    log_density = math.log1p(-sparsity)
    return (*(-math.expm1(log_density * stage / stages) for stage in range(1, stages)), sparsity)


def cubic_sparsity(progress: float, *, initial: float, final: float) -> float:
    """Sparsity that rises fast at first and slowly in the end, for gradual pruning.

    ``s_f + (s_i − s_f)·(1 − t)³``, equation 1 of https://arxiv.org/abs/1710.01878.

    Args:
        progress: t, updates done over all updates, in [0, 1].
        initial: Sparsity s_i at t = 0, in [0, 1).
        final: Sparsity s_f at t = 1, in [0, 1).
    """
    return final + (initial - final) * (1 - progress) ** 3


def cosine_decay(progress: float) -> float:
    """Half a cosine from 1 at `progress` 0 down to 0 at 1."""
    return 0.5 * (1 + math.cos(math.pi * progress))
