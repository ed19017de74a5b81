"""The curvature of the teacher's loss against a dense Gauss–Newton matrix that is formed and inverted."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from secateur.allocate import allocate
from secateur.errors import InvalidArgument, ScoreError
from secateur.losses import kd_loss
from secateur.scores import SolvingScores, TeacherCurvature, score
from secateur.scores.gauss_newton import Quadratic
from secateur.testing import check_criterion

T = 3.0
DAMPING = 0.5


def network(seed: int) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def inputs(n: int = 12) -> Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Dense:
    """``H = λI + mean over samples of JᵀC_TJ`` and the slope of the loss, over the flattened weights."""

    def __init__(self, student: nn.Module, teacher: nn.Module, x: Tensor, *, linear: bool = True) -> None:
        names = ["0.weight", "2.weight"]
        values = {n: p.detach() for n, p in student.named_parameters() if n in names}
        self.shapes = {name: value.shape for name, value in values.items()}
        self.w = torch.cat([values[name].flatten() for name in names])

        def outputs(flat: Tensor) -> Tensor:
            return functional_call(student, self.named(flat), (x,))

        def loss(flat: Tensor) -> Tensor:
            return kd_loss(outputs(flat), teacher(x).detach(), temperature=T)

        p = (outputs(self.w) / T).softmax(1)
        jacobian = jacrev(outputs)(self.w)
        middle = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        self.curvature = torch.einsum("nci,ncd,ndj->ij", jacobian, middle, jacobian).detach() / len(x)
        self.slope = jacrev(loss)(self.w).detach() * linear
        self.damping = DAMPING * float(self.curvature.diagonal().mean())
        self.hessian = self.curvature + self.damping * torch.eye(len(self.w), dtype=torch.float64)
        self.loss = loss

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        sizes = [shape.numel() for shape in self.shapes.values()]
        parts = zip(self.shapes.items(), flat.split(sizes), strict=True)
        return {name: part.view(shape) for (name, shape), part in parts}

    def saliency(self) -> Tensor:
        inverse = torch.linalg.inv(self.hessian)
        minimum = self.w - inverse @ self.slope
        # how far removing w takes it from its minimum
        return minimum.square() / 2 / inverse.diagonal()

    def solve(self, kept: Tensor) -> tuple[Tensor, float]:
        step = torch.where(kept, torch.zeros_like(self.w), -self.w)
        right = -(self.slope + self.hessian @ step)[kept]
        step[kept] = torch.linalg.solve(self.hessian[kept][:, kept], right)
        return self.w + step, float(self.slope @ step + 0.5 * step @ self.curvature @ step)


def flat(scores: Any) -> Tensor:
    return torch.cat([scores["0.weight"].flatten(), scores["2.weight"].flatten()]).double()


def criterion(teacher: nn.Module, **options: Any) -> TeacherCurvature:
    return TeacherCurvature(teacher, temperature=T, draw="exact", damping=DAMPING, **options)


@pytest.mark.parametrize("linear", [True, False])
def test_scores_are_those_of_optimal_brain_surgeon_on_the_dense_matrix(linear: bool) -> None:
    student, teacher, x = network(0), network(1), inputs()
    expected = Dense(student, teacher, x, linear=linear).saliency()
    scores = score(student, [x[:5], x[5:]], criterion(teacher, linear=linear))
    assert torch.allclose(flat(scores), expected, rtol=1e-3, atol=1e-5 * float(expected.max()))


def test_saliency_by_hand_where_rows_explain_almost_all() -> None:
    """G = I and λ = 1/1000, so H = 1.001·I, [H⁻¹]_ww = 1/1.001, and S = 1.001·w²/2."""
    weights = {"w": torch.tensor([2.0, -3.0])}
    model = Quadratic({"w": torch.eye(2)}, {"w": torch.zeros(2)}, weights)
    assert model.saliency(1e-3)["w"].tolist() == pytest.approx([2.002, 4.5045], rel=1e-3)


@pytest.mark.parametrize("linear", [True, False])
def test_kept_weights_are_the_minimum_on_their_support(linear: bool) -> None:
    student, teacher, x = network(0), network(1), inputs()
    dense = Dense(student, teacher, x, linear=linear)
    scores = score(student, [x], criterion(teacher, linear=linear))
    masks = allocate(scores, sparsity=0.4)
    assert isinstance(scores, SolvingScores)
    solution = scores.solve(masks)
    weights, predicted = dense.solve(flat(masks) > 0)
    assert torch.allclose(flat(solution.weights), weights, rtol=1e-3, atol=1e-4)
    assert solution.predicted == pytest.approx(predicted, rel=1e-3)
    assert int((flat(solution.weights) == 0).sum()) == masks.n_prune


def test_the_prediction_is_the_change_of_the_loss_where_the_cut_is_small() -> None:
    student, x = network(0), inputs()
    with torch.no_grad():
        student[0].weight[0, :2] *= 0.02
    teacher = copy.deepcopy(student)
    dense = Dense(student, teacher, x)
    scores = score(student, [x], criterion(teacher))
    kept = torch.ones(len(dense.w), dtype=torch.bool)
    kept[:2] = False
    assert isinstance(scores, SolvingScores)
    solution = scores.solve(dense.named(kept))
    assert float(dense.loss(flat(solution.weights)).detach()) == pytest.approx(solution.predicted, rel=0.05)


def test_exact_curvature_of_few_rows_is_of_inputs_from_the_whole_set() -> None:
    student, teacher, x = network(0), network(1), inputs()
    four = criterion(teacher, rows=4 * 3, linear=False)  # four inputs, a row for each of three classes
    found = flat(score(student, [x], four))
    assert torch.equal(found, flat(score(student, [x[::3]], four)))
    later = x.clone()
    later[9] *= 2
    assert not torch.allclose(found, flat(score(student, [later], four)))


@pytest.mark.parametrize("most", [4000, 1000, 400])
def test_draws_have_the_exact_curvature_in_expectation_alone_and_in_groups(most: int) -> None:
    """Many draws for the same few inputs come near the exact scores, also with several inputs a row."""
    student, teacher, x = network(0), network(1), inputs(4)
    expected = flat(score(student, [x], criterion(teacher, linear=False)))
    drawn = TeacherCurvature(teacher, temperature=T, damping=DAMPING, rows=most, linear=False)
    found = flat(score(student, [x.repeat(1000, 1)], drawn))
    assert torch.allclose(found, expected, rtol=0.3)
    assert float((found / expected).log().mean().abs()) < 0.1


def test_weights_that_are_gone_score_nothing_and_never_come_back() -> None:
    student, teacher, x = network(0), network(1), inputs()
    with torch.no_grad():
        student[0].weight[2] = 0.0
    scores = score(student, [x], TeacherCurvature(teacher))
    assert bool((scores["0.weight"][2] == 0).all())
    assert isinstance(scores, SolvingScores)
    masks = allocate(scores, sparsity=0.5)
    assert bool((scores.solve(masks).weights["0.weight"][2] == 0).all())


def test_scores_alone_are_plain() -> None:
    student, teacher, x = network(0), network(1), inputs()
    plain = score(student, [x], TeacherCurvature(teacher, update_weights=False))
    assert not isinstance(plain, SolvingScores)
    assert flat(plain).tolist() == flat(score(student, [x], TeacherCurvature(teacher))).tolist()


def test_labels_are_not_looked_at() -> None:
    student, teacher, x = network(0), network(1), inputs()
    with_labels = score(student, [(x, torch.full((12,), -7))], TeacherCurvature(teacher))
    assert flat(with_labels).tolist() == flat(score(student, [x], TeacherCurvature(teacher))).tolist()


def test_the_contract() -> None:
    check_criterion(TeacherCurvature)
    check_criterion(TeacherCurvature(nn.Identity(), draw="exact", damping=1.0, update_weights=False))


def test_refusals() -> None:
    teacher = network(1)
    for wrong in (
        {"temperature": 0.0},
        {"draw": "label"},
        {"damping": 0.0},
        {"damping": float("nan")},
        {"rows": 0},
        {"memory_gb": 0.0},
    ):
        with pytest.raises(InvalidArgument, match=next(iter(wrong))):
            TeacherCurvature(teacher, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ScoreError, match="memory_gb"):
        score(network(0), [inputs()], TeacherCurvature(teacher, memory_gb=1e-8))
    with pytest.raises(ScoreError, match="no curvature"):
        score(Constant(), [inputs()], TeacherCurvature(Constant()))


class Constant(nn.Module):
    """Outputs that depend on the weights, but not by any slope."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 3, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * 0


def test_a_damping_whose_trial_cut_gives_no_number_is_not_the_best() -> None:
    class Exponential(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 30), nn.Linear(30, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.exp(5.0 * self.a(x)))

    with torch.random.fork_rng():
        torch.manual_seed(3)
        student = Exponential()
        teacher = copy.deepcopy(student)
        with torch.no_grad():
            for weight in teacher.parameters():
                weight.add_(0.3 * torch.randn_like(weight))
        x = 0.5 * torch.randn(80, 6)
    options: dict[str, Any] = {"rows": 8, "update_weights": False}
    chosen = score(student, [x], TeacherCurvature(teacher, **options))["a.weight"]
    # Of trial cuts with λ = 1, 10, 100, 1,000 and 10,000 the first gives NaN, and the third costs least.
    first, third = (
        score(student, [x[::2]], TeacherCurvature(teacher, damping=damping, **options))["a.weight"]
        for damping in (1.0, 100.0)
    )
    assert torch.equal(chosen, third)
    assert not torch.equal(chosen, first)
