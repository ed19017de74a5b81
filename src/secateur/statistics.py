"""Statistics of repeated measurements: mean and spread over seeds, paired differences, random overlap."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from secateur.errors import InvalidArgument

_NO_SPREAD = 1e-12
"""Standard deviation, relative to the values, below which they differ by rounding alone."""

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Estimate:
    """What `n` repeats of one measurement say.

    Args:
        mean: Arithmetic mean.
        std: Sample standard deviation (divisor n − 1); None for one repeat.
        n: Number of repeats, ≥ 1.
        interval: Both ends of the confidence interval of the mean. None for one repeat, and where all
            repeats agree: without spread there is nothing to estimate an error from, and an interval of
            width 0 would claim a certainty that nobody has.
    """

    mean: float
    std: float | None
    n: int
    interval: tuple[float, float] | None

    @property
    def sign(self) -> int:
        """1 if the whole interval lies above 0, −1 if below, 0 if it holds 0 or there is none."""
        if self.interval is None:
            return 0
        return 1 if self.interval[0] > 0 else -1 if self.interval[1] < 0 else 0


def estimate(values: Sequence[float], *, confidence: float = 0.95) -> Estimate:
    """Mean, sample standard deviation and t interval of repeated measurements.

    mean ± t·std/√n with n − 1 degrees of freedom (Student, "The probable error of a mean", 1908); exact
    for independent normal values.

    Args:
        values: Finite, at least one.
        confidence: Chance in (0, 1) that such an interval covers the true mean.

    Raises:
        InvalidArgument: if there is no value, one is not finite, or `confidence` is out of range.
    """
    n = len(values)
    if not n or not all(map(math.isfinite, values)):
        raise InvalidArgument(f"values must be at least one finite number, got {list(values)!r}.")
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean, None, 1, None)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    if std <= _NO_SPREAD * max(1.0, *map(abs, values)):
        return Estimate(mean, 0.0, n, None)
    half = t_quantile(confidence, n - 1) * std / math.sqrt(n)
    return Estimate(mean, std, n, (mean - half, mean + half))


def paired_difference(a: Mapping[Key, float], b: Mapping[Key, float]) -> Estimate | None:
    """`a` − `b`, pair by pair: what both share (a seed, say) drops out of the error.

    Args:
        a: Measurements by what pairs them.
        b: Likewise; keys that only one of the two has are left out.

    Returns:
        The estimate over all pairs; None if there is no pair.
    """
    shared = [key for key in a if key in b]
    return estimate([a[key] - b[key] for key in shared]) if shared else None


def t_quantile(confidence: float, degrees: int) -> float:
    """The t > 0 with P(−t ≤ T ≤ t) = `confidence` for Student's T.

    Bisection in θ = atan(t/√degrees) on the closed form of that probability for whole degrees of freedom
    (Abramowitz & Stegun, "Handbook of Mathematical Functions", 26.7.3 and 26.7.4).

    Args:
        confidence: In (0, 1).
        degrees: Degrees of freedom, ≥ 1.

    Raises:
        InvalidArgument: if an argument is out of range.
    """
    if not 0 < confidence < 1:
        raise InvalidArgument(f"confidence must be in (0, 1), got {confidence!r}.")
    if degrees < 1:
        raise InvalidArgument(f"degrees must be at least 1, got {degrees}.")
    low, high = 0.0, math.pi / 2
    while low < (middle := (low + high) / 2) < high:
        if _central_probability(middle, degrees) < confidence:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan(low)


def _central_probability(theta: float, degrees: int) -> float:
    """P(|T| ≤ √degrees·tan θ)."""
    cosine, odd = math.cos(theta), degrees % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(1 + odd, degrees, 2):
        total += term
        term *= k / (k + 1) * cosine * cosine
    total *= math.sin(theta)
    return 2 / math.pi * (theta + total) if odd else total


def random_jaccard(density_a: float, density_b: float) -> float:
    """Jaccard index that two independent random masks are expected to have: a·b / (a + b − a·b).

    The overlap of two real masks (`secateur.mask_overlap`) means little until it is held against this.

    Args:
        density_a: Fraction in [0, 1] that one mask keeps.
        density_b: Fraction in [0, 1] that the other keeps.

    Returns:
        In [0, 1], for masks of many weights; 1 for two empty masks, which are the same mask.
    """
    both = density_a * density_b
    either = density_a + density_b - both
    return both / either if either else 1.0
