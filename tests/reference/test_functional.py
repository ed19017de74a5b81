"""Networks as functions of their parameters: what can be reached by two names, and what comes back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from helpers import CLASSES, Attention, Recurrent, vectors
from secateur.building import build_criterion_from, wants_teacher
from secateur.cutting import cut
from secateur.errors import ScoreError
from secateur.scores import CRITERIA, TeacherCurvature, score
from secateur.scores.functional import Functional, slots_of
from secateur.testing.networks import seeded
from secateur.testing.snapshot import Snapshot


class TwoNames(nn.Module):
    """A module that can be reached by two names, one in two places, and a weight in two places."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
        self.encoder = self.net[0]
        self.blocks = nn.ModuleList([nn.Linear(6, 6)] * 2)
        self.last = nn.Linear(6, 6)
        self.last.weight = self.net[2].weight  # type: ignore[assignment]
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.net(x)
        for block in self.blocks:
            x = torch.tanh(block(x))
        return self.head(torch.tanh(self.last(x)) + torch.tanh(self.encoder(x)))


class Plain(nn.Module):
    """The same function, each module by one name."""

    def __init__(self, other: TwoNames) -> None:
        super().__init__()
        self.first, self.second, self.block = other.net[0], other.net[2], other.blocks[0]
        self.last_bias, self.head = other.last.bias, other.head

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(torch.tanh(self.first(x)))
        for _ in range(2):
            x = torch.tanh(self.block(x))
        last = nn.functional.linear(x, self.second.weight, self.last_bias)
        return self.head(torch.tanh(last) + torch.tanh(self.first(x)))


def made(name: str) -> Any:
    teacher = Plain(TwoNames()) if wants_teacher(name) else None
    return build_criterion_from(name, {}, teacher=teacher, seed=0)


def test_each_place_is_there_once() -> None:
    places = slots_of(TwoNames())
    assert places["last.weight"] == places["net.2.weight"] == "net.2.weight"
    assert places["net.0.weight"] == "net.0.weight"
    assert not {"encoder.weight", "blocks.1.weight"} & set(places)


@pytest.mark.parametrize("name", [name for name in CRITERIA if name not in ("layer-reconstruction", "wanda")])
def test_a_module_of_two_names_comes_back_and_scores_as_one_of_one(name: str) -> None:
    model = TwoNames()
    before = Snapshot.of(model)
    objects = {n: id(p) for n, p in model.named_parameters(remove_duplicate=False)}
    scores = score(model, vectors(4), made(name))
    before.assert_unchanged(model)
    assert {n: id(p) for n, p in model.named_parameters(remove_duplicate=False)} == objects
    expected = score(Plain(model), vectors(4), made(name))
    names = {"net.0": "first", "net.2": "second", "blocks.0": "block", "head": "head"}
    assert set(scores) == {f"{name}.weight" for name in names}
    for one, other in ((f"{a}.weight", f"{b}.weight") for a, b in names.items()):
        assert torch.allclose(scores[one], expected[other], rtol=1e-4, atol=1e-7), one


def test_a_cut_that_solves_leaves_no_module_behind() -> None:
    model = TwoNames()
    parameters = list(model.parameters())
    masks = cut(model, vectors(6), TeacherCurvature(Plain(TwoNames()), damping=1.0), sparsity=0.5, stages=3)
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert model.encoder.weight is model.net[0].weight
    assert model.last.weight is model.net[2].weight
    masks.check(model)


def test_the_function_is_that_of_torch() -> None:
    model = Plain(TwoNames())
    x = vectors()[0][0]
    network = Functional.of(model)
    half = {name: p.detach() / 2 for name, p in network.parameters.items()}
    assert torch.equal(network(half, x), functional_call(model, half, (x,)))


class Cache(nn.Module):
    """Fills a buffer that was None, and makes another one."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, CLASSES)
        self.register_buffer("cache", None)

    def forward(self, x: Tensor) -> Tensor:
        if self.cache is None:
            self.cache = x.mean().detach()
            self.register_buffer("another", torch.zeros(3))
        return self.head(x)


def test_buffers_that_a_forward_pass_makes_are_gone_afterwards() -> None:
    model = Cache()
    names = list(model.state_dict())
    score(model, vectors(), CRITERIA["task-gradient"]())
    assert model.cache is None
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("name", ["grasp", "prospr", "epsd"])
def test_attention_has_second_derivatives(name: str) -> None:
    with seeded(0):
        network = Attention()
    scores = score(network, vectors(4), made(name))
    assert all(bool(value.abs().sum() > 0) for value in scores.values())


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x) if x.sum().item() > 0 else self.head(-x)


@pytest.mark.parametrize("network", [Recurrent, Branching])
@pytest.mark.parametrize(
    ("name", "advice"), [("fisher", "Choose per='batch'"), ("teacher-curvature", "Choose TeacherFisher")]
)
def test_what_vmap_cannot_follow_is_told_with_a_way_out(
    network: type[nn.Module], name: str, advice: str
) -> None:
    criterion = build_criterion_from(name, {}, teacher=nn.Linear(6, CLASSES), seed=0)
    with pytest.raises(ScoreError, match=rf"vmap, which cannot follow this network: .*{advice}"):
        score(network(), vectors(), criterion)
