"""A plan beside the student that it was made from, and inputs for a plan that nobody gave any."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from secateur.deploy import Deployed, compare
from secateur.runtime import Engine
from secateur.runtime import compile as compile_model
from secateur.runtime.timing import random_inputs


class Answer(NamedTuple):
    """What a network may return beside its logits."""

    features: torch.Tensor
    logits: torch.Tensor


class Featured(nn.Module):
    """As many features as classes."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.classes = nn.Linear(6, 3), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> Answer:
        features = self.features(x)
        return Answer(features, self.classes(-features))


def test_logits_are_compared_wherever_they_stand() -> None:
    student, x = Featured().eval(), torch.randn(32, 6)
    plan = compile_model(student, x, threads=1)
    labels = student(x).logits.argmax(1)
    found = compare(Deployed(plan, student), Engine(plan, threads=1), [(x, labels)])
    assert (found.accuracy_torch, found.accuracy_engine, found.differing) == (1, 1, [])


class Columns(nn.Module):
    """A table for all columns of ids, each beginning at another row."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("first", torch.tensor([0, 10, 30]))
        self.rows = nn.Embedding(35, 8)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.rows(ids + self.first).sum(1)


def test_ids_that_are_moved_before_they_are_looked_up_can_be_timed() -> None:
    plan = compile_model(Columns().eval(), torch.zeros(2, 3, dtype=torch.int64), threads=1)
    [ids] = random_inputs(plan, batch=4)
    assert ids.shape == (4, 3)
    assert Engine(plan, threads=1)(ids).shape == (4, 8)
