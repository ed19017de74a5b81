"""Distances between student and teacher against plain loops and hand computation."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import make_mlp
from reference import scores as oracle
from secateur.calibration import CalibrationRecovery
from secateur.errors import InvalidArgument, ScoreError
from secateur.losses import cosine_loss, distillation, kd_loss, mse_loss, standardize_logits
from secateur.recovery import Recovery
from secateur.scores import TeacherGuided

KINDS = ("forward", "reverse", "ca-kld", "mse", "cosine")


def some_logits(n: int = 6, classes: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    student, teacher = 3 * torch.randn(2, n, classes, generator=generator, dtype=torch.float64)
    return student, teacher


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("kind", ["forward", "reverse", "ca-kld"])
def test_divergences_are_their_formula(kind: Any, temperature: float, standardize: bool) -> None:
    student, teacher = some_logits()
    beta = 0.3 if kind == "ca-kld" else 0.5
    options: dict[str, Any] = {"temperature": temperature, "beta": beta, "standardize": standardize}
    expected = oracle.kd(student.tolist(), teacher.tolist(), kind=kind, **options)
    assert float(kd_loss(student, teacher, direction=kind, **options)) == pytest.approx(expected, rel=1e-9)
    for named in (Recovery(kd=kind, **options), CalibrationRecovery(kd=kind, **options)):
        assert float(distillation(named)(student, teacher)) == pytest.approx(expected, rel=1e-9)


def test_plain_distances_are_their_formula() -> None:
    student, teacher = some_logits()
    for kind, loss in (("mse", mse_loss), ("cosine", cosine_loss)):
        expected = oracle.kd(student.tolist(), teacher.tolist(), kind=kind, temperature=1)
        assert float(loss(student, teacher)) == pytest.approx(expected, rel=1e-9)
        assert distillation(Recovery(kd=kind)) is loss  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_a_distance_is_zero_to_itself_and_sends_no_gradient_to_the_teacher(kind: Any) -> None:
    student, teacher = some_logits()
    loss = distillation(Recovery(kd=kind))
    assert float(loss(student, student.clone())) == pytest.approx(0, abs=1e-12)
    student.requires_grad_()
    teacher.requires_grad_()
    loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert bool((student.grad != 0).any())


def test_high_temperatures_approach_the_squared_distance_of_centred_logits() -> None:
    """As T grows, T²·KL → ½·mean of squared differences of centred logits (Hinton 2015 §2.1)."""
    student, teacher = some_logits()
    difference = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    expected = float(difference.square().sum(1).mean()) / (2 * student.shape[1])
    for direction in ("forward", "reverse"):
        loss = kd_loss(student, teacher, temperature=1e4, direction=direction)  # type: ignore[arg-type]
        assert float(loss) == pytest.approx(expected, rel=1e-2)


def test_dense_outputs_are_averaged_over_their_places() -> None:
    student, teacher = torch.randn(2, 2, 5, 3, 4).double()
    flat = [t.movedim(1, -1).reshape(-1, 5) for t in (student, teacher)]
    assert float(kd_loss(student, teacher, temperature=2)) == pytest.approx(
        float(kd_loss(*flat, temperature=2))
    )


def test_standardised_logits_have_mean_0_and_standard_deviation_1() -> None:
    logits = standardize_logits(7 + some_logits()[0])
    assert torch.allclose(logits.mean(1), torch.zeros(6).double(), atol=1e-12)
    assert torch.allclose(logits.std(1, correction=0), torch.ones(6).double(), atol=1e-6)


def test_the_gradient_of_equal_logits_is_finite_when_standardised() -> None:
    student = torch.zeros(2, 3, requires_grad=True)
    kd_loss(student, torch.randn(2, 3), temperature=4, standardize=True).backward()
    assert student.grad is not None
    assert bool(torch.isfinite(student.grad).all())


def test_losses_refuse_what_they_cannot_compare() -> None:
    student, teacher = some_logits()
    for call, message in (
        (lambda: kd_loss(student, teacher[:, :3], temperature=1), "student knows 5 classes, the teacher 3"),
        (lambda: kd_loss(student, teacher[:2], temperature=1), "they must be equal"),
        (lambda: mse_loss(student, teacher[None]), "they must be equal"),
        (lambda: kd_loss(student[:, 0], teacher[:, 0], temperature=1), r"2 classes or more, got \(6,\)"),
        (lambda: kd_loss(student[:, :1], teacher[:, :1], temperature=1), r"2 classes or more, got \(6, 1\)"),
    ):
        with pytest.raises(ScoreError, match=message):
            call()
    bad: list[tuple[str, Any]] = [
        ("temperature", 0),
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("beta", 1.5),
        ("direction", "sideways"),
    ]
    for name, value in bad:
        with pytest.raises(InvalidArgument, match=f"{name} must be"):
            kd_loss(student, teacher, **{"temperature": 1.0, name: value})
    with pytest.raises(InvalidArgument, match="kd must be forward, reverse"):
        Recovery(kd="sideways")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.3}, "beta=0.3 does nothing with kd='forward', only with ca-kld"),
        ({"kd": "mse", "temperature": 2.0}, "temperature=2.0 does nothing with kd='mse'"),
        ({"kd": "cosine", "standardize": True}, "standardize=True does nothing with kd='cosine'"),
    ],
    ids=str,
)
def test_a_number_that_no_distance_would_read_is_refused(options: Any, message: str) -> None:
    for make in (partial(TeacherGuided, make_mlp()), Recovery, CalibrationRecovery):
        with pytest.raises(InvalidArgument, match=message):
            make(**options)


@pytest.mark.parametrize("direction", ["forward", "reverse", "ca-kld"])
@pytest.mark.parametrize("temperature", [1.0, 8.0, 20.0])
def test_the_divergence_of_close_answers_is_not_lost_in_rounding(direction: Any, temperature: float) -> None:
    teacher = 3 * torch.randn(200, 10, generator=torch.Generator().manual_seed(0))
    student = teacher + 1e-3 * torch.randn(200, 10, generator=torch.Generator().manual_seed(1))
    single = kd_loss(student, teacher, temperature=temperature, direction=direction)
    double = kd_loss(student.double(), teacher.double(), temperature=temperature, direction=direction)
    assert float(single) == pytest.approx(float(double), rel=1e-3)
    assert float(kd_loss(teacher, teacher, temperature=temperature, direction=direction)) == 0.0


def test_the_divergence_of_opposite_answers_is_finite() -> None:
    student = torch.tensor([[0.0, -300.0]], requires_grad=True)
    loss = kd_loss(student, torch.tensor([[-300.0, 0.0]]), temperature=1.0)
    loss.backward()
    assert loss.item() == 300.0
    assert student.grad is not None
    assert student.grad.tolist() == [[1.0, -1.0]]
