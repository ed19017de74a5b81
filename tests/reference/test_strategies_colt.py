"""Cyclic overlapping lottery tickets against cases worked out by hand and a slow, plain rule."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur.data import ImageLoader, ImageSplit
from secateur.errors import DataError, TrainingError
from secateur.masks import Masks
from secateur.strategies import (
    Colt,
)
from secateur.strategies.colt import overlap
from strategy_helpers import problem_of

NEVER = torch.iinfo(torch.int64).max


# COLT


def orders_of(*places: list[int]) -> list[Tensor]:
    return [torch.tensor([NEVER if place < 0 else place for place in order]) for order in places]


def test_what_both_partners_keep_by_hand() -> None:
    """Eight weights in two tensors, one gone; each partner prunes 2 of 7."""
    masks = Masks({"a": torch.tensor([True, True, True, False]), "b": torch.ones(2, 2, dtype=torch.bool)})
    orders = orders_of([0, 4, 5, -1, 6, 1, 2, 3], [3, 1, 5, -1, 0, 6, 2, 4])

    def kept(**options: Any) -> list[int]:
        found = overlap(masks, orders, fraction=0.25, **options)
        return torch.cat([found["a"], found["b"].flatten()]).nonzero().flatten().tolist()

    assert kept(least=0, last=False) == [2, 6, 7]  # places 0 and 5 go for one, 4 and 1 for the other
    assert kept(least=3, last=False) == [2, 6, 7]
    # in turn 0, 4, 5, 1, then 6 for both, 7 for the first, …
    assert kept(least=4, last=False) == [1, 2, 6, 7]
    assert kept(least=6, last=False) == [1, 2, 4, 5, 6, 7]
    assert kept(least=2, last=True) == [2, 7]
    assert kept(least=1, last=True) == [2]
    assert kept(least=7, last=True) == [0, 1, 2, 4, 5, 6, 7]


@given(st.integers(0, 2**31), st.integers(2, 4), st.integers(4, 40), st.floats(0.05, 0.5), st.booleans())
def test_overlap_is_pruning_one_after_the_other(
    seed: int, n_partners: int, n: int, part: float, last: bool
) -> None:
    """The slow rule: partners take turns at removing their smallest until each has removed its share."""
    draw = np.random.default_rng(seed)
    kept_before = draw.random(n) < 0.8
    if not kept_before.any():
        return
    mine = [kept_before & (draw.random(n) < 0.7) for _ in range(n_partners)]
    mine[0] |= kept_before & ~np.any(mine, axis=0)  # each weight is ranked by somebody
    orders, sequences = [], []
    for own in mine:
        sequence = draw.permutation(np.flatnonzero(own)).tolist()
        order = torch.full((n,), NEVER)
        order[sequence] = torch.arange(len(sequence))
        orders.append(order)
        sequences.append(sequence)
    least = int(draw.integers(0, kept_before.sum() + 1))
    found = overlap(
        Masks({"w": torch.from_numpy(kept_before)}), orders, fraction=part, least=least, last=last
    )
    shares = [set(s[: math.ceil(len(s) * part)]) for s in sequences]
    gone = set().union(*shares)
    if last or len(gone) > kept_before.sum() - least:
        gone = set()
        turns = (s[i] for i in range(n) for s in sequences if i < len(s))
        while len(gone) < kept_before.sum() - least:
            gone.add(next(turns))
    expected = set(np.flatnonzero(kept_before).tolist()) - gone
    assert set(found["w"].nonzero().flatten().tolist()) == expected


def image_loader(n_classes: int = 4, n: int = 24, size: int = 6) -> ImageLoader:
    images = torch.randint(0, 256, (n, 1, size, size), dtype=torch.uint8)
    return ImageLoader(ImageSplit(images, torch.arange(n) % n_classes), batch_size=4, mean=(0.5,), std=(0.5,))


def four_class_net() -> nn.Sequential:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 5, bias=False), nn.ReLU(), nn.Linear(5, 4, bias=False))
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randperm(weight.numel()).view(weight.shape) + 1.0)
    return model


def test_partners_begin_alike_and_see_only_their_classes() -> None:
    student, loader = four_class_net(), image_loader()
    seen: list[tuple[Tensor, set[int], tuple[int, ...], int]] = []

    def train_aside(network: nn.Module, train: Any, *, masks: Masks, parts: int) -> None:
        assert all(torch.equal(v, problem.start[n]) for n, v in network.state_dict().items())
        assert network is not student
        inputs, labels = next(iter(train))
        everything = torch.cat([batch.labels for batch in train.epoch(0)])
        assert len(everything) == 12
        originals = {tuple(x.flatten().tolist()) for b in loader.epoch(0) for x in b.inputs}
        assert all(tuple(x.flatten().tolist()) in originals for x in inputs)
        logits = network(inputs)
        whole = student(inputs)
        first = len(seen) % 2 * 2
        assert torch.equal(logits, whole[:, first : first + 2])
        seen.append((logits, set(everything.tolist()), tuple(labels.shape), parts))

    problem = problem_of(
        student, 0.2, 10, train=loader, train_aside=train_aside, calibration=[next(iter(loader))[0]]
    )
    (round_,) = Colt().rounds_for(problem)
    assert [(labels, parts) for _, labels, _, parts in seen] == [({0, 1}, 1), ({0, 1}, 1)] * (len(seen) // 2)
    masks = round_.masks
    assert masks is not None
    assert masks.n_prune == 40  # of 200
    assert round_.parts == round_.schedule == 10 - len(seen)


def test_a_partner_does_not_judge_what_only_other_classes_use() -> None:
    """Training makes the rows of the head small that belong to the other group; that counts for nothing."""
    student, loader = four_class_net(), image_loader()
    n_trained = 0

    def train_aside(network: Any, train: Any, *, masks: Masks, parts: int) -> None:
        nonlocal n_trained
        with torch.no_grad():
            foreign = slice(2, 4) if n_trained % 2 == 0 else slice(0, 2)
            network[3].weight.fill_(1e6)
            network[3].weight[foreign] = 1e-6
        n_trained += 1

    problem = problem_of(
        student, 0.5, 20, train=loader, train_aside=train_aside, calibration=[next(iter(loader))[0]]
    )
    (round_,) = Colt(partners=2).rounds_for(problem)
    assert round_.masks is not None
    assert bool(round_.masks["3.weight"].all())
    assert round_.masks.n_prune == 100
    # both partners agree on the first layer, so 15 % rounded up go a round: 180, 150, 125, … of it
    start = problem.start["1.weight"]
    assert torch.equal(round_.masks["1.weight"], start > 100)


def test_the_ticket_gets_its_share_however_slowly_the_partners_prune() -> None:
    """They agree on the first layer and leave their rows alone: 9 of 80 weights in the first round, not 12.

    80 → 71 → 63 → 56 → 50; the next would be 45, but five rounds are what the budget was shared out for.
    """
    student = nn.Sequential(
        nn.Flatten(), nn.Linear(4, 10, bias=False), nn.ReLU(), nn.Linear(10, 4, bias=False)
    )
    n_left: list[int] = []

    def train_aside(network: Any, train: Any, *, masks: Masks, parts: int) -> None:
        n_left.append(masks.n_keep)
        with torch.no_grad():
            network[1].weight.copy_(torch.arange(1.0, 41).view(10, 4))
            network[3].weight.fill_(1e6)

    loader = image_loader(size=2)
    data = [next(iter(loader))[0]]
    problem = problem_of(student, 0.5, 20, train=loader, train_aside=train_aside, calibration=data)
    (round_,) = Colt().rounds_for(problem)
    assert n_left == [80, 80, 71, 71, 63, 63, 56, 56, 50, 50]
    assert round_.parts == 10
    assert round_.masks is not None
    assert round_.masks.n_keep == 40


def test_rounds_and_budget_of_colt() -> None:
    assert Colt().most_rounds(0.9) == 15
    assert Colt().least_parts(0.9) == 60
    assert Colt(final=0).least_parts(0.9) == 31
    assert Colt(partners=3, fraction=0.5).most_rounds(0.75) == 2
    assert Colt().least_parts(0.0) == 1
    student = four_class_net()
    problem = problem_of(student, 0.0, 5)
    (round_,) = Colt().rounds_for(problem)
    assert (round_.parts, round_.masks is not None and round_.masks.n_prune) == (5, 0)


def test_what_colt_refuses() -> None:
    student, loader = four_class_net(), image_loader()
    data = [next(iter(loader))[0]]
    with pytest.raises(TrainingError, match=r"must have n_classes and of_classes.*got list"):
        list(Colt().rounds_for(problem_of(student, 0.5, 40, calibration=data)))
    with pytest.raises(DataError, match="3 partners need at least 6 classes"):
        list(Colt(partners=3).rounds_for(problem_of(student, 0.5, 40, calibration=data, train=loader)))
    problem = problem_of(student, 0.5, 40, calibration=data, train=image_loader(6))
    with pytest.raises(DataError, match="got 6 classes and 4 outputs"):
        list(Colt().rounds_for(problem))
