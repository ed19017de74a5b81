"""Rank correlation, overlap, stability and histograms against their definitions."""

from __future__ import annotations

import json
import math
import warnings
from itertools import pairwise
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from helpers import Snapshot, images, make_cnn, make_mlp, vectors
from secateur.allocate import Global, Layerwise, allocate
from secateur.diagnostics import (
    describe_scores,
    log_edges,
    log_histogram,
    mask_overlap,
    rank_correlation,
    ranking_agreement,
    smallest_kept,
    split_half_overlap,
)
from secateur.errors import DataError, EmptiedLayerWarning, MaskError
from secateur.masks import Masks
from secateur.naming import Named
from secateur.scores import Magnitude, Random, ScoreInputs, TaskGradient, TeacherGuided, score


def bits(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.bool)


def test_overlap_by_hand() -> None:
    a = Masks({"x": bits(1, 1, 0, 0), "y": bits(1, 0)})
    b = Masks({"x": bits(1, 0, 1, 0), "y": bits(1, 0)})
    assert mask_overlap(a, b) == 2 / 4
    assert mask_overlap(a, a) == 1.0
    nothing = Masks({"x": bits(0, 0, 0, 0), "y": bits(0, 0)})
    assert mask_overlap(a, nothing) == 0.0
    assert mask_overlap(nothing, nothing) == 1.0


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"x": bits(1, 0)}, r"'y': \(2,\) in the first, nothing in the second"),
        (
            {"x": bits(1, 0), "y": bits(1, 0), "z": bits(1)},
            r"'z': nothing in the first, \(1,\) in the second",
        ),
        ({"x": bits(1, 0), "y": bits(1)}, r"'y': \(2,\) in the first, \(1,\) in the second"),
    ],
)
def test_masks_of_two_networks_do_not_overlap(other: dict[str, Tensor], says: str) -> None:
    with pytest.raises(MaskError, match=says):
        mask_overlap(Masks({"x": bits(1, 1), "y": bits(1, 0)}), Masks(other))


def test_two_random_masks_overlap_as_documented() -> None:
    scores = [score(make_mlp(width=4000), None, Random(seed)) for seed in (1, 2)]
    a, b = (allocate(s, sparsity=0.8) for s in scores)
    assert mask_overlap(a, b) == pytest.approx(0.2 / (2 - 0.2), abs=0.01)


small = st.lists(st.integers(-3, 3), min_size=2, max_size=12)


@given(data=st.data())
def test_rank_correlation_is_spearmans(data: st.DataObject) -> None:
    x = data.draw(small)
    y = data.draw(st.lists(st.integers(-3, 3), min_size=len(x), max_size=len(x)))
    found = rank_correlation(torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = float(spearmanr(x, y).statistic)
    assert found == (None if math.isnan(expected) else pytest.approx(expected, abs=1e-12))


def test_rank_correlation_by_hand() -> None:
    ramp = torch.arange(6.0).view(2, 3)
    assert rank_correlation(ramp, ramp.exp()) == pytest.approx(1)
    assert rank_correlation(ramp, -ramp) == pytest.approx(-1)
    assert rank_correlation(ramp, torch.zeros(2, 3)) is None
    assert rank_correlation(torch.ones(1), torch.ones(1)) is None
    assert rank_correlation(torch.ones(0), torch.ones(0)) is None
    assert rank_correlation(ramp, ramp.T.contiguous().view(2, 3)) == pytest.approx(1 - 6 * 10 / (6 * 35))


def test_rank_correlation_of_many_values_is_that_of_a_sample() -> None:
    x = torch.randn(2_500_000)
    assert rank_correlation(x, x + torch.randn_like(x)) == pytest.approx(0.69, abs=0.01)


def test_agreement_of_rankings_over_all_and_in_each_tensor() -> None:
    a = {"x": torch.arange(5.0), "y": torch.arange(5.0)}
    b = {"x": torch.arange(5.0), "y": -torch.arange(5.0)}
    found = ranking_agreement(a, b)
    assert [layer["name"] for layer in found["layers"]] == ["x", "y"]
    assert [layer["spearman"] for layer in found["layers"]] == pytest.approx([1, -1])
    assert -1 < found["spearman"] < 1


# Split halves


def test_halves_are_every_other_batch() -> None:
    model, batches = make_mlp(), vectors(4)
    odd_even = [score(model, batches[start::2], TaskGradient()) for start in (0, 1)]
    expected = mask_overlap(*(allocate(s, sparsity=0.5) for s in odd_even))
    ticks: list[None] = []
    before = Snapshot.of(model)
    found = split_half_overlap(
        model,
        batches,
        TaskGradient(),
        sparsity=0.5,
        scope=Global(),
        on_batch=lambda: ticks.append(None),
    )
    before.assert_unchanged(model)
    assert found == expected
    assert 0 < found < 1
    assert len(ticks) == 4


def test_halves_that_are_alike_overlap_fully() -> None:
    model, batch = make_cnn(), images(1)[0]
    criterion = TeacherGuided(make_cnn(1))
    for scope in (Global(), Layerwise(), Global(min_density=0.1)):
        assert split_half_overlap(model, [batch] * 4, criterion, sparsity=0.7, scope=scope) == 1.0


def test_halves_need_two_batches() -> None:
    options: dict[str, Any] = {"sparsity": 0.5, "scope": Global()}
    with pytest.raises(DataError, match="at least 2 calibration batches, got 1"):
        split_half_overlap(make_mlp(), vectors(1), TaskGradient(), **options)


def test_halves_share_no_sample_of_a_loader_that_shuffles_by_itself() -> None:
    x, y = torch.arange(24.0).repeat(6, 1).T.contiguous(), torch.arange(24) % 3
    seen: list[set[int]] = []

    def task_loss(outputs: Tensor, labels: Tensor) -> Tensor:
        seen[-1].update(map(int, samples.pop()))
        return F.cross_entropy(outputs, labels)

    samples: list[Tensor] = []
    model = make_mlp()
    model.register_forward_pre_hook(lambda _, given: samples.append(given[0][:, 0]))

    class Marked(TaskGradient):
        def __call__(self, inputs: ScoreInputs) -> Named:
            seen.append(set())
            return super().__call__(inputs)

    loader = DataLoader(TensorDataset(x, y), 4, shuffle=True, generator=torch.Generator().manual_seed(1))
    split_half_overlap(model, loader, Marked(), sparsity=0.5, task_loss=task_loss)
    assert len(seen) == 2
    assert seen[0].isdisjoint(seen[1])
    assert len(seen[0] | seen[1]) == 24


# Histograms


def test_histogram_by_hand() -> None:
    scores = {"x": torch.tensor([0.0, 1e-4, 1e-3, 1e-2, 1e-1, 1.0]), "y": torch.tensor([-5.0, 1.0])}
    edges = log_edges([scores], bins=4)
    assert edges == pytest.approx([-4, -3, -2, -1, 0])
    counted = log_histogram(scores, [-4.5, -3.5, -2.5, -1.5, -0.5])
    assert counted.counts == [1, 1, 1, 3]  # what lies beyond goes into the last bin
    assert counted.n_zero == 2


@given(values=st.lists(st.floats(0, 2.0**127, width=32), min_size=1, max_size=30), bins=st.integers(1, 9))
def test_every_score_is_counted_once(values: list[float], bins: int) -> None:
    scores = {"x": torch.tensor(values)}
    edges = log_edges([scores], bins=bins)
    assert len(edges) == bins + 1
    assert all(a < b for a, b in pairwise(edges))
    counted = log_histogram(scores, edges)
    assert sum(counted.counts) + counted.n_zero == len(values)
    assert counted.n_zero == sum(v == 0 for v in values)


def test_edges_of_nothing() -> None:
    assert len(log_edges([{"x": torch.zeros(3)}])) == 81
    assert log_histogram({"x": torch.zeros(3)}, log_edges([{"x": torch.zeros(3)}])).n_zero == 3


def test_the_smallest_kept_score() -> None:
    scores = {"x": torch.tensor([3.0, 1.0, 2.0]), "y": torch.tensor([0.5, 9.0])}
    assert smallest_kept(scores, Masks({"x": bits(1, 0, 1), "y": bits(0, 1)})) == 2.0
    assert smallest_kept(scores, Masks({"x": bits(0, 0, 0), "y": bits(0, 1)})) == 9.0
    assert smallest_kept(scores, Masks({"x": bits(0, 0, 0), "y": bits(0, 0)})) is None


def test_a_description_of_guided_scores_is_json_and_adds_up() -> None:
    scores = score(make_mlp(), vectors(), TeacherGuided(make_mlp(1)))
    masks = allocate(scores, sparsity=0.6)
    found = json.loads(json.dumps(describe_scores(scores, masks, Global()), allow_nan=False))
    histogram = found["score_histogram"]
    n = masks.numel
    assert sum(histogram["counts"]) + histogram["n_zero"] == n
    assert set(histogram["terms"]) == {"task", "teacher"}
    assert all(sum(term["counts"]) + term["n_zero"] == n for term in histogram["terms"].values())
    threshold = 10 ** histogram["log10_threshold"]
    kept = sum(int((t > threshold * 0.999999).sum()) for t in scores.values())
    assert kept == masks.n_keep
    assert -1 <= found["agreement"]["spearman"] <= 1
    assert 0 < found["agreement"]["mask_overlap"] <= 1
    assert [layer["name"] for layer in found["agreement"]["layers"]] == list(masks)


def test_a_description_of_plain_scores_has_no_terms() -> None:
    scores = score(make_mlp(), None, Magnitude())
    found = describe_scores(scores, allocate(scores, sparsity=0.5, scope=Layerwise()), Layerwise())
    assert found["agreement"] is None
    assert found["score_histogram"]["terms"] is None
    assert found["score_histogram"]["log10_threshold"] is None


def test_scores_may_be_negative_or_all_zero() -> None:
    for scores in ({"x": -torch.arange(8.0)}, {"x": torch.zeros(8)}):
        masks = allocate(scores, sparsity=0.5)
        found = describe_scores(scores, masks, Global())
        assert found["score_histogram"]["log10_threshold"] is None
        json.dumps(found, allow_nan=False)


def test_a_cut_that_leaves_nothing_is_described_too() -> None:
    """Three weights at 90 % round to a loss of all three."""
    student, teacher = nn.Linear(1, 3), nn.Linear(1, 3)
    scores = score(student, [(torch.ones(2, 1), torch.tensor([0, 1]))], TeacherGuided(teacher))
    with pytest.warns(EmptiedLayerWarning):
        masks = allocate(scores, sparsity=0.9)
    assert masks.n_keep == 0
    assert describe_scores(scores, masks, Global())["agreement"] is None


def test_an_emptied_layer_is_no_news_in_a_comparison() -> None:
    scores = score(make_cnn(), images(), TeacherGuided(make_cnn(1)))
    with pytest.warns(EmptiedLayerWarning):
        masks = allocate(scores, sparsity=0.99)
    describe_scores(scores, masks, Global())  # warnings are errors here


def test_a_sample_of_many_scores_is_not_one_corner_of_each_kernel() -> None:
    torch.manual_seed(0)
    a, b = torch.rand(1_020, 1_000, 3, 3), torch.rand(1_020, 1_000, 3, 3)
    b[:, :, 0, 0] = a[:, :, 0, 0]
    assert rank_correlation(a, b) == pytest.approx(1 / 9, abs=0.01)
    assert ranking_agreement({"w": a}, {"w": b})["spearman"] == pytest.approx(1 / 9, abs=0.01)


def test_halves_of_a_loader_that_shuffles_leave_the_callers_random_numbers() -> None:
    loader = DataLoader(TensorDataset(*vectors()[0]), batch_size=4, shuffle=True)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    split_half_overlap(make_mlp(), loader, Magnitude(), sparsity=0.5)
    assert torch.equal(torch.rand(1), expected)
