"""One rounding rule, exact in decimals."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import hypothesis.strategies as st
import pytest
from hypothesis import given

from reference import allocate as oracle
from secateur.counts import check_fraction, n_floor, n_keep, n_prune
from secateur.errors import InvalidArgument

numbers = st.integers(0, 10**9)
sparsities = st.floats(0, 1, exclude_max=True)


@pytest.mark.parametrize(
    ("n", "sparsity", "expected"),
    [
        (10, 0.9, 9),  # int((1.0 - 0.9) * 10) == 0, the classic
        (10, 0.1, 1),
        (1000, 0.29, 290),  # 0.29 * 1000 == 290.0 - 3e-14 in binary
        (100, 0.57, 57),  # 0.57 * 100 == 56.99999999999999
        (100, 0.285, 29),  # exactly half: up
        (10, 0.25, 3),
        (10, 0.35, 4),
        (1, 0.5, 1),
        (1, 0.4999, 0),
        (4, 0.9, 4),
        (0, 0.9, 0),
        (7, 0.0, 0),
        (7, 1 - 2**-53, 7),
        (10**9, 1e-9, 1),
        (10**9, 4.9e-10, 0),
        (10**9, 5e-324, 0),
    ],
)
def test_counts_written_out(n: int, sparsity: float, expected: int) -> None:
    assert n_prune(n, sparsity) == expected
    assert n_keep(n, sparsity) == n - expected


@given(n=numbers, thousandths=st.integers(0, 999))
def test_a_sparsity_counts_as_the_decimal_that_was_written(n: int, thousandths: int) -> None:
    text = f"0.{thousandths:03d}"
    assert n_prune(n, float(text)) == oracle.n_prune(n, text)


@given(n=numbers, sparsity=sparsities)
def test_counts_are_nearest_and_add_up(n: int, sparsity: float) -> None:
    removed = n_prune(n, sparsity)
    exact = n * Fraction(Decimal(repr(sparsity)))
    assert isinstance(removed, int)
    assert 0 <= removed <= n
    assert -Fraction(1, 2) < removed - exact <= Fraction(1, 2)
    assert removed + n_keep(n, sparsity) == n


@given(n=numbers, pair=st.tuples(sparsities, sparsities))
def test_more_sparsity_never_removes_less(n: int, pair: tuple[float, float]) -> None:
    low, high = sorted(pair)
    assert n_prune(n, low) <= n_prune(n, high)


@given(n=st.integers(0, 10**6), data=st.data())
def test_the_sparsity_of_a_count_gives_the_count_back(n: int, data: st.DataObject) -> None:
    removed = data.draw(st.integers(0, max(n - 1, 0)))
    assert n_prune(n, removed / n if n else 0.0) == removed


@given(n=st.integers(1, 10**6), density=st.floats(0, 1))
def test_a_floor_keeps_at_least_one(n: int, density: float) -> None:
    floor = n_floor(n, density)
    assert (0 if density == 0 else 1) <= floor <= n
    assert floor == 1 or abs(floor - n * density) <= 0.5 + 1e-6
    assert n_floor(0, density) == 0
    assert n_floor(n, 1.0) == n


@pytest.mark.parametrize("bad", [-0.1, -1e-300, 1.0000001, 90.0, float("nan"), float("inf"), float("-inf")])
def test_fractions_outside_their_range_are_refused(bad: float) -> None:
    for check in (lambda: n_prune(10, bad), lambda: n_floor(10, bad), lambda: check_fraction("alpha", bad)):
        with pytest.raises(InvalidArgument, match=r"must be in \[0, 1[])], got"):
            check()


def test_the_ends_of_the_range() -> None:
    assert check_fraction("alpha", 0) == 0
    assert check_fraction("alpha", 1) == 1
    with pytest.raises(InvalidArgument, match=r"sparsity must be in \[0, 1\), got 1\.0"):
        n_prune(10, 1.0)
    with pytest.raises(InvalidArgument, match=r"did you mean 0\.9\?"):
        n_prune(10, 90)
    with pytest.raises(InvalidArgument, match="at least 0, got -1"):
        n_prune(-1, 0.5)
