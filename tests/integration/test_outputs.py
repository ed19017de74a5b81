"""Cuts of networks whose outputs are no logits."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from secateur.calibration import CalibrationRecovery
from secateur.cutting import cut
from secateur.scores import LayerReconstruction, Magnitude, TeacherFisher


def test_layers_of_a_network_without_classes_can_be_solved_for() -> None:
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))
    inputs = [torch.randn(64, 6)]
    losses: list[tuple[float, float, float]] = []
    cut(
        student,
        inputs,
        LayerReconstruction(copy.deepcopy(student)),
        sparsity=0.5,
        on_stage=lambda stage: losses.append(stage.loss),
    )
    assert losses[0][0] == 0
    assert losses[0][2] > 0  # the mean squared difference to the dense network


def test_outputs_far_from_0_are_not_rounded_to_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.recovery._has_fast_bf16", lambda _: True)
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2))
    with torch.no_grad():
        dense[2].bias += 1000.0
    x, errors = torch.randn(256, 4), list[float]()
    for precision in ("auto", "fp32", "bf16"):
        student = copy.deepcopy(dense)
        recovery: Any = CalibrationRecovery(steps=20, final_steps=100, kd="mse", precision=precision)
        cut(student, [x], Magnitude(), sparsity=0.5, recovery=recovery)
        with torch.no_grad():
            errors.append(float(nn.functional.mse_loss(student(x), dense(x))))
    assert errors[0] == errors[1] < errors[2] / 2


def test_steps_bring_outputs_that_are_no_logits_back_to_the_teachers() -> None:
    """A softmax takes outputs to be the same with any offset; the squared difference does not."""
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 2))
    with torch.no_grad():
        dense[0].bias += 1.0  # what is cut moves both outputs to the same side
        dense[2].weight.abs_()
    inputs = [torch.randn(64, 6)]

    def error_of(kd: Any) -> tuple[float, float]:
        student, losses = copy.deepcopy(dense), list[float]()
        recipe = CalibrationRecovery(steps=200, final_steps=200, lr=0.003, kd=kd, precision="fp32")
        cut(
            student,
            inputs,
            TeacherFisher(copy.deepcopy(dense), kd="mse"),
            sparsity=0.8,
            stages=2,
            recovery=recipe,
            on_stage=lambda stage: losses.append(stage.loss[2]),
        )
        with torch.no_grad():
            return float(nn.functional.mse_loss(student(inputs[0]), dense(inputs[0]))), losses[-1]

    (error, told), (blind, _) = error_of("mse"), error_of("forward")
    assert error == pytest.approx(told, rel=1e-4)
    assert error < blind / 3
