"""Statistics against values worked out by hand, against scipy, and against chance itself."""

from __future__ import annotations

import math
import random

import pytest
import torch
from scipy import stats

from secateur.diagnostics import mask_overlap
from secateur.errors import InvalidArgument
from secateur.masks import Masks
from secateur.statistics import estimate, paired_difference, random_jaccard, t_quantile


def test_three_repeats_by_hand() -> None:
    """1, 2, 3: squares 1 + 0 + 1 over n − 1 = 2; t(2) = 4.302653; 4.302653 / √3 = 2.484138."""
    found = estimate([1.0, 2.0, 3.0])
    assert (found.mean, found.std, found.n) == (2.0, 1.0, 3)
    assert found.interval == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-6)
    assert found.sign == 0


def test_the_sign_is_that_of_an_interval_without_zero() -> None:
    assert estimate([1.0, 1.1, 1.2]).sign == 1
    assert estimate([-1.0, -1.1, -1.2]).sign == -1


def test_one_repeat_has_neither_spread_nor_interval() -> None:
    found = estimate([0.9])
    assert (found.mean, found.std, found.n, found.interval, found.sign) == (0.9, None, 1, None, 0)


@pytest.mark.parametrize(
    "values", [[0.3, 0.3, 0.3], [0.1 + 0.2, 0.3], [0.0, 0.0], [0.871 - 0.865, 0.881 - 0.875]]
)
def test_repeats_that_agree_have_no_interval(values: list[float]) -> None:
    """Also where rounding alone tells them apart: an interval of no width would claim certainty."""
    found = estimate(values)
    assert found.std == 0.0
    assert found.interval is None
    assert found.sign == 0


def test_paired_difference_by_hand() -> None:
    """Seeds 1 and 2 are shared: 0.01 and 0.03; std 0.02/√2; t(1) = 12.706205; half width 0.12706205."""
    found = paired_difference({0: 0.9, 1: 0.8, 2: 0.7}, {1: 0.79, 2: 0.67, 3: 0.5})
    assert found is not None
    assert found.n == 2
    assert found.mean == pytest.approx(0.02)
    assert found.std == pytest.approx(0.02 / math.sqrt(2))
    assert found.interval == pytest.approx((0.02 - 0.12706205, 0.02 + 0.12706205), abs=1e-7)


def test_what_pairs_share_drops_out() -> None:
    """Seeds differ by 10 points, methods by 1: paired it is seen, unpaired it is not."""
    b = {0: 0.60, 1: 0.70, 2: 0.80}
    a = {0: 0.610, 1: 0.711, 2: 0.809}
    found = paired_difference(a, b)
    assert found is not None
    assert found.sign == 1
    assert stats.ttest_rel(list(a.values()), list(b.values())).pvalue < 0.05
    assert stats.ttest_ind(list(a.values()), list(b.values())).pvalue > 0.5


def test_no_pair_is_no_difference() -> None:
    assert paired_difference({0: 0.9}, {1: 0.9}) is None


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 9, 30, 1001])
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
def test_t_quantiles_are_those_of_scipy(degrees: int, confidence: float) -> None:
    expected = stats.t.ppf((1 + confidence) / 2, degrees)
    assert t_quantile(confidence, degrees) == pytest.approx(expected, rel=1e-9)


def test_intervals_are_those_of_scipy() -> None:
    rng = random.Random(0)
    for n in (2, 3, 5, 12):
        values = [rng.gauss(0.9, 0.01) for _ in range(n)]
        expected = stats.t.interval(0.9, n - 1, loc=sum(values) / n, scale=stats.sem(values))
        assert estimate(values, confidence=0.9).interval == pytest.approx(expected, rel=1e-9)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = random.Random(0)
    n_trials, hits = 4000, 0
    for _ in range(n_trials):
        interval = estimate([rng.gauss(1.0, 2.0) for _ in range(3)]).interval
        assert interval is not None
        hits += interval[0] <= 1.0 <= interval[1]
    assert hits / n_trials == pytest.approx(0.95, abs=0.012)


def test_random_masks_overlap_as_expected() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (Masks({"w": torch.rand(200_000, generator=generator) < density}) for density in (0.1, 0.3))
    assert random_jaccard(0.1, 0.3) == pytest.approx(0.03 / 0.37)
    assert mask_overlap(a, b) == pytest.approx(random_jaccard(0.1, 0.3), abs=0.003)
    assert random_jaccard(1.0, 0.2) == pytest.approx(0.2)
    assert random_jaccard(0.0, 0.2) == 0.0
    assert random_jaccard(0.0, 0.0) == 1.0


@pytest.mark.parametrize("values", [[], [math.nan], [1.0, math.inf]])
def test_what_cannot_be_averaged_is_refused(values: list[float]) -> None:
    with pytest.raises(InvalidArgument, match="at least one finite number"):
        estimate(values)


@pytest.mark.parametrize(("confidence", "degrees"), [(0.0, 2), (1.0, 2), (95, 2), (0.95, 0)])
def test_quantiles_out_of_range_are_refused(confidence: float, degrees: int) -> None:
    with pytest.raises(InvalidArgument, match="must be"):
        t_quantile(confidence, degrees)
