"""GraSP, Fisher and the meta-gradient scores against finite differences and slow loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from helpers import CLASSES, Tally, images, make_cnn, make_mlp, vectors
from reference import scores as oracle
from reference.test_scores import setup, weights_of
from secateur.errors import InvalidArgument, ScoreError
from secateur.losses import kd_loss
from secateur.scores import Epsd, Fisher, GraSP, ProsPr, TaskGradient, score
from secateur.scores.meta import class_partners

# GraSP


def joined(batches: Any) -> tuple[Tensor, Tensor]:
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return x, y


def loss_at(model: nn.Module, x: Tensor, y: Tensor, temperature: float = 1.0) -> float:
    rows = [[z / temperature for z in row] for row in oracle.logits(model, x)]
    return oracle.cross_entropy(rows, y.tolist())


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_grasp_is_w_times_hessian_times_gradient_by_finite_differences(temperature: float) -> None:
    student, _, batches = setup()
    batches = [batches[0], (batches[1][0][:2], batches[1][1][:2])]  # of different sizes
    scores = score(student, batches, GraSP(temperature))
    x, y = joined(batches)
    weights = weights_of(student)
    gradient = oracle.gradients(lambda: loss_at(student, x, y, temperature), weights)
    curved = oracle.hessian_times(lambda: loss_at(student, x, y, temperature), weights, gradient)
    for name, weight in weights.items():
        expected = weight.detach() * curved[name]
        assert torch.allclose(scores[name], expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
        assert bool((expected < 0).any())
        assert bool((expected > 0).any())


def test_grasp_keeps_what_the_flow_of_the_gradient_needs() -> None:
    """A small step of w towards 0 changes ‖∇L‖² by −2·ε·w·(Hg): what scores highest costs the most of it."""
    student, _, batches = setup()
    x, y = joined(batches)
    weights = weights_of(student)

    def flow() -> float:
        loss = F.cross_entropy(student(x), y)
        return sum(float(g.square().sum()) for g in torch.autograd.grad(loss, list(weights.values())))

    scores = score(student, batches, GraSP(temperature=1.0))
    before, step = flow(), 1e-4
    for name, weight in weights.items():
        for index in (int(scores[name].argmax()), int(scores[name].argmin())):
            place = weight.data.view(-1)
            kept = float(place[index])
            place[index] = kept * (1 - step)
            change = (flow() - before) / step
            place[index] = kept
            assert change == pytest.approx(-2 * float(scores[name].view(-1)[index]), rel=1e-2)


def test_grasp_reads_a_one_shot_iterator() -> None:
    student = make_cnn()
    expected = score(student, images(), GraSP())
    scores = score(student, iter(images()), GraSP())
    assert all(torch.equal(scores[name], expected[name]) for name in expected)


def test_grasp_of_a_loss_without_curvature_is_zero() -> None:
    scores = score(nn.Linear(6, 3), vectors(), GraSP(), task_loss=lambda z, y: z.mean())
    assert bool((scores["weight"] == 0).all())


def test_grasp_checks_its_temperature() -> None:
    assert GraSP().temperature == 200
    with pytest.raises(InvalidArgument, match="temperature"):
        GraSP(0.0)


# Fisher


def fisher_by_loops(model: nn.Module, batches: Any) -> dict[str, Tensor]:
    """One backward pass a sample."""
    weights = {name: p for name, p in model.named_parameters() if p.ndim > 1}
    sums = {name: torch.zeros_like(p) for name, p in weights.items()}
    n_samples = 0
    for x, y in batches:
        for i in range(len(x)):
            loss = F.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
            for name, gradient in zip(sums, torch.autograd.grad(loss, list(weights.values())), strict=True):
                sums[name] += gradient.square()
            n_samples += 1
    return {name: weights[name].detach().square() * total / n_samples / 2 for name, total in sums.items()}


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_fisher_is_the_mean_of_every_samples_square(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_cnn().double().eval()
    batches = [(x.double(), y) for x, y in images(2)]
    batches.append((batches[0][0][:3], batches[0][1][:3]))
    n_weights = sum(p.numel() for p in model.parameters() if p.ndim > 1)
    monkeypatch.setattr("secateur.scores.functional._MOST_GRADIENTS", chunk * n_weights)
    scores = score(model, batches, Fisher())
    for name, expected in fisher_by_loops(model, batches).items():
        assert torch.allclose(scores[name], expected, rtol=1e-9, atol=0)
        assert float(expected.max()) > 1e-6


def test_fisher_by_hand() -> None:
    """z = Wx with x = 1 and equal logits: g = p − y, so g² is 1/4 for either label, and S = w²/8."""
    model = nn.Linear(1, 2, bias=False).double()
    nn.init.constant_(model.weight, 3.0)
    batch = (torch.ones(4, 1).double(), torch.tensor([0, 1, 0, 1]))
    assert score(model, [batch], Fisher())["weight"].flatten().tolist() == pytest.approx([9 / 8] * 2)
    # The gradients of the samples cancel in the mean of the batch, which sees nothing.
    assert score(model, [batch], Fisher(per="batch"))["weight"].flatten().tolist() == [0.0] * 2


def test_fisher_per_batch_is_the_mean_square_of_batch_gradients() -> None:
    student = make_mlp().double()
    batches = [(x.double(), y) for x, y in vectors()]
    scores = score(student, batches, Fisher(per="batch"))
    squares = score(student, batches, TaskGradient("grad^2"))
    for name in scores:
        expected = squares[name] * student.get_parameter(name).detach().square() / 2
        assert torch.allclose(scores[name], expected, rtol=1e-12)
    singles = [(x[i : i + 1], y[i : i + 1]) for x, y in batches for i in range(len(x))]
    each = score(student, batches, Fisher())
    alone = score(student, singles, Fisher(per="batch"))
    assert all(torch.allclose(each[name], alone[name], rtol=1e-9) for name in each)


def test_fisher_of_a_network_that_writes_its_buffers() -> None:
    model = nn.Sequential(Tally(), make_mlp()).eval()
    scores = score(model, vectors(), Fisher())
    expected = score(make_mlp(), vectors(), Fisher())
    assert torch.allclose(scores["1.0.weight"], expected["0.weight"])


def test_fisher_refuses() -> None:
    with pytest.raises(InvalidArgument, match="per must be sample or batch, got 'weight'"):
        Fisher(per="weight")  # type: ignore[arg-type]
    with pytest.raises(ScoreError, match=r"the task loss must be a scalar"):
        score(make_mlp(), vectors(), Fisher(), task_loss=lambda z, y: z)
    with pytest.raises(ScoreError, match="the task loss of batch 0 is nan"):
        score(make_mlp(), vectors(), Fisher(), task_loss=lambda z, y: z.sum() * torch.nan)
    (x, y), *_ = vectors()
    y[1] = -100  # of no class: alone it has no loss
    with pytest.raises(ScoreError, match=r"some samples of batch 0 .* all ignored .* per='batch'"):
        score(make_mlp(), [(x, y)], Fisher())


# Meta-gradients


def unrolled(model: nn.Module, losses: Any, *, steps: int, lr: float) -> dict[str, Tensor]:
    """dL_M(θ_M)/dm with θ_0 = m·w, by differentiating through all steps in one graph.

    ``losses(k, parameters, state)`` is the loss of step k; `state` is the same dictionary in each step.
    """
    masks = {name: torch.ones_like(p, requires_grad=True) for name, p in model.named_parameters()}
    theta = {name: masks[name] * p.detach() for name, p in model.named_parameters()}
    state: dict[int, Tensor] = {}
    for k in range(steps):
        slopes = torch.autograd.grad(losses(k, theta, state), list(theta.values()), create_graph=True)
        theta = {name: p - lr * g for (name, p), g in zip(theta.items(), slopes, strict=True)}
    found = torch.autograd.grad(losses(steps, theta, state), list(masks.values()))
    return {name: g for name, g in zip(masks, found, strict=True) if name.endswith("weight")}


@pytest.mark.parametrize(("steps", "lr"), [(1, 0.5), (3, 0.1), (3, 2.0)])
def test_prospr_is_the_gradient_through_all_steps_at_once(steps: int, lr: float) -> None:
    model = make_mlp(width=4).double()
    batches = [(x.double(), y) for x, y in vectors(2 * (steps + 1))]
    expected: dict[str, Tensor] = {}
    for group in (batches[: steps + 1], batches[steps + 1 :]):

        def loss(k: int, parameters: dict[str, Tensor], _: Any, group: Any = group) -> Tensor:
            return F.cross_entropy(functional_call(model, parameters, (group[k][0],)), group[k][1])

        for name, g in unrolled(model, loss, steps=steps, lr=lr).items():
            expected[name] = expected.get(name, 0) + g  # signed sums over groups
    scores = score(model, batches, ProsPr(steps=steps, inner_lr=lr))
    plain = score(model, batches, TaskGradient())
    for name, g in expected.items():
        assert torch.allclose(scores[name], g.abs(), rtol=1e-9, atol=1e-15)
        assert not torch.allclose(scores[name], plain[name], rtol=0.05)


def test_prospr_is_the_change_of_the_loss_after_training_with_a_weight_turned_down() -> None:
    """By finite differences throughout: train from m·w with m = 1 ± ε, and compare the losses."""
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Tanh(), nn.Linear(2, CLASSES)).double()
    batches = [(torch.randn(4, 3).double(), torch.randint(0, CLASSES, (4,))) for _ in range(3)]
    parameters = dict(model.named_parameters())

    def after_training() -> float:
        start = oracle.trained(lambda k: loss_at(model, *batches[k]), parameters, steps=2, lr=0.7)
        found = loss_at(model, *batches[2])
        with torch.no_grad():
            for name, value in start.items():
                parameters[name].copy_(value)
        return found

    scores = score(model, batches, ProsPr(steps=2, inner_lr=0.7))
    for name in ("0.weight", "2.weight"):
        slope = oracle.finite_difference(after_training, parameters[name], step=1e-4)
        expected = (slope * parameters[name]).abs().detach()
        assert torch.allclose(scores[name], expected, rtol=1e-3, atol=1e-5)


def test_a_group_that_is_too_short_goes_round() -> None:
    model = make_mlp()
    a, b, c = vectors(3)
    for given, complete in (([a], [a, a, a]), ([a, b], [a, b, a]), ([a, b, c, b], [a, b, c, b, b, b])):
        first, second = (score(model, batches, ProsPr(steps=2)) for batches in (given, complete))
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_steps_use_all_trainable_parameters_and_only_those() -> None:
    model = make_mlp().double()
    batches = [(x.double(), y) for x, y in vectors(4)]
    both = score(model, batches, ProsPr(inner_lr=2.0))["0.weight"]
    alone = score(model, batches, ProsPr(inner_lr=2.0), include=["0.*"])["0.weight"]
    assert torch.equal(both, alone)
    model[2].requires_grad_(False)
    frozen = score(model, batches, ProsPr(inner_lr=2.0))["0.weight"]
    assert not torch.allclose(both, frozen, rtol=1e-3)


def test_steps_that_diverge_are_named() -> None:
    with pytest.raises(
        ScoreError, match=r"ProsPr: the loss after [123] of its steps is nan.*lower inner_lr=1e"
    ):
        score(make_cnn(), images(4), ProsPr(inner_lr=1e30))


def test_a_batch_without_a_loss_is_named_by_its_place_in_the_loader() -> None:
    batches = images(7)
    batches[6] = (batches[6][0], torch.full_like(batches[6][1], -100))  # a label that is not counted
    with pytest.raises(ScoreError, match="the task loss of batch 6 is nan"):
        score(make_cnn(), batches, ProsPr(steps=2))


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_epsd_with_cs_kd_is_the_gradient_through_all_steps(weight: float) -> None:
    model = make_mlp(width=4).double()
    batches = [(x.double(), torch.tensor([0, 1, 0, 2, 0])) for x, _ in vectors(4)]
    taught_by = [2, 1, 4, 3, 0]  # the next of the same class; 1 and 3 are alone

    def loss(k: int, parameters: dict[str, Tensor], _: Any) -> Tensor:
        x, y = batches[k]
        z = functional_call(model, parameters, (x,))
        rows = z.detach()[taught_by]
        distances = torch.stack([kd_loss(z[i : i + 1], rows[i : i + 1], temperature=3.0) for i in (0, 2, 4)])
        return F.cross_entropy(z, y) + weight * distances.sum() / 5

    scores = score(model, batches, Epsd(temperature=3.0, distillation_weight=weight, inner_lr=0.5))
    for name, g in unrolled(model, loss, steps=3, lr=0.5).items():
        assert torch.allclose(scores[name], g.abs(), rtol=1e-9, atol=1e-15)


def test_epsd_with_dlb_is_the_gradient_through_all_steps() -> None:
    model = make_mlp(width=4).double()
    batches = [(x.double(), y) for x, y in vectors(4)]

    def loss(k: int, parameters: dict[str, Tensor], state: dict[int, Tensor]) -> Tensor:
        x, y = batches[k]
        z = functional_call(model, parameters, (x,))
        state[k] = z.detach()
        total = F.cross_entropy(z, y)
        if k:
            again = functional_call(model, parameters, (batches[k - 1][0],))
            total = total + 1.5 * kd_loss(again, state[k - 1], temperature=2.0)
        return total

    criterion = Epsd(distillation="dlb", temperature=2.0, distillation_weight=1.5, inner_lr=1.0)
    scores = score(model, batches, criterion)
    plain = score(model, batches, ProsPr(inner_lr=1.0))
    for name, g in unrolled(model, loss, steps=3, lr=1.0).items():
        assert torch.allclose(scores[name], g.abs(), rtol=1e-9, atol=1e-15)
        assert not torch.allclose(scores[name], plain[name], rtol=1e-2)


def test_epsd_without_distillation_is_prospr() -> None:
    model = make_cnn()
    expected = score(model, images(), ProsPr())
    for kind in ("cs-kd", "dlb"):
        scores = score(model, images(), Epsd(distillation=kind, distillation_weight=0.0))  # type: ignore[arg-type]
        assert all(torch.allclose(scores[name], expected[name]) for name in expected)


def test_epsd_of_samples_that_are_alone_in_their_classes_is_prospr() -> None:
    model = make_mlp(width=4).double()
    batches = [(x[:3].double(), torch.tensor([0, 1, 2])) for x, _ in vectors(4)]
    expected = score(model, batches, ProsPr(inner_lr=0.5))
    scores = score(model, batches, Epsd(inner_lr=0.5))
    assert all(torch.equal(scores[name], expected[name]) for name in expected)


def test_class_partners() -> None:
    assert class_partners(torch.tensor([5, 1, 5, 1, 5, 7])).tolist() == [2, 3, 4, 1, 0, 5]
    assert class_partners(torch.tensor([4])).tolist() == [0]
    assert class_partners(torch.tensor([3, 3])).tolist() == [1, 0]
    labels = torch.randint(0, 4, (50,))
    partners = class_partners(labels)
    assert torch.equal(labels[partners], labels)
    assert sorted(partners.tolist()) == list(range(50))  # everyone teaches once
    for wrong in (torch.zeros(3, 2, dtype=torch.int64), torch.rand(3)):
        with pytest.raises(ScoreError, match="cs-kd needs one class a sample"):
            class_partners(wrong)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"inner_lr": 0.0}, "inner_lr must be"),
        ({"inner_lr": float("nan")}, "inner_lr must be"),
        ({"distillation": "ps-kd"}, "distillation must be cs-kd or dlb, got 'ps-kd'"),
        ({"temperature": 0.0}, "temperature"),
        ({"distillation_weight": -1.0}, "distillation_weight must be"),
    ],
    ids=str,
)
def test_epsd_checks_its_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        Epsd(**options)
