"""TeacherFisher against finite differences, and the squared gradients of the steps against a slow loop."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers import CLASSES, make_mlp, vectors
from reference import scores as oracle
from reference.test_scores import setup, weights_of
from secateur.calibration import CalibrationRecovery, distil_on_inputs
from secateur.cutting import cut
from secateur.errors import InvalidArgument, ScoreError
from secateur.losses import kd_loss
from secateur.masks import Masks
from secateur.scores import AbstractCriterion, Magnitude, ScoreInputs, TeacherFisher, score
from secateur.scores.teacher_fisher import draw_classes
from secateur.stages import Stage
from secateur.targets import select_targets

T = 3.0
STEPS = CalibrationRecovery(steps=3, final_steps=3, batch_size=8, lr=0.05, precision="fp32")


def slow_draw(rows: list[list[float]], generator: torch.Generator) -> list[int]:
    """A class for each row of logits by its softmax at T, one after the other."""
    drawn: list[int] = []
    for row, dice in zip(rows, torch.rand(len(rows), generator=generator, dtype=torch.float64), strict=True):
        left, p = float(dice), oracle.softmax(row, T)
        chosen = 0
        while left > p[chosen] and chosen < len(p) - 1:
            left -= p[chosen]
            chosen += 1
        drawn.append(chosen)
    return drawn


@pytest.mark.parametrize("power", [0.0, 0.25, 0.5])
def test_the_score_is_magnitude_times_a_power_of_the_mean_squared_gradient(power: float) -> None:
    student, teacher, batches = setup()
    scores = score(student, batches, TeacherFisher(teacher, temperature=T, power=power, seed=4))
    weights = weights_of(student)
    generator = torch.Generator().manual_seed(4)
    squares = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for x, _ in batches:
        drawn = slow_draw(oracle.logits(teacher, x), generator)

        def loss(x: Tensor = x, drawn: list[int] = drawn) -> float:
            return T**2 * oracle.cross_entropy([[z / T for z in r] for r in oracle.logits(student, x)], drawn)

        for name, gradient in oracle.gradients(loss, weights).items():
            squares[name] += gradient.square() / len(batches)
    for name, weight in weights.items():
        expected = weight.detach().abs() * squares[name] ** power
        assert bool((expected > 0).any())
        assert torch.allclose(scores[name], expected, rtol=1e-2, atol=1e-3 * float(expected.max())), name


def test_outputs_that_are_no_logits_have_a_normal_distribution() -> None:
    """In expectation squared gradients are those of the outputs, and of how far they are from the target."""
    student, teacher, batches = setup()
    x = batches[0][0][:1]
    ours, theirs = student(x)[0], teacher(x)[0].detach()
    weights, n = weights_of(student), len(ours)
    parts = [torch.autograd.grad(out, list(weights.values()), retain_graph=True) for out in ours]
    draws = 4000
    found = score(student, [x] * draws, TeacherFisher(teacher, kd="mse", power=0.5))
    for place, (name, weight) in enumerate(weights.items()):
        rows = torch.stack([part[place] for part in parts])
        far = (rows.movedim(0, -1) * (ours - theirs).detach()).sum(-1)
        expected = weight.detach().abs() * 2 / n * (rows.square().sum(0) + far.square()).sqrt()
        assert torch.allclose(found[name], expected, rtol=0.1, atol=0.02 * float(expected.max())), name


def test_positions_count_as_samples() -> None:
    """A network that reads several vectors a sample, such as a model of words, scores as on each alone."""

    class Each(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).movedim(-1, 1)

    student, teacher, batches = setup()
    expected = score(student, [x for x, _ in batches], TeacherFisher(teacher, seed=4))
    three = [x.unflatten(0, (1, -1)) for x, _ in batches]
    found = score(Each(student), three, TeacherFisher(Each(teacher), seed=4))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[f"inner.{name}"], tensor)


def test_in_expectation_the_drawn_gradient_is_that_of_the_teachers_loss() -> None:
    student, teacher = make_mlp(), make_mlp(1)
    x = vectors()[0][0].repeat(20_000, 1)
    with torch.no_grad():
        taught = teacher(x)
    drawn = draw_classes(taught / T, torch.Generator().manual_seed(0))
    found = T**2 * nn.functional.cross_entropy(student(x) / T, drawn)
    wanted = kd_loss(student(x), taught, temperature=T)
    weights = list(select_targets(student).values())
    for got, expected in zip(
        torch.autograd.grad(found, weights), torch.autograd.grad(wanted, weights), strict=True
    ):
        assert float((got - expected).norm() / expected.norm()) < 0.1


def test_classes_are_drawn_by_their_probability() -> None:
    p = torch.tensor([0.5, 0.3, 0.2, 0.0])
    drawn = draw_classes(p.log().expand(20_000, 4), torch.Generator().manual_seed(0))
    shares = drawn.bincount(minlength=4) / len(drawn)
    assert torch.allclose(shares, p, atol=3 * math.sqrt(0.25 / len(drawn)))
    assert shares[3] == 0


def stepped(masks: Masks | None = None) -> tuple[nn.Module, nn.Module, Tensor, Masks]:
    student, teacher = make_mlp(), make_mlp(1)
    x = torch.cat([x for x, _ in vectors()])
    masks = masks or cut(copy.deepcopy(student), None, Magnitude(), sparsity=0.5)
    return student, teacher, x, masks


def test_steps_leave_their_mean_squared_gradients_behind() -> None:
    student, teacher, x, masks = stepped()
    recipe = replace(STEPS, batch_size=len(x), momentum=0.0, temperature=T)
    other = copy.deepcopy(student)
    found = distil_on_inputs(student, x, teacher, masks, recipe, steps=3)
    assert found is not None
    weights = select_targets(other)
    expected = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    with torch.no_grad():
        for name, weight in weights.items():
            weight.mul_(masks[name])
    for step in range(3):
        loss = kd_loss(other(x), teacher(x), temperature=T)
        parameters = dict(other.named_parameters())
        gradients = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
        rate = _rate(recipe, step, 3)
        with torch.no_grad():
            for name, parameter in parameters.items():
                kept = masks[name] if name in masks else torch.ones_like(parameter, dtype=torch.bool)
                gradient = gradients[name] * kept
                if name in expected:
                    expected[name] += gradient.square() / 3
                parameter.sub_(rate * gradient)
    assert list(found) == list(expected)
    for name, wanted in expected.items():
        assert torch.allclose(found[name], wanted, rtol=1e-3, atol=1e-9), name
        assert bool((found[name][~masks[name]] == 0).all())
        assert bool((found[name] > 0).any())


def _rate(recipe: CalibrationRecovery, step: int, steps: int) -> float:
    """By hand: rises over a tenth, then half a cosine."""
    at = (step + 0.5) / steps
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * (at - 0.1) / 0.9))


class Spy(AbstractCriterion):
    """Magnitude that notes what it is given."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def __call__(self, inputs: ScoreInputs) -> Any:
        self.seen.append(inputs.squared_gradients)
        return Magnitude()(inputs)


def test_a_cut_in_stages_hands_them_to_the_next_stage() -> None:
    student, teacher, _, _ = stepped()
    spy, seen = Spy(), list[Stage]()
    cut(
        student,
        [x for x, _ in vectors()],
        spy,
        sparsity=0.7,
        stages=3,
        recovery=STEPS,
        teacher=teacher,
        on_stage=seen.append,
    )
    assert spy.seen[0] is None
    for squares, stage in zip(spy.seen[1:], seen, strict=False):
        for name, mask in stage.masks.items():
            assert torch.equal(squares[name] > 0, mask & (squares[name] > 0))
            assert bool((squares[name] > 0).any())
    assert not torch.equal(spy.seen[1]["0.weight"], spy.seen[2]["0.weight"])
    without = Spy()
    cut(make_mlp(), [x for x, _ in vectors()], without, sparsity=0.7, stages=3)
    assert without.seen == [None] * 3


def test_what_the_steps_left_is_taken_in_place_of_a_pass() -> None:
    student, teacher, batches = setup()
    given = {name: torch.rand_like(w.detach()) for name, w in select_targets(student).items()}
    asked: list[int] = []
    teacher.register_forward_hook(lambda *_: asked.append(1))
    scores = score(student, None, TeacherFisher(teacher), squared_gradients=given)
    assert not asked
    for name, weight in select_targets(student).items():
        assert torch.allclose(scores[name], weight.detach().abs() * given[name] ** 0.25)
    score(student, batches, TeacherFisher(teacher))
    assert asked


@pytest.mark.parametrize("power", [0.0, 0.25, 0.5])
def test_relative_scores_are_in_units_of_a_layers_root_mean_square(power: float) -> None:
    student, teacher, _ = setup()
    targets = select_targets(student)
    with torch.no_grad():
        targets["0.weight"][0] = 0  # what is gone does not count
        targets["2.weight"].zero_()  # nor does a layer of which nothing is left divide by zero
    given = {name: torch.rand_like(w.detach()) for name, w in targets.items()}
    scores = score(student, None, TeacherFisher(teacher, power=power, relative=True), squared_gradients=given)
    for name, weight in targets.items():
        kept = [float(w) for w in weight.detach().flatten() if w != 0]
        unit = math.sqrt(sum(w * w for w in kept) / len(kept)) if kept else 1.0
        for s, w, f in zip(
            scores[name].flatten(), weight.detach().flatten(), given[name].flatten(), strict=True
        ):
            assert float(s) == pytest.approx(abs(float(w)) / unit * (unit**2 * float(f)) ** power)


def test_relative_scores_do_not_change_where_batchnorm_undoes_a_factor() -> None:
    torch.manual_seed(0)
    student = nn.Sequential(
        nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8, eps=0), nn.ReLU(), nn.Linear(8, CLASSES)
    )
    student = student.double().eval()
    teacher, batches = (
        copy.deepcopy(student),
        [(torch.randn(16, 6, dtype=torch.float64), torch.zeros(16).long())],
    )
    other = copy.deepcopy(student)
    with torch.no_grad():
        other[0].weight.mul_(7)
        other[1].running_var.mul_(49)
    found, same = (score(net, batches, TeacherFisher(teacher, relative=True)) for net in (student, other))
    assert all(torch.allclose(found[name], same[name]) for name in found)
    plain, moved = (score(net, batches, TeacherFisher(teacher)) for net in (student, other))
    assert torch.allclose(plain["0.weight"] * 7**0.5, moved["0.weight"])


def test_refusals() -> None:
    student, teacher, batches = setup()
    for wrong in ({"temperature": 0.0}, {"power": -0.1}, {"power": 1.5}, {"kd": "reverse"}):
        with pytest.raises(InvalidArgument, match=next(iter(wrong))):
            TeacherFisher(teacher, **wrong)
    with pytest.raises(InvalidArgument, match="does nothing with kd='mse'"):
        TeacherFisher(teacher, kd="mse", temperature=2.0)
    other = nn.Linear(6, CLASSES + 1).double()
    with pytest.raises(ScoreError, match="classes"):
        score(student, batches, TeacherFisher(other))
    with pytest.raises(ScoreError, match=r"squared_gradients has nothing for"):
        score(student, batches, TeacherFisher(teacher), squared_gradients={})
