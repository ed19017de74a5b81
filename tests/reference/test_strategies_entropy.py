"""Entropy-guided pruning against cases worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from helpers import make_cnn
from secateur.errors import EmptiedLayerWarning, InvalidArgument, ScoreError
from secateur.strategies import (
    EntropyGuided,
)
from secateur.strategies.activations import layer_entropies
from secateur.strategies.entropy import layer_budgets
from secateur.targets import select_targets
from strategy_helpers import played, problem_of

# Entropy-guided pruning


def entropy(p: float) -> float:
    return -p * math.log2(p) - (1 - p) * math.log2(1 - p)


def test_entropy_of_a_layer_by_hand() -> None:
    """Neurons on in 1 of 4, 2 of 4, all and no samples: the last two do not count."""
    model = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.ones(4, 1))
        model[0].bias.copy_(torch.tensor([-3.5, -2.5, 0.0, -9.0]))
    found = layer_entropies(
        model, [torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [4.0]])], select_targets(model)
    )
    assert found == {"0.weight": pytest.approx((entropy(1 / 4) + entropy(1 / 2)) / 2)}
    same_state = layer_entropies(model, [torch.tensor([[9.0]])], select_targets(model))
    assert same_state == {"0.weight": 0.0}


class Residual(nn.Module):
    """Rectifiers as functions and as modules, a shortcut with a layer in it, and layers without any."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 3, 3)
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.second = nn.Conv2d(3, 3, 1)
        self.shortcut = nn.Conv2d(3, 3, 1)
        self.gelu = nn.GELU()
        self.behind = nn.Linear(3, 5)
        self.sigmoid = nn.Linear(5, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(F.max_pool2d(self.stem(x), 2))
        self.a = self.norm(self.first(x))
        self.b = self.second(F.relu(self.a)) + self.shortcut(x)
        self.c = self.behind(F.relu(self.b).mean(dim=(2, 3)))
        return self.head(torch.sigmoid(self.sigmoid(self.gelu(self.c))))


def test_rectifiers_are_found_wherever_they_are() -> None:
    model = Residual().eval()
    x = torch.randn(6, 1, 8, 8)
    model(x)
    with torch.no_grad():
        model.behind.bias -= model.c.median(dim=0).values  # some on, some off
    found = layer_entropies(model, [(x, torch.zeros(6))], select_targets(model))

    def expected(inputs: Tensor) -> float:
        on = (inputs > 0).movedim(1, 0).flatten(1).double().mean(dim=1)
        values = [entropy(float(p)) for p in on if 0 < p < 1]
        return sum(values) / len(values)

    model(x)
    assert found == {
        "stem.weight": pytest.approx(expected(F.max_pool2d(model.stem(x), 2))),
        "first.weight": pytest.approx(expected(model.a)),
        "second.weight": pytest.approx(expected(model.b)),
        "shortcut.weight": pytest.approx(expected(model.b)),
        "behind.weight": pytest.approx(expected(model.c)),
    }


def test_the_first_rectifier_counts() -> None:
    """Of two that take in the same layer's output, turned round for the second."""

    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            z = self.layer(x)
            return F.relu(z) + F.relu(10 - z)

    model = Forked()
    with torch.no_grad():
        model.layer.weight.fill_(1.0)
        model.layer.bias.copy_(torch.tensor([-1.5, -3.5, -5.5]))
    data = [torch.tensor([[float(i), 0.0]]) for i in range(8)]
    found = layer_entropies(model, data, select_targets(model))["layer.weight"]
    assert found == pytest.approx((entropy(6 / 8) + entropy(4 / 8) + entropy(2 / 8)) / 3)


def test_without_a_rectifier_there_is_no_entropy() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))
    with pytest.raises(ScoreError, match="no prunable layer is followed by a rectifier"):
        layer_entropies(model, [torch.randn(4, 2)], select_targets(model))


def test_layer_budgets_by_hand() -> None:
    """Shares ∝ e^(4/2), e^(4/1), e^(4/1); layer b gives its 20, then a and c ∝ e^(3/2), e^(3/1)."""
    relevance = {"a": 2.0, "b": 1.0, "c": 1.0}
    room = {"a": 100, "b": 100, "c": 100}
    assert layer_budgets(relevance, room, 100) == {"a": 6, "b": 47, "c": 47}
    assert layer_budgets(relevance, {**room, "b": 20}, 100) == {"a": 15, "b": 20, "c": 65}
    assert layer_budgets(relevance, {**room, "b": 0, "c": 3}, 10) == {"a": 7, "b": 0, "c": 3}
    assert layer_budgets(relevance, room, 300) == room
    assert layer_budgets({"a": 1e-30, "b": 1.0}, room, 150) == {"a": 100, "b": 50}
    assert layer_budgets({}, {}, 0) == {}


@given(
    st.lists(st.tuples(st.floats(1e-6, 1e3), st.integers(0, 500)), min_size=1, max_size=8), st.floats(0, 1)
)
def test_layer_budgets_are_exact_and_within_their_limits(
    layers: list[tuple[float, int]], part: float
) -> None:
    relevance = {str(i): r for i, (r, _) in enumerate(layers)}
    room = {str(i): n for i, (_, n) in enumerate(layers)}
    n = int(part * sum(room.values()))
    found = layer_budgets(relevance, room, n)
    assert sum(found.values()) == n
    assert all(0 <= found[name] <= room[name] for name in room)


def two_layers(second: float) -> nn.Sequential:
    """Two layers of the same sizes, the weights of the other `second` times as large; and a head."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        sizes = torch.arange(1.0, 17).view(4, 4) / 16
        signs = torch.tensor([[1.0, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1], [-1, 1, -1, 1]])
        model[0].weight.copy_(sizes * signs)
        model[2].weight.copy_(second * sizes * signs)
        for layer in (model[0], model[2]):
            layer.bias.zero_()
    return model


def test_entropy_guided_cuts_by_hand() -> None:
    """Weights that are zero do not count for the mean magnitude, but go first."""
    student = two_layers(0.5)
    data = [torch.randn(64, 4)]
    with torch.no_grad():
        student[2].weight[3] *= 2  # 13 to 16 sixteenths, the others 1/32 to 12/32
        student[2].weight[:2] = 0
    h = layer_entropies(student, data, select_targets(student))
    assert list(h) == ["0.weight", "2.weight"]
    first = h["0.weight"] * 8.5 / 16
    second = h["2.weight"] * (0.5 * (9 + 10 + 11 + 12) + 13 + 14 + 15 + 16) / 16 / 8
    a, b = (math.exp((first + second) / r) for r in (first, second))
    problem = problem_of(student, 0.5, 2, calibration=data)
    (round_,) = EntropyGuided().rounds_for(problem)  # 20 of 40 weights
    masks = round_.masks
    assert masks is not None
    assert masks.n_prune == 20
    from_second = round(20 * b / (a + b))
    assert 4 < from_second < 12
    assert int((~masks["2.weight"]).sum()) == from_second
    assert bool(masks["4.weight"].all())
    for name in ("0.weight", "2.weight"):  # the smallest go
        order = student.get_parameter(name).abs().flatten().argsort(stable=True)
        assert not bool(masks[name].flatten()[order[: int((~masks[name]).sum())]].any())


def test_entropy_guided_rounds_halve_what_is_left() -> None:
    assert EntropyGuided().sparsities(0.9) == [0.5, 0.75, 0.875, 0.9]
    assert EntropyGuided().sparsities(0.75) == [0.5, 0.75]
    assert EntropyGuided(fraction=0.2).sparsities(0.3) == pytest.approx([0.2, 0.3])
    assert EntropyGuided().sparsities(0.0) == [0.0]
    student = make_cnn(dropout=0)
    problem = problem_of(student, 0.7, 5, calibration=[torch.randn(20, 1, 6, 6)])
    rounds = []
    for round_ in EntropyGuided(min_density=0.05).rounds_for(problem):
        rounds += played(iter([round_]), student)
        with torch.no_grad():  # weights that stay become 0: they must not go in place of those that are gone
            student[3].weight[:3] = 0
    assert [(r.parts, r.schedule, r.masks.n_prune) for r in rounds if r.masks] == [(2, 2, 144), (3, 3, 202)]
    first, second = (r.masks for r in rounds)
    assert first is not None
    assert second is not None
    assert first & second == second
    assert all(int(mask.sum()) >= 0.05 * mask.numel() for mask in second.values())


def test_layers_without_entropy_give_only_what_the_others_cannot() -> None:
    student = two_layers(1.0)  # 16 + 16 weights with an entropy, 8 without
    problem = problem_of(student, 0.9, 4, calibration=[torch.randn(64, 4)])
    with pytest.warns(EmptiedLayerWarning, match=r"leaves no weight in 0\.weight, 2\.weight"):
        (round_,) = EntropyGuided(fraction=0.95).rounds_for(problem)
    masks = round_.masks
    assert masks is not None
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {
        "0.weight": 0,
        "2.weight": 0,
        "4.weight": 4,
    }
    guarded = EntropyGuided(min_density=0.25)
    with pytest.raises(
        InvalidArgument, match=r"min_density=0\.25 leaves 0 weights to remove, sparsity=0\.875"
    ):
        played(guarded.rounds_for(problem), student)
