"""Iterative, gradual and dynamic pruning against cases worked out by hand and slow, plain rules."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.allocate import Global
from secateur.errors import InvalidArgument
from secateur.masks import Masks, apply_masks
from secateur.naming import Named
from secateur.schedules import cubic_sparsity
from secateur.scores import AbstractCriterion, Inverted, Magnitude, Random, ScoreInputs
from secateur.strategies import (
    SET,
    Colt,
    EntropyGuided,
    Gradual,
    IterativeMagnitude,
    RigL,
)
from secateur.strategies.dynamic import swap
from strategy_helpers import played, problem_of, smallest_gone, thousand

# Iterative magnitude pruning


def test_densities_of_iterative_pruning_are_geometric() -> None:
    """0.1^(1/3) = 0.46416 and 0.1^(2/3) = 0.21544 of 1,000 weights stay."""
    student = thousand()
    start = student.weight.detach().clone()
    problem = problem_of(student, 0.9, 7)
    n_gone, parts = [], []
    for round_ in IterativeMagnitude(rounds=3).rounds_for(problem):
        assert round_.masks is not None
        assert round_.schedule == round_.parts
        assert round_.weights is None
        apply_masks(student, round_.masks)
        n_gone.append(round_.masks.n_prune)
        assert smallest_gone(n_gone[-1], student, start)
        parts.append(round_.parts)
    assert n_gone == [536, 785, 900]
    assert parts == [2, 2, 3]


def test_one_schedule_or_one_a_round() -> None:
    def schedules(**options: Any) -> list[tuple[int, int | None, bool]]:
        strategy = IterativeMagnitude(rounds=3, **options)
        rounds = strategy.rounds_for(problem_of(thousand(), 0.9, 9))
        return [(r.parts, r.schedule, r.weights is not None) for r in rounds]

    assert schedules(rewind="lr") == [(3, 3, False)] * 3
    assert schedules(rewind="weights") == [(3, 3, False), (3, 3, True), (3, 3, True)]
    assert schedules(rewind="none") == [(3, 9, False), (3, None, False), (3, None, False)]
    assert schedules(train_first=True) == [(2, 2, False), (2, 2, False), (2, 2, False), (3, 3, False)]


def test_a_lottery_ticket_is_the_start_under_the_mask_of_what_was_trained() -> None:
    """As from initialisation: trained densely, cut, rewound."""
    student = thousand()
    problem = problem_of(student, 0.5, 2)
    rounds = IterativeMagnitude(rounds=1, rewind="weights", train_first=True).rounds_for(problem)
    first = next(rounds)
    assert first.masks is None
    with torch.no_grad():
        student.weight.copy_(1001 - student.weight)  # the training turns the order round
    second = next(rounds)
    assert second.masks is not None
    assert torch.equal(second.masks["weight"], problem.start["weight"] <= 500)
    assert second.weights is problem.start


@dataclass
class Fickle(AbstractCriterion):
    """Draws other scores at every call."""

    calls: int = 0

    def __call__(self, inputs: ScoreInputs) -> Named:
        self.calls += 1
        return Random(seed=self.calls)(inputs)


@pytest.mark.parametrize(
    ("strategy", "n_gone"),
    [
        (IterativeMagnitude(criterion=Fickle(), rounds=4), [438, 684, 822, 900]),
        (Gradual(criterion=Fickle(), updates=3, end=0.5), [633, 867, 900]),
    ],
    ids=["imp", "gradual"],
)
def test_what_is_gone_stays_gone_whatever_the_criterion_says(
    strategy: IterativeMagnitude | Gradual, n_gone: list[int]
) -> None:
    student = thousand()
    rounds = played(strategy.rounds_for(problem_of(student, 0.9, 20)), student)
    masks = [round_.masks for round_ in rounds if round_.masks is not None]
    assert [m.n_prune for m in masks] == n_gone
    assert all(a & b == b for a, b in pairwise(masks))


# Gradual pruning


def test_the_cubic_schedule() -> None:
    steps = [cubic_sparsity(k / 4, initial=0.0, final=0.8) for k in range(5)]
    assert steps == pytest.approx([0, 0.4625, 0.7, 0.7875, 0.8])
    assert cubic_sparsity(0.5, initial=0.5, final=0.9) == pytest.approx(0.85)
    assert cubic_sparsity(1, initial=0.3, final=0.9) == 0.9


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"updates": 4, "begin": 0.25, "end": 0.75},
            [(6, 16, 0), (2, None, 463), (2, None, 700), (2, None, 788), (4, None, 800)],
        ),
        ({"updates": 2, "end": 0.5}, [(4, 16, 0), (4, None, 700), (8, None, 800)]),
        (
            {"updates": 1, "begin": 0.5, "end": 0.75, "initial": 0.2},
            [(8, 16, 0), (4, None, 200), (4, None, 800)],
        ),
        ({"updates": 1, "end": 0.75, "initial": 0.2}, [(12, 16, 200), (4, None, 800)]),
        ({"updates": 2, "end": 0.5, "initial": 0.8}, [(4, 16, 800), (4, None, 800), (8, None, 800)]),
    ],
)
def test_gradual_pruning_follows_it(
    options: dict[str, Any], expected: list[tuple[int, int | None, int]]
) -> None:
    student = thousand()
    start = student.weight.detach().clone()
    found = []
    for round_ in Gradual(**options).rounds_for(problem_of(student, 0.8, 16)):
        if round_.masks is not None:
            apply_masks(student, round_.masks)
        n_gone = 0 if round_.masks is None else round_.masks.n_prune
        assert smallest_gone(n_gone, student, start)
        found.append((round_.parts, round_.schedule, n_gone))
    assert found == expected


@given(st.integers(1, 40), st.floats(0, 0.9), st.floats(0.01, 0.999))
def test_no_update_of_gradual_pruning_is_lost(updates: int, begin: float, end: float) -> None:
    if end <= begin + 1e-3:
        return
    strategy = Gradual(updates=updates, begin=begin, end=end)
    parts = strategy.least_parts(0.5)
    rounds = list(strategy.rounds_for(problem_of(nn.Linear(20, 20, bias=False), 0.5, parts)))
    assert len(rounds) == updates + 1
    assert min(round_.parts for round_ in rounds) >= 1
    assert sum(round_.parts for round_ in rounds) == parts


# Dynamic sparse training


def test_the_smallest_are_swapped_for_where_growth_is_highest() -> None:
    masks = Masks({"w": torch.tensor([[True, True, True, True], [False, False, False, True]])})
    weights = {"w": torch.tensor([[-4.0, 0.1, 3.0, -0.2], [0.0, 0.0, 0.0, 2.0]])}
    growth = {"w": torch.tensor([[9.0, 5.0, 9.0, 1.0], [2.0, 0.0, 7.0, 9.0]])}

    def after(fraction: float) -> list[int]:
        return swap(masks, weights, growth, fraction=fraction)["w"].flatten().nonzero().flatten().tolist()

    assert after(0.0) == after(0.19) == [0, 1, 2, 3, 7]
    # one goes, 0.1 at place 1; place 6 grows
    assert after(0.2) == [0, 2, 3, 6, 7]
    # 0.1 and 0.2 go, places 1 and 3; place 6 grows, and place 1 again before place 4
    assert after(0.4) == [0, 1, 2, 6, 7]
    # all go, and the five places of highest growth stay
    assert after(1.0) == [0, 1, 2, 6, 7]


@given(st.integers(0, 2**31), st.floats(0, 1))
def test_counts_stay_in_every_tensor(seed: int, fraction: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    shapes = [(3, 4), (5,), (2, 2, 3)]
    masks = Masks({str(i): torch.rand(shape, generator=draw) < 0.4 for i, shape in enumerate(shapes)})
    # few different values, so that there are ties
    weights = {n: torch.randint(-2, 3, m.shape, generator=draw).float() * m for n, m in masks.items()}
    growth = {n: torch.randint(0, 3, m.shape, generator=draw).float() for n, m in masks.items()}
    found = swap(masks, weights, growth, fraction=fraction)
    for name, mask in masks.items():
        n_drop = int(int(mask.sum()) * fraction)
        flat, size = mask.flatten().tolist(), weights[name].flatten().abs().tolist()
        active = sorted((i for i, kept in enumerate(flat) if kept), key=lambda i: (size[i], i))
        kept = set(active[n_drop:])
        rate = growth[name].flatten().tolist()
        free = sorted((i for i in range(len(flat)) if i not in kept), key=lambda i: (-rate[i], i))
        expected = kept | set(free[:n_drop])
        assert set(found[name].flatten().nonzero().flatten().tolist()) == expected
        assert int(found[name].sum()) == int(mask.sum())


def test_rigl_grows_by_the_dense_gradient_of_the_masked_network() -> None:
    """Two batches of unequal size: the gradient is that of the mean over samples."""
    student = nn.Linear(3, 2, bias=False)
    x, y = torch.randn(7, 3), torch.randint(0, 2, (7,))
    masks = Masks({"weight": torch.tensor([[True, False, False], [False, False, True]])})
    apply_masks(student, masks)
    problem = problem_of(student, 0.5, 8, calibration=[(x[:5], y[:5]), (x[5:], y[5:])])
    growth = RigL().growth(problem, masks, 0)
    F.cross_entropy(student(x), y).backward()
    gradient = student.weight.grad
    assert gradient is not None
    assert torch.allclose(growth["weight"], gradient.abs(), atol=1e-6)
    assert bool((growth["weight"][~masks["weight"]] > 0).all())


def test_set_grows_at_random_by_seed_and_update() -> None:
    masks = Masks({"weight": torch.ones(20, 50, dtype=torch.bool)})

    def growth(seed: int, update: int) -> Tensor:
        return SET().growth(problem_of(thousand(), 0.5, 8, seed=seed), masks, update)["weight"]

    assert torch.equal(growth(0, 1), growth(0, 1))
    assert len({float(growth(seed, update).sum()) for seed in range(3) for update in range(3)}) == 9
    assert 0.45 < float(growth(0, 0).mean()) < 0.55


def test_updates_are_evenly_spaced_and_drop_less_and_less() -> None:
    """Three updates before 3/4 of 16 parts: at parts 3, 6 and 9 of 12."""
    student = thousand()
    strategy = SET(scope=Global(), updates=3, drop=0.4)
    assert strategy.least_parts(0.5) == 6
    rounds = played(strategy.rounds_for(problem_of(student, 0.5, 16)), student)
    assert [(r.parts, r.schedule) for r in rounds] == [(3, 16), (3, None), (3, None), (7, None)]
    masks = [r.masks["weight"] for r in rounds if r.masks is not None]
    assert all(int(mask.sum()) == 500 for mask in masks)
    dropped = [int(0.4 * 0.5 * (1 + math.cos(math.pi * t / 12)) * 500) for t in (3, 6, 9)]
    assert dropped == [170, 100, 29]
    for before, after, n in zip(masks, masks[1:], dropped, strict=False):
        # of those that are free to grow, as many as are dropped; some are grown again at once
        moved = int((before & ~after).sum())
        assert 0.5 * n < moved <= n


# Options


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IterativeMagnitude(rounds=0), "rounds must be at least 1"),
        (lambda: IterativeMagnitude(rewind="both"), "rewind must be lr, weights or none, got 'both'"),  # type: ignore[arg-type]
        (lambda: Gradual(updates=0), "updates must be at least 1"),
        (lambda: Gradual(begin=0.5, end=0.5), r"end must be above begin=0\.5"),
        (lambda: Gradual(end=1.0), r"end must be in \[0, 1\)"),
        (lambda: Gradual(initial=1.0), "initial must be in"),
        (lambda: RigL(drop=1.5), "drop must be in"),
        (lambda: RigL(end=0.0), "end must be above 0"),
        (lambda: SET(updates=0), "updates must be at least 1"),
        (lambda: EntropyGuided(fraction=0.0), "fraction must be above 0"),
        (lambda: EntropyGuided(fraction=1.0), "fraction must be in"),
        (lambda: EntropyGuided(min_density=2.0), "min_density must be in"),
        (lambda: Colt(fraction=0.0), "fraction must be above 0"),
        (lambda: Colt(final=1.0), "final must be in"),
        (lambda: Colt(partners=1), "partners must be at least 2"),
    ],
)
def test_options_are_checked(make: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        make()


def test_an_initial_sparsity_above_the_one_asked_for_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"initial=0\.5 is above the sparsity asked for, 0\.4"):
        list(Gradual(initial=0.5).rounds_for(problem_of(thousand(), 0.4, 20)))


def test_the_criterion_of_each_cut_is_ones_own() -> None:
    """Any criterion may take the place of magnitude: here one that keeps the smallest."""
    student = thousand()
    start = student.weight.detach().clone()
    for strategy in (
        IterativeMagnitude(criterion=Inverted(Magnitude()), rounds=2),
        Gradual(Inverted(Magnitude()), updates=2),
    ):
        student = copy.deepcopy(thousand())
        with torch.no_grad():
            student.weight.copy_(start)
        rounds = played(strategy.rounds_for(problem_of(student, 0.5, 8)), student)
        assert rounds[-1].masks is not None
        assert torch.equal(rounds[-1].masks["weight"], start <= 500)
