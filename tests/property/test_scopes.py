"""Scopes: exact counts, respected floors, and masks that only shrink."""

from __future__ import annotations

import warnings

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from reference import allocate as oracle
from secateur.allocate import Global, Layerwise, allocate
from secateur.counts import n_floor, n_prune
from secateur.errors import EmptiedLayerWarning, InvalidArgument, ScoreError
from secateur.masks import Masks

sparsities = st.one_of(st.floats(0, 1, exclude_max=True), st.integers(0, 99).map(lambda k: k / 100))


@st.composite
def rankings(draw: st.DrawFn) -> dict[str, Tensor]:
    """A few tensors of very different scales, many ties among them."""
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=5))
    scores: dict[str, Tensor] = {}
    for place, n in enumerate(sizes):
        scale = draw(st.sampled_from([0.0, 1.0, 10.0]))
        picks = draw(st.lists(st.integers(-2, 3), min_size=n, max_size=n))
        scores[f"t{place}"] = scale * torch.tensor(picks, dtype=torch.float32)
    return scores


def quietly(scores: dict[str, Tensor], sparsity: float, scope: Global | Layerwise | None = None) -> Masks:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EmptiedLayerWarning)
        return allocate(scores, sparsity=sparsity, scope=scope)


def as_lists(masks: Masks) -> dict[str, list[bool]]:
    return {name: mask.reshape(-1).tolist() for name, mask in masks.items()}


def total(scores: dict[str, Tensor]) -> int:
    return sum(t.numel() for t in scores.values())


@given(scores=rankings(), sparsity=sparsities)
def test_global_removes_exactly_the_lowest(scores: dict[str, Tensor], sparsity: float) -> None:
    masks = quietly(scores, sparsity)
    n = n_prune(total(scores), sparsity)
    assert masks.n_prune == n
    assert list(masks) == list(scores)
    assert as_lists(masks) == oracle.lowest(scores, n)


@given(scores=rankings(), sparsity=sparsities)
def test_layerwise_removes_exactly_the_lowest_of_each(scores: dict[str, Tensor], sparsity: float) -> None:
    masks = quietly(scores, sparsity, Layerwise())
    for name, tensor in scores.items():
        n = n_prune(tensor.numel(), sparsity)
        assert int((~masks[name]).sum()) == n
        assert masks[name].reshape(-1).tolist() == oracle.lowest({name: tensor}, n)[name]


@given(scores=rankings(), sparsity=sparsities, min_density=st.floats(0, 0.6))
def test_floors_hold_and_the_total_stays_exact(
    scores: dict[str, Tensor], sparsity: float, min_density: float
) -> None:
    n = n_prune(total(scores), sparsity)
    floors = {name: n_floor(t.numel(), min_density) for name, t in scores.items()}
    scope = Global(min_density=min_density)
    if sum(floors.values()) > total(scores) - n:
        with pytest.raises(InvalidArgument, match=r"min_density=.* keeps at least .* Lower one of them"):
            allocate(scores, sparsity=sparsity, scope=scope)
        return
    masks = quietly(scores, sparsity, scope)
    assert masks.n_prune == n
    assert all(int(masks[name].sum()) >= floors[name] for name in scores)
    assert list(masks) == list(scores)
    assert as_lists(masks) == oracle.with_floors(scores, n, floors)


@given(
    scores=rankings(),
    pair=st.tuples(sparsities, sparsities),
    scope=st.sampled_from([Global(), Layerwise()]),
)
def test_more_sparsity_never_brings_a_weight_back(
    scores: dict[str, Tensor], pair: tuple[float, float], scope: Global | Layerwise
) -> None:
    low, high = sorted(pair)
    milder, harder = quietly(scores, low, scope), quietly(scores, high, scope)
    assert (milder & harder) == harder


@given(scores=rankings(), sparsity=sparsities)
def test_scaling_all_scores_by_a_power_of_two_changes_nothing(
    scores: dict[str, Tensor], sparsity: float
) -> None:
    scaled = {name: 0.25 * t for name, t in scores.items()}
    assert quietly(scaled, sparsity) == quietly(scores, sparsity)


def test_the_default_scope_is_global() -> None:
    scores = {"a": torch.arange(10.0), "b": 5 + torch.arange(10.0)}
    assert allocate(scores, sparsity=0.5) == allocate(scores, sparsity=0.5, scope=Global())
    assert allocate(scores, sparsity=0.5) != allocate(scores, sparsity=0.5, scope=Layerwise())


def test_protecting_one_tensor_can_starve_the_next() -> None:
    """At first only `low` is below its floor; what it keeps then costs `middle` more than its own."""
    scores = {"low": torch.arange(10.0), "middle": 6.5 + torch.arange(10.0), "high": 100 + torch.arange(10.0)}
    with pytest.warns(EmptiedLayerWarning):
        plain = allocate(scores, sparsity=0.5)
    assert [int(mask.sum()) for mask in plain.values()] == [0, 5, 10]
    masks = allocate(scores, sparsity=0.5, scope=Global(min_density=0.4))
    assert [int(mask.sum()) for mask in masks.values()] == [4, 4, 7]


def test_a_floor_of_nothing_rounds_up_to_one_weight() -> None:
    scores = {"low": torch.zeros(4), "high": torch.ones(16)}
    masks = allocate(scores, sparsity=0.5, scope=Global(min_density=1e-9))
    assert [int(mask.sum()) for mask in masks.values()] == [1, 9]


def test_an_emptied_tensor_is_warned_about_by_name() -> None:
    scores = {"low.weight": torch.zeros(4), "high.weight": torch.ones(4)}
    with pytest.warns(EmptiedLayerWarning, match=r"sparsity=0\.5 leaves no weight in low\.weight\. Guard"):
        masks = allocate(scores, sparsity=0.5)
    assert masks.n_prune == 4
    assert allocate(scores, sparsity=0.5, scope=Layerwise()).density("low.weight") == 0.5


def test_layerwise_can_empty_a_tensor_only_by_rounding_and_says_so() -> None:
    scores = {"tiny": torch.rand(4), "large": torch.rand(100)}
    with pytest.warns(EmptiedLayerWarning, match="no weight in tiny"):
        masks = allocate(scores, sparsity=0.9, scope=Layerwise())
    assert [int((~mask).sum()) for mask in masks.values()] == [4, 90]


@pytest.mark.parametrize("scope", [Global(), Global(min_density=0.2), Layerwise()], ids=repr)
def test_nothing_to_remove(scope: Global | Layerwise) -> None:
    masks = allocate({"a": torch.rand(3, 4), "b": torch.rand(5)}, sparsity=0.0, scope=scope)
    assert masks.n_prune == 0
    assert masks.n_keep == 17


def test_bad_arguments() -> None:
    scores = {"a": torch.rand(4)}
    for sparsity in (1.0, -0.1, 50, float("nan")):
        with pytest.raises(InvalidArgument, match=r"sparsity must be in \[0, 1\)"):
            allocate(scores, sparsity=sparsity)
    with pytest.raises(InvalidArgument, match=r"min_density must be in \[0, 1\]"):
        Global(min_density=1.1)
    with pytest.raises(ScoreError, match="no scores"):
        allocate({}, sparsity=0.5)
