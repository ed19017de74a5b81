"""Scores of w, and of w times its gradient, against plain loops, finite differences and hand computation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers import make_cnn, make_mlp, vectors
from reference import scores as oracle
from reference.test_scores import AddedWeights, TwoPaths, close, setup, task_gradients, weights_of
from secateur.errors import InvalidArgument
from secateur.scores import (
    AbstractCriterion,
    Fisher,
    Lamp,
    Magnitude,
    Platon,
    ScoreInputs,
    Snip,
    SynFlow,
    TaskGradient,
    Taylor,
    score,
)

# LAMP


class Bare(nn.Module):
    """One linear layer with the given weights."""

    def __init__(self, *rows: list[float]) -> None:
        super().__init__()
        self.layer = nn.Linear(len(rows[0]), len(rows), bias=False)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor(rows))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def test_lamp_by_hand() -> None:
    """Squares 9, 1, 4, 16: 16/16, 9/25, 4/29, 1/30."""
    scores = score(Bare([3.0, -1.0], [2.0, -4.0]), None, Lamp())
    assert scores["layer.weight"].flatten().tolist() == pytest.approx([9 / 25, 1 / 30, 4 / 29, 1.0])


def test_lamp_is_its_definition() -> None:
    model = make_cnn()
    with torch.no_grad():
        model[3].weight[1] = 0
        model[3].weight[2, 0] = 0.25  # ties
    scores = score(model, None, Lamp())
    for name in ("0.weight", "3.weight", "8.weight"):
        weights = model.get_parameter(name).flatten().tolist()
        expected = torch.tensor(oracle.lamp(weights)).view(scores[name].shape)
        assert torch.allclose(scores[name], expected, rtol=1e-6, atol=0)
        assert float(scores[name].max()) == 1


def test_lamp_does_not_care_for_the_scale_of_a_layer_and_ranks_it_by_magnitude() -> None:
    model = make_cnn()
    before = score(model, None, Lamp())
    with torch.no_grad():
        model[3].weight.mul_(1024)
    after = score(model, None, Lamp())
    assert torch.equal(before["3.weight"], after["3.weight"])
    magnitude = score(model, None, Magnitude())
    for name in after:
        assert torch.equal(after[name].flatten().argsort(), magnitude[name].flatten().argsort())


def test_lamp_of_zeros_is_zero() -> None:
    assert score(Bare([0.0, 0.0]), None, Lamp())["layer.weight"].tolist() == [[0.0, 0.0]]


def test_lamp_of_weights_whose_squares_float32_cannot_hold() -> None:
    scores = score(Bare([1e-25, -2e-25], [1e25, 2e25]), None, Lamp())["layer.weight"].flatten()
    assert scores[2:].tolist() == pytest.approx([0.2, 1.0])
    assert score(Bare([1e-25, -2e-25]), None, Lamp())["layer.weight"].tolist() == [[pytest.approx(0.2), 1.0]]


# SNIP


def test_snip_is_the_gradient_of_all_data_at_once() -> None:
    student, _, batches = setup()
    batches = [batches[0], (batches[1][0][:1], batches[1][1][:1]), batches[2]]  # sizes 4, 1, 4
    scores = score(student, batches, Snip())
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    for name, weight in weights_of(student).items():
        (gradient,) = task_gradients(student, weight, [(x, y)])
        assert close(scores[name], (weight * gradient).abs().detach())
        assert float(scores[name].max()) > 1e-4


def test_snip_does_not_depend_on_how_data_is_batched_and_the_task_gradient_does() -> None:
    student, _, batches = setup()
    whole = [tuple(torch.cat(parts) for parts in zip(*batches, strict=True))]
    assert all(
        torch.allclose(a, b)
        for a, b in zip(
            score(student, batches, Snip()).values(), score(student, whole, Snip()).values(), strict=True
        )
    )
    once = score(student, whole, TaskGradient())
    apart = score(student, batches, TaskGradient())
    for name, snip in score(student, batches, Snip()).items():
        assert torch.allclose(once[name], snip)
        assert bool((apart[name] >= snip - 1e-12).all())
        assert float((apart[name] - snip).max()) > 1e-3


# Taylor


def test_taylor_is_the_mean_of_squares() -> None:
    student, _, batches = setup()
    scores = score(student, batches, Taylor())
    for name, weight in weights_of(student).items():
        gradients = task_gradients(student, weight, batches)
        expected = sum((weight.detach() * g).square() for g in gradients) / len(gradients)
        assert torch.allclose(scores[name], expected, rtol=1e-5, atol=1e-12)
        assert float(expected.max()) > 1e-6


def test_taylor_is_the_squared_change_of_a_loss_that_is_linear_in_a_mask() -> None:
    model = nn.Linear(4, 1, bias=False).double()
    x, y = torch.randn(6, 4).double(), torch.zeros(6)

    def loss(z: Tensor, y: Tensor) -> Tensor:
        return z.mean()

    scores = score(model, [(x, y)], Taylor(), task_loss=loss)["weight"]
    for i in range(4):
        with torch.no_grad():
            kept, before = model.weight[0, i].clone(), float(model(x).mean())
            model.weight[0, i] = 0
            change = float(model(x).mean()) - before
            model.weight[0, i] = kept
        assert float(scores[0, i]) == pytest.approx(change**2, rel=1e-9)


# PLATON


@pytest.mark.parametrize("betas", [(0.85, 0.95), (0.3, 0.6), (0.0, 0.0)])
def test_platon_is_its_recursion(betas: tuple[float, float]) -> None:
    student, _, batches = setup()
    scores = score(student, batches, Platon(*betas))
    for name, weight in weights_of(student).items():
        gradients = task_gradients(student, weight, batches)
        columns = torch.stack([(weight.detach() * g).abs().flatten() for g in gradients]).T.tolist()
        expected = torch.tensor([oracle.platon(column, *betas) for column in columns], dtype=torch.float64)
        assert torch.allclose(scores[name].flatten(), expected, rtol=1e-4, atol=1e-10)
        assert float(expected.max()) > 1e-6 or betas == (0.0, 0.0)


def test_platon_defaults_are_those_of_the_paper() -> None:
    assert (Platon().beta1, Platon().beta2) == (0.85, 0.95)
    for options in ({"beta1": 1.0}, {"beta2": -0.1}):
        with pytest.raises(InvalidArgument, match=next(iter(options))):
            Platon(**options)


@pytest.mark.parametrize(("first", "second"), [("high", "low"), ("low", "high")])
def test_platon_of_a_weight_that_a_batch_does_not_reach(first: str, second: str) -> None:
    (x, y), *_ = vectors()
    batch = {"high": (x.abs(), y), "low": (-x.abs(), y)}
    model = TwoPaths()
    scores = score(model, [batch[first], batch[second]], Platon())
    alone = score(model, [batch[first]], TaskGradient())[f"{first}.weight"]
    expected = [oracle.platon([now, 0.0], 0.85, 0.95) for now in alone.flatten().tolist()]
    assert torch.allclose(scores[f"{first}.weight"].flatten(), torch.tensor(expected), rtol=1e-5)
    alone = score(model, [batch[second]], TaskGradient())[f"{second}.weight"]
    expected = [oracle.platon([0.0, now], 0.85, 0.95) for now in alone.flatten().tolist()]
    assert torch.allclose(scores[f"{second}.weight"].flatten(), torch.tensor(expected), rtol=1e-5)


# Gradients that share memory


@pytest.mark.parametrize("criterion", [Snip(), Taylor(), Platon(), Fisher(), Fisher(per="batch"), SynFlow()])
def test_gradients_that_share_memory_are_scored_apart(criterion: Any) -> None:
    """Autograd may hand out the gradients of two weights as one tensor; a score must not write to it."""
    model = AddedWeights()
    (x, y), *_ = vectors(1)
    scores = score(model, [(x, y)], criterion)
    for name, weight in (("a.weight", model.a.weight), ("b.weight", model.b.weight)):
        expected = score_of_one(criterion, model, weight.detach(), x, y)
        if isinstance(criterion, SynFlow):
            expected = expected / max(float(expected.max()), float(score_of_other(model, name)))
        assert torch.allclose(scores[name], expected, rtol=1e-4, atol=1e-12), name


def score_of_other(model: AddedWeights, name: str) -> Tensor:
    other = model.b if name.startswith("a") else model.a
    return other.weight.detach().abs().max()


def score_of_one(criterion: Any, model: AddedWeights, weight: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """By the gradient of the sum of both weights, which is that of each of them."""
    total = (model.a.weight + model.b.weight).detach().requires_grad_()
    each = [
        torch.autograd.grad(F.cross_entropy(F.linear(x[i : i + 1], total), y[i : i + 1]), total)[0]
        for i in range(len(x))
    ]
    gradient = torch.stack(each).mean(0)
    sensitivity = (weight * gradient).abs()
    return {
        "Snip": sensitivity,
        "Taylor": sensitivity.square(),
        "Platon": 0.15 * sensitivity * 0.05 * 0.85 * sensitivity,
        "Fisher": weight.square()
        * (torch.stack(each).square().mean(0) if getattr(criterion, "per", "") == "sample" else gradient**2)
        / 2,
        "SynFlow": weight.abs(),  # each output is the sum of |w| over inputs of 1
    }[type(criterion).__name__]


def test_a_score_of_w_and_g_is_zero_where_either_is() -> None:
    student = make_mlp()
    with torch.no_grad():
        student[0].weight[:, 1] = 0
    batches = vectors()
    for x, _ in batches:
        x[:, 2] = 0
    for criterion in (Snip(), Taylor(), Platon(), Fisher()):
        scores = score(student, batches, criterion)["0.weight"]
        assert bool((scores[:, [1, 2]] == 0).all())
        assert bool((scores[:, [0, 3, 4, 5]] > 0).all())


@pytest.mark.parametrize("criterion", [Snip(), Taylor(), Platon(), Fisher(per="batch")])
def test_one_gradient_is_alive_at_a_time(criterion: AbstractCriterion) -> None:
    student = make_mlp()
    alive: list[int] = []

    class Watch(Magnitude):
        def __call__(self, inputs: ScoreInputs) -> Any:
            for p in inputs.targets.values():
                p.register_hook(lambda g: alive.append(sum(q.grad is not None for q in student.parameters())))
            return criterion(inputs)

    score(student, vectors(2), Watch())
    assert alive == [0, 0, 0, 0]
