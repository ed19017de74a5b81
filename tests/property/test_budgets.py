"""Scopes that set densities by shape, depth or hand: exact totals, nested masks, and cases done by hand."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import fields
from math import prod
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from reference import allocate as oracle
from secateur.allocate import (
    ERK,
    SCOPES,
    AbstractBudgets,
    AbstractScope,
    Global,
    Layerwise,
    PerTensor,
    SmartRatios,
    UniformPlus,
    allocate,
)
from secateur.allocate.apportion import Claim, apportion
from secateur.counts import n_keep, n_prune
from secateur.errors import EmptiedLayerWarning, InvalidArgument, ScoreError
from secateur.masks import Masks
from secateur.models import build_model
from secateur.targets import select_targets

sparsities = st.one_of(st.floats(0, 1, exclude_max=True), st.integers(0, 99).map(lambda k: k / 100))
BUDGETS = [
    ERK(),
    UniformPlus(),
    UniformPlus(last_density=0.0),
    SmartRatios(),
    SmartRatios(linear_density=0.05, over_square=True),
]


@st.composite
def rankings(draw: st.DrawFn) -> dict[str, Tensor]:
    """Convolutions and linear layers of odd shapes, with many ties among their scores."""
    side = st.integers(1, 3)
    shapes = st.one_of(st.tuples(side, side), st.tuples(side, side, side), st.tuples(side, side, side, side))
    scores: dict[str, Tensor] = {}
    for place, shape in enumerate(draw(st.lists(shapes, min_size=1, max_size=6))):
        picks = draw(st.lists(st.integers(-2, 3), min_size=prod(shape), max_size=prod(shape)))
        scores[f"t{place}"] = torch.tensor(picks, dtype=torch.float32).view(shape)
    return scores


def shapes_of(scores: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in scores.items()}


def total(scores: Mapping[str, Tensor]) -> int:
    return sum(t.numel() for t in scores.values())


def attempt(scores: Mapping[str, Tensor], sparsity: float, scope: AbstractScope) -> Masks | None:
    """Masks, or None where the scope refuses the sparsity."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EmptiedLayerWarning)
        try:
            return allocate(scores, sparsity=sparsity, scope=scope)
        except InvalidArgument:
            return None


# Splitting a total


@given(data=st.data())
def test_a_total_is_split_as_if_given_away_in_turn(data: st.DataObject) -> None:
    names = [f"t{place}" for place in range(data.draw(st.integers(1, 6)))]
    shares = {name: data.draw(st.integers(1, 6)) for name in names}  # small ones, so that many tie
    highs = {name: data.draw(st.integers(0, 30)) for name in names}
    lows = {name: data.draw(st.integers(0, highs[name])) for name in names}
    n = data.draw(st.integers(sum(lows.values()), sum(highs.values())))
    claims = {name: Claim(shares[name], lows[name], highs[name]) for name in names}
    assert apportion(claims, n) == oracle.in_turn(shares, lows, highs, n)


def test_two_that_are_rounded_up_at_once_go_in_order() -> None:
    """At level 1/2 a rounds up to 1 and b, with 3/2, to 2; with 2 to give in all, a comes first."""
    assert apportion({"a": Claim(1, 0, 9), "b": Claim(3, 0, 9)}, 2) == {"a": 1, "b": 1}
    assert apportion({"b": Claim(3, 0, 9), "a": Claim(1, 0, 9)}, 2) == {"b": 2, "a": 0}
    assert apportion({"a": Claim(1, 0, 9), "b": Claim(1, 0, 9)}, 3) == {"a": 2, "b": 1}
    assert apportion({}, 0) == {}
    assert apportion({"a": Claim(0, 0, 0), "b": Claim(2, 0, 5)}, 4) == {"a": 0, "b": 4}


def test_shares_far_apart_are_settled_exactly() -> None:
    claims = {"huge": Claim(10**18, 0, 10**9), "a": Claim(1, 0, 5), "b": Claim(1, 0, 5)}
    assert apportion(claims, 10**9 + 3) == {"huge": 10**9, "a": 2, "b": 1}


# What all of them promise


@given(scores=rankings(), sparsity=sparsities, scope=st.sampled_from(BUDGETS))
def test_budgets_are_met_exactly_by_the_highest_scores(
    scores: dict[str, Tensor], sparsity: float, scope: AbstractBudgets
) -> None:
    masks = attempt(scores, sparsity, scope)
    if masks is None:
        return
    assert list(masks) == list(scores)
    assert masks.n_prune == n_prune(total(scores), sparsity)
    kept = scope.n_keep(shapes_of(scores), sparsity)
    for name, tensor in scores.items():
        lost = tensor.numel() - kept[name]
        assert 0 <= lost <= tensor.numel()
        assert masks[name].reshape(-1).tolist() == oracle.lowest({name: tensor}, lost)[name]


@given(scores=rankings(), pair=st.tuples(sparsities, sparsities), scope=st.sampled_from(BUDGETS))
def test_more_sparsity_never_brings_a_weight_back(
    scores: dict[str, Tensor], pair: tuple[float, float], scope: AbstractBudgets
) -> None:
    low, high = sorted(pair)
    milder, harder = attempt(scores, low, scope), attempt(scores, high, scope)
    if harder is not None:
        assert milder is not None, "what can be met can be met at a lower sparsity"
        assert (milder & harder) == harder


@pytest.mark.parametrize("scope", [*BUDGETS, PerTensor({"a": 0.0})], ids=repr)
def test_nothing_to_remove(scope: AbstractScope) -> None:
    scores = {"a": torch.rand(3, 4, 1, 1), "b": torch.rand(5, 2), "c": torch.rand(2, 2)}
    assert allocate(scores, sparsity=0.0, scope=scope).n_prune == 0


@pytest.mark.parametrize("scope", [*BUDGETS, PerTensor({"a": 0.5}), Layerwise()], ids=repr)
def test_scores_that_are_not_numbers_are_refused_by_name(scope: AbstractScope) -> None:
    scores = {"a": torch.rand(4, 4, 1, 1), "b": torch.full((4, 4, 1, 1), float("nan")), "c": torch.rand(4, 4)}
    with pytest.raises(ScoreError, match="scores of 'b' are NaN"):
        allocate(scores, sparsity=0.5, scope=scope)


@pytest.mark.parametrize("key", SCOPES)
def test_a_scope_has_its_docs_row_with_its_options(key: str) -> None:
    methods = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
    kind: Any = SCOPES[key]
    row = next(
        (line for line in methods.splitlines() if line.startswith(f"| `{key}` | [`{kind.__name__}`]")), ""
    )
    assert row, f"add a row for `{key}` to the scopes in docs/methods.md"
    assert all(f"`{field.name}" in row for field in fields(kind))


# ERK


def test_erk_by_hand() -> None:
    """Sides add up to 6, 9 and 12, of 37 to keep: 8.2 of 8 for a, so it is dense; 29 · 9/21, 29 · 12/21."""
    shapes = {"a": (2, 4), "b": (3, 6), "c": (2, 4, 6)}
    assert ERK().n_keep(shapes, 0.5) == {"a": 8, "b": 12, "c": 17}
    assert ERK().n_keep(shapes, 0.8) == {"a": 3, "b": 5, "c": 7}  # 15 · 6/27, 15 · 9/27, 15 · 12/27


@pytest.mark.parametrize("name", ["resnet20", "vgg16-bn"])
@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.98])
def test_erk_densities_are_those_of_the_authors_procedure(name: str, sparsity: float) -> None:
    with torch.device("meta"):
        network = build_model(name, num_classes=10, in_channels=3)
    shapes = {key: tuple(p.shape) for key, p in select_targets(network).items()}
    sizes = {key: prod(shape) for key, shape in shapes.items()}
    kept = ERK().n_keep(shapes, sparsity)
    assert sum(kept.values()) == n_keep(sum(sizes.values()), sparsity)
    for key, density in oracle.erk_densities(shapes, 1 - sparsity).items():
        assert abs(kept[key] - density * sizes[key]) < 1


# Uniform with exceptions


def test_uniform_plus_by_hand() -> None:
    """The first 36 stay; of the other 64, 64/164 of each layer; at 75 %, 14 are left and the last keeps 4."""
    shapes = {"first": (4, 1, 3, 3), "middle": (4, 4, 3, 3), "last": (10, 2)}
    assert UniformPlus().n_keep(shapes, 0.5) == {"first": 36, "middle": 56, "last": 8}
    assert UniformPlus().n_keep(shapes, 0.75) == {"first": 36, "middle": 10, "last": 4}
    assert UniformPlus(last_density=0.0).n_keep(shapes, 0.75) == {"first": 36, "middle": 12, "last": 2}
    with pytest.raises(
        InvalidArgument, match=r"at least 40 weights in first \(all\) and last .* sparsity=0\.9 leaves 20\."
    ):
        UniformPlus().n_keep(shapes, 0.9)


# Smart ratios


SMART = {"a": (4, 1, 3, 3), "b": (4, 4, 3, 3), "c": (2, 4, 3, 3), "fc": (10, 2)}


def test_smart_ratios_by_hand() -> None:
    """Of 27, fc keeps 0.3 · 20; 21 are split 36·20 : 144·12 : 72·6, so 5.25, 12.6, 3.15."""
    assert SmartRatios().n_keep(SMART, 0.9) == {"a": 5, "b": 13, "c": 3, "fc": 6}


def test_smart_ratios_over_the_square_by_hand() -> None:
    """720/1 : 1728/4 : 432/9; 12.5/720 = 7.5/432, so a and b would round up at once, and a comes first."""
    assert SmartRatios(over_square=True).n_keep(SMART, 0.9) == {"a": 13, "b": 7, "c": 1, "fc": 6}


def test_linear_layers_keep_more_only_where_convolutions_are_full() -> None:
    assert SmartRatios().n_keep(SMART, 0.1) == {"a": 36, "b": 144, "c": 59, "fc": 6}
    assert SmartRatios().n_keep(SMART, 0.03) == {"a": 36, "b": 144, "c": 72, "fc": 12}
    with pytest.raises(
        InvalidArgument, match=r"keeps 6 weights in fc .* sparsity=0\.98 leaves 5\. Lower one"
    ):
        SmartRatios().n_keep(SMART, 0.98)


# Sparsities by hand


@given(scores=rankings(), sparsity=sparsities, own=sparsities)
def test_named_tensors_get_theirs_and_the_rest_competes(
    scores: dict[str, Tensor], sparsity: float, own: float
) -> None:
    scope = PerTensor({"t[02]": own})
    named = {name: t for name, t in scores.items() if name in ("t0", "t2")}
    rest = {name: t for name, t in scores.items() if name not in named}
    lost = {name: n_prune(t.numel(), own) for name, t in named.items()}
    left = n_prune(total(scores), sparsity) - sum(lost.values())
    masks = attempt(scores, sparsity, scope)
    assert (masks is not None) == (0 <= left <= total(rest))
    if masks is not None:
        expected = oracle.lowest(rest, left)
        for name, t in named.items():
            expected |= oracle.lowest({name: t}, lost[name])
        assert list(masks) == list(scores)
        assert {name: mask.reshape(-1).tolist() for name, mask in masks.items()} == expected


def test_the_first_pattern_that_matches_counts() -> None:
    scores = {"conv1.weight": torch.rand(10), "conv2.weight": torch.rand(20), "fc.weight": torch.rand(10)}
    scope = PerTensor({"conv1.*": 0.0, "conv*": 0.5, "*": 0.8})
    masks = allocate(scores, sparsity=18 / 40, scope=scope)
    assert [int((~mask).sum()) for mask in masks.values()] == [0, 10, 8]


def test_the_densities_of_other_masks_can_be_asked_for() -> None:
    scores = {"a": torch.rand(7, 9), "b": torch.rand(11, 13), "c": torch.rand(17)}
    model = allocate(scores, sparsity=0.9)
    scope = PerTensor({name: 1 - model.density(name) for name in model})
    assert allocate(scores, sparsity=0.9, scope=scope) == model


def test_sparsities_by_hand_that_cannot_be_met_are_refused() -> None:
    scores = {"a": torch.rand(10), "b": torch.rand(30)}
    for asked, by_hand, allowed in (
        (0.1, {"a": 0.8}, r"room for 8 to 38\. Ask for a sparsity of 0\.2 to 0\.95,"),
        (0.99, {"a": 0.5}, r"room for 5 to 35\. Ask for a sparsity of 0\.125 to 0\.875,"),
        (0.9, {"a": 0.5, "*": 0.1}, r"room for 8 to 8\. Ask for a sparsity of 0\.2,"),
    ):
        with pytest.raises(InvalidArgument, match=allowed):
            allocate(scores, sparsity=asked, scope=PerTensor(by_hand))
    with pytest.raises(InvalidArgument, match=r"'conv\*' of PerTensor matches no tensor\. There are: a, b\."):
        allocate(scores, sparsity=0.5, scope=PerTensor({"a": 0.5, "conv*": 0.5}))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: PerTensor({}), "at least one pattern"),
        (lambda: PerTensor({"fc*": 1.0}), r"sparsity of 'fc\*' must be in \[0, 1\)"),
        (lambda: UniformPlus(last_density=20), r"last_density must be in \[0, 1\].* mean 0\.2"),
        (lambda: SmartRatios(linear_density=-0.1), "linear_density must be in"),
    ],
)
def test_bad_options(make: Any, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        make()


def test_scopes_are_values() -> None:
    assert PerTensor({"a": 0.5}) == PerTensor({"a": 0.5}) != PerTensor({"a": 0.6})
    assert len({PerTensor({"a": 0.5}), PerTensor({"a": 0.5}), ERK(), ERK(), Global()}) == 3
