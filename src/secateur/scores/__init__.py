"""Scores: how much each weight is needed. One file a family; `score` runs any of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from secateur.errors import ScoreError
from secateur.naming import Batches, Loss, Named
from secateur.scores.base import AbstractCriterion, ScoreInputs, preserving
from secateur.scores.gradient import TaskGradient
from secateur.scores.magnitude import Magnitude, Random
from secateur.scores.teacher import GuidedScores, TeacherGuided
from secateur.targets import select_targets

__all__ = [
    "CRITERIA",
    "AbstractCriterion",
    "GuidedScores",
    "Magnitude",
    "Random",
    "ScoreInputs",
    "TaskGradient",
    "TeacherGuided",
    "score",
]

CRITERIA: dict[str, type[AbstractCriterion]] = {
    "teacher-guided": TeacherGuided,
    "magnitude": Magnitude,
    "task-gradient": TaskGradient,
    "random": Random,
}
"""Criteria by the name they have on the command line."""


def score(
    model: nn.Module,
    batches: Batches | None,
    criterion: AbstractCriterion,
    *,
    task_loss: Loss = F.cross_entropy,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
) -> Named:
    """Score every prunable weight of `model`; higher = keep.

    The model is looked at in eval mode and comes back bit for bit: parameters, buffers, gradients,
    hooks, modes and random state, also after an exception.

    Args:
        model: The trained student.
        batches: Iterable of ``(inputs, labels)`` or bare inputs; None for a criterion that needs none.
        criterion: What to score by.
        task_loss: ``f(outputs, labels)``, a scalar averaged over the batch.
        include: Shell patterns of weights to score, see `secateur.select_targets`.
        exclude: Shell patterns of weights to leave dense.

    Returns:
        One tensor a weight, by state-dict name; `GuidedScores` for a separate `TeacherGuided`.

    Raises:
        TargetError: if there is nothing to prune.
        ScoreError: if the criterion cannot work with what it was given.
        DataError: if the batches are empty or not usable.
    """
    targets = select_targets(model, include=include, exclude=exclude)
    with preserving(model), torch.enable_grad():
        scores = criterion(ScoreInputs(model, targets, batches, task_loss))
    for name, weight in targets.items():
        got = tuple(scores[name].shape) if name in scores else "nothing"
        if got != tuple(weight.shape):
            raise ScoreError(
                f"{type(criterion).__name__} returned {got} for {name!r}, expected {tuple(weight.shape)}."
            )
    foreign = [name for name in scores if name not in targets]
    if foreign:
        raise ScoreError(
            f"{type(criterion).__name__} scored {', '.join(foreign)}, which must not be pruned. "
            "Return a score for each of inputs.targets and nothing else."
        )
    return scores
