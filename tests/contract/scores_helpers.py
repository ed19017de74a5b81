"""What the contract of the criteria is checked on, and how; all tests of it share this."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from helpers import Noise, Snapshot, Tally, images, make_cnn, same_bits
from secateur.scores import AbstractCriterion, score
from secateur.targets import select_targets


def weird_cnn() -> nn.Module:
    """A network with all that scoring could disturb: mixed modes, a frozen bias, gradients, busy buffers."""
    model = make_cnn()
    model.insert(1, Tally())
    model.train()
    model[2].eval()  # a frozen BatchNorm
    model[4].bias.requires_grad_(False)
    model[4].weight.grad = torch.randn_like(model[4].weight)
    model[9].bias.grad = torch.randn_like(model[9].bias)
    return model


def noisy_teacher() -> nn.Module:
    return nn.Sequential(Noise(), weird_cnn())


def assert_scores(scores: Any, model: nn.Module) -> None:
    targets = select_targets(model)
    assert list(scores) == list(targets)
    for name, weight in targets.items():
        assert scores[name].shape == weight.shape
        assert scores[name].dtype in (torch.float32, torch.float64)
        assert not scores[name].requires_grad
        assert bool(torch.isfinite(scores[name]).all())
        assert bool((scores[name] >= 0).all())


def meets_contract(criterion: AbstractCriterion, student: nn.Module, teacher: nn.Module) -> None:
    """Names, shapes, types and signs; determinism; model and teacher untouched."""
    before, teacher_before = Snapshot.of(student), Snapshot.of(teacher)
    scores = score(student, images(), criterion)
    before.assert_unchanged(student)
    teacher_before.assert_unchanged(teacher)
    assert_scores(scores, student)
    again = score(student, images(), criterion)
    assert all(same_bits(scores[name], again[name]) for name in scores)
    assert any(bool((scores[name] > 0).any()) for name in scores)
