"""Whole numbers of weights in given proportions: how a total is split over tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

_RESOLUTION = 62
"""Bits of the level that is searched; what it cannot tell apart is settled exactly afterwards."""


@dataclass(frozen=True)
class Claim:
    """What a tensor asks of a total.

    Attributes:
        share: Its part in proportion to those of others, > 0 if it may get anything.
        low: The least it gets.
        high: The most it gets.
    """

    share: int
    low: int
    high: int


def apportion(claims: Mapping[str, Claim], total: int) -> dict[str, int]:
    """Whole numbers that add up to `total`, in proportion to the shares and within the limits.

    Each is ``level · share`` rounded half up and then clipped, at one level for all: the divisor method
    of Webster and Sainte-Laguë. A tensor that would get more than its limit gets just that, and the
    others more. Unlike with largest remainders, no number falls when the total rises, so masks at a
    higher sparsity are always contained in those at a lower one. Where no level gives the total, because
    several are rounded up at once, the first in order are.

    Args:
        claims: By name.
        total: Between the sum of the lows and the sum of the highs.
    """
    top = max(
        (Fraction(claim.high, claim.share) for claim in claims.values() if claim.high), default=Fraction(1)
    )
    first, last = 0, 1 << _RESOLUTION  # a level is such a number over 2^62, times the one that fills all
    while first < last:
        middle = (first + last + 1) // 2
        if sum(_rounded(claims, top, middle).values()) <= total:
            first = middle
        else:
            last = middle - 1
    counts = _rounded(claims, top, first)
    for _ in range(total - sum(counts.values())):
        open_claims = [name for name, claim in claims.items() if counts[name] < claim.high]
        counts[min(open_claims, key=lambda name: Fraction(2 * counts[name] + 1, claims[name].share))] += 1
    return counts


def _rounded(claims: Mapping[str, Claim], top: Fraction, level: int) -> dict[str, int]:
    half = top.denominator << _RESOLUTION
    counts: dict[str, int] = {}
    for name, claim in claims.items():
        rounded = (2 * level * top.numerator * claim.share + half) // (2 * half)
        counts[name] = min(max(rounded, claim.low), claim.high)
    return counts
