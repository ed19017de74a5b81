"""What the controls promise, and that criteria multiply with the weights that a staged cut gives them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from helpers import build, images, make_cnn, make_mlp, same_bits, vectors
from secateur.allocate import allocate
from secateur.errors import ScoreError
from secateur.scores import (
    CRITERIA,
    AbstractCriterion,
    GuidedScores,
    Inverted,
    Lamp,
    Magnitude,
    Random,
    Shuffled,
    TaskGradient,
    TeacherGuided,
    score,
)
from secateur.testing import Check, parametrize_criteria


def shuffled(teacher: nn.Module) -> AbstractCriterion:
    return Shuffled(TeacherGuided(teacher), seed=3)


def inverted(teacher: nn.Module) -> AbstractCriterion:
    return Inverted(TeacherGuided(teacher))


@parametrize_criteria(shuffled, Shuffled(Lamp()), Shuffled(TaskGradient()))
def test_a_shuffled_criterion_keeps_the_public_contract(criterion: AbstractCriterion, check: Check) -> None:
    check(criterion)


@parametrize_criteria(inverted, Inverted(Magnitude()))
def test_an_inverted_criterion_keeps_all_of_the_contract_but_the_direction(
    criterion: AbstractCriterion, check: Check
) -> None:
    if check.__name__ == "higher_means_keep":
        with pytest.raises(AssertionError, match="higher scores for weights that are needed"):
            check(criterion)
    else:
        check(criterion)


@pytest.mark.parametrize("key", CRITERIA)
def test_shuffling_moves_scores_within_their_tensor_only(key: str) -> None:
    criterion = build(CRITERIA[key], make_cnn(1))
    plain = score(make_cnn(), images(), criterion)
    mixed = score(make_cnn(), images(), Shuffled(criterion))
    for name in plain:
        assert torch.equal(plain[name].flatten().sort().values, mixed[name].flatten().sort().values)
        assert not torch.equal(plain[name], mixed[name])


@pytest.mark.parametrize("criterion", [Magnitude(), Lamp(), TaskGradient()])
def test_a_shuffled_cut_keeps_the_density_of_every_layer(criterion: AbstractCriterion) -> None:
    for sparsity in (0.5, 0.9):
        plain, mixed = (
            allocate(score(make_cnn(), images(), c), sparsity=sparsity)
            for c in (criterion, Shuffled(criterion))
        )
        assert [int(m.sum()) for m in plain.values()] == [int(m.sum()) for m in mixed.values()]
        assert any(not torch.equal(plain[name], mixed[name]) for name in plain)
        assert len({float(plain.density(name)) for name in plain}) > 1


def test_a_shuffle_follows_its_seed() -> None:
    first, again, other = (score(make_mlp(), None, Shuffled(Magnitude(), seed)) for seed in (1, 1, 2))
    assert all(same_bits(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("key", CRITERIA)
def test_inverting_keeps_exactly_what_would_go_first(key: str) -> None:
    """At half sparsity a cut and its inversion share no weight, where no scores are equal."""
    criterion = build(CRITERIA[key], make_cnn(1))
    plain = score(make_cnn(), images(), criterion)
    turned = score(make_cnn(), images(), Inverted(criterion))
    assert all(torch.equal(turned[name], -plain[name]) for name in plain)
    if key == "magnitude":
        kept, other = (allocate(scores, sparsity=0.5) for scores in (plain, turned))
        assert all(torch.equal(kept[name], ~other[name]) for name in kept)


def test_controls_of_guided_scores_are_plain_scores() -> None:
    for control in (Shuffled, Inverted):
        scores = score(make_mlp(), vectors(), control(TeacherGuided(make_mlp(1))))
        assert not isinstance(scores, GuidedScores)
        assert list(scores) == ["0.weight", "2.weight"]


# The weights that scores multiply with


@pytest.mark.parametrize("key", CRITERIA)
def test_the_weights_are_by_default_the_models_own(key: str) -> None:
    student, criterion = make_cnn(), build(CRITERIA[key], make_cnn(1))
    own = {name: p.detach().clone() for name, p in student.named_parameters() if p.ndim > 1}
    expected = score(student, images(), criterion)
    scores = score(student, images(), criterion, weights=own)
    assert all(same_bits(scores[name], expected[name]) for name in expected)


@pytest.mark.parametrize("key", sorted(set(CRITERIA) - {"random"}))
def test_a_masked_weight_is_scored_by_its_original_value(key: str) -> None:
    """So it can win its place back; by its own value, 0, it never could."""
    student, criterion = make_cnn(dropout=0), build(CRITERIA[key], make_cnn(1))
    original = {name: p.detach().clone() for name, p in student.named_parameters() if p.ndim > 1}
    masks = allocate(score(student, None, Random()), sparsity=0.3)
    with torch.no_grad():
        for name, mask in masks.items():
            student.get_parameter(name).mul_(mask)
    masked, free = (score(student, images(), criterion, weights=w) for w in (None, original))
    now, then = (torch.cat([found[name].flatten() for name in masks]) for found in (masked, free))
    kept = torch.cat([mask.flatten() for mask in masks.values()])
    assert float(then[~kept].max()) > float(then[kept].min())
    if key == "wanda":  # which ranks, so that each row has a lowest weight, not one of score 0
        return
    assert bool((now[~kept] == 0).all())
    assert bool((then[~kept] != 0).any())
    if key not in ("lamp", "teacher-curvature"):  # whose scores depend on other weights too
        scale = then[kept].abs().max() / now[kept].abs().max() if key == "synflow" else 1.0
        assert torch.allclose(then[kept], now[kept] * scale, rtol=1e-4, atol=1e-9)


def test_random_scores_have_nothing_to_do_with_weights() -> None:
    scores = score(make_mlp(), None, Random(), weights=dict(make_mlp(1).named_parameters()))
    expected = score(make_mlp(), None, Random())
    assert all(same_bits(scores[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, r"weights holds nothing for '0\.weight', expected \(8, 6\)"),
        ({"0.weight": torch.ones(6, 8)}, r"weights holds \(6, 8\) for '0\.weight'"),
        ({"0.weight": torch.ones(8, 6)}, r"weights holds nothing for '2\.weight'"),
    ],
    ids=["none", "misshapen", "one missing"],
)
def test_weights_that_do_not_fit_are_refused(weights: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ScoreError, match=message):
        score(make_mlp(), None, Magnitude(), weights=weights)
