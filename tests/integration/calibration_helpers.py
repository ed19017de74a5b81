"""Cuts of a small network, for tests of what follows a cut."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from secateur.calibration import CalibrationRecovery
from secateur.counts import n_prune
from secateur.cutting import cut
from secateur.evaluate import reestimate_batchnorm
from secateur.losses import kd_loss
from secateur.scores import AbstractCriterion
from secateur.stages import Stage

STEPS = CalibrationRecovery(
    steps=40, final_steps=40, batch_size=16, lr=0.003, temperature=4.0, precision="fp32"
)


def inputs() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(16, 1, 6, 6, generator=generator) for _ in range(4)]


def network() -> nn.Sequential:
    """A network with a clear opinion, and BatchNorm statistics that fit."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3)
        model = nn.Sequential(*layers)
    with torch.no_grad():
        model[0].weight *= 10
        model[4].weight *= 20
    reestimate_batchnorm(model, inputs())
    return model.eval()


def loss_of(student: nn.Module, teacher: nn.Module) -> float:
    x = torch.cat(inputs())
    with torch.no_grad():
        return float(kd_loss(student.eval()(x), teacher.eval()(x), temperature=4.0))


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def cut_copy(
    criterion: AbstractCriterion, *, sparsity: float = 0.7, **options: Any
) -> tuple[nn.Module, nn.Module, list[Stage]]:
    """The cut student, the dense one, and the stages."""
    dense = network()
    student = copy.deepcopy(dense)
    stages: list[Stage] = []
    masks = cut(student, inputs(), criterion, sparsity=sparsity, on_stage=stages.append, **options)
    masks.check(student)
    assert masks.n_prune == n_prune(masks.numel, sparsity)
    assert stages[-1].masks is masks
    return student, dense, stages
