"""How many weights a sparsity stands for, the only rounding rule in the library; and checks of numbers."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from numbers import Integral, Real

from secateur.errors import InvalidArgument


def check_fraction(name: str, value: float, *, below_one: bool = False) -> float:
    """`value` itself if it is a finite number in [0, 1], or in [0, 1) with `below_one`.

    Args:
        name: What the number is, for the error message.
        value: The number to check.
        below_one: Refuse exactly 1.

    Raises:
        InvalidArgument: if it is not.
    """
    if not isinstance(value, Real):
        raise InvalidArgument(f"{name} must be a number, got {value!r}.")
    inside = math.isfinite(value) and value >= 0 and (value < 1 if below_one else value <= 1)
    if not inside:
        allowed = "[0, 1)" if below_one else "[0, 1]"
        hint = f" {name} is a fraction: did you mean {value / 100:g}?" if 10 <= value <= 100 else ""
        raise InvalidArgument(f"{name} must be in {allowed}, got {value!r}.{hint}")
    return value


def check_whole(name: str, value: object, *, least: int) -> None:
    """Refuse what is no whole number of at least `least`.

    Args:
        name: What the number is, for the error message.
        value: The number to check; True and 2.0 are none.
        least: The smallest that is allowed.

    Raises:
        InvalidArgument: if it is none.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InvalidArgument(f"{name} must be a whole number of at least {least}, got {value!r}.")
    if value < least:
        raise InvalidArgument(f"{name} must be at least {least}, got {value!r}.")


def check_number(name: str, value: float, *, above_zero: bool = False) -> None:
    """Refuse what is no finite number of at least 0, or with `above_zero` of more than 0.

    Args:
        name: What the number is, for the error message.
        value: The number to check.
        above_zero: Refuse exactly 0.

    Raises:
        InvalidArgument: if it is not.
    """
    fits = isinstance(value, Real) and math.isfinite(value) and value >= 0
    if not fits or (above_zero and value == 0):
        allowed = "above 0" if above_zero else "of at least 0"
        raise InvalidArgument(f"{name} must be a finite number {allowed}, got {value!r}.")


def n_prune(n: int, sparsity: float) -> int:
    """Number of weights to remove from `n` at `sparsity`: ``n · sparsity`` rounded half up.

    The sparsity counts as the decimal that a person wrote (``0.9``, not the binary number next to
    it), and the product is exact, so 10 weights at 0.9 lose 9, never 8.

    Args:
        n: Number of weights, ≥ 0.
        sparsity: Fraction removed, in [0, 1).

    Returns:
        An integer in [0, n].

    Raises:
        InvalidArgument: if `sparsity` is outside [0, 1) or `n` is negative.
    """
    check_fraction("sparsity", sparsity, below_one=True)
    return _part(n, sparsity)


def n_floor(n: int, min_density: float) -> int:
    """Number of weights a tensor of `n` never falls below: ``n · min_density``, or 1 if that rounds to 0.

    Args:
        n: Number of weights, ≥ 0.
        min_density: Smallest fraction kept, in [0, 1].

    Raises:
        InvalidArgument: if `min_density` is outside [0, 1] or `n` is negative.
    """
    check_fraction("min_density", min_density)
    return max(_part(n, min_density), 1 if n and min_density > 0 else 0)


def _part(n: int, fraction: float) -> int:
    """``n · fraction`` rounded half up, with the fraction taken as its shortest decimal."""
    if n < 0:
        raise InvalidArgument(f"a number of weights must be at least 0, got {n}.")
    return math.floor(n * Fraction(Decimal(repr(float(fraction)))) + Fraction(1, 2))


def n_keep(n: int, sparsity: float) -> int:
    """Number of weights that stay: ``n - n_prune(n, sparsity)``."""
    return n - n_prune(n, sparsity)
