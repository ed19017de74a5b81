"""Scores: how much each weight is needed. One file a family; `score` runs any of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.errors import ScoreError
from secateur.kinds import check_kind
from secateur.losses import explained
from secateur.naming import Batches, Loss, Named
from secateur.scores.base import AbstractCriterion, ScoreInputs, Solution, SolvingScores, preserving
from secateur.scores.controls import Inverted, Shuffled
from secateur.scores.curvature import Fisher, GraSP
from secateur.scores.gradient import TaskGradient
from secateur.scores.magnitude import Lamp, Magnitude, Random
from secateur.scores.meta import Epsd, ProsPr
from secateur.scores.reconstruction import LayerReconstruction
from secateur.scores.sensitivity import Platon, Snip, Taylor
from secateur.scores.synflow import SynFlow
from secateur.scores.teacher import GuidedScores, TeacherGuided
from secateur.scores.teacher_curvature import TeacherCurvature
from secateur.scores.teacher_fisher import TeacherFisher
from secateur.scores.wanda import Wanda
from secateur.targets import select_targets

__all__ = [
    "CRITERIA",
    "AbstractCriterion",
    "Epsd",
    "Fisher",
    "GraSP",
    "GuidedScores",
    "Inverted",
    "Lamp",
    "LayerReconstruction",
    "Magnitude",
    "Platon",
    "ProsPr",
    "Random",
    "ScoreInputs",
    "Shuffled",
    "Snip",
    "Solution",
    "SolvingScores",
    "SynFlow",
    "TaskGradient",
    "Taylor",
    "TeacherCurvature",
    "TeacherFisher",
    "TeacherGuided",
    "Wanda",
    "score",
]

CRITERIA: dict[str, type[AbstractCriterion]] = {
    "teacher-guided": TeacherGuided,
    "teacher-fisher": TeacherFisher,
    "teacher-curvature": TeacherCurvature,
    "layer-reconstruction": LayerReconstruction,
    "magnitude": Magnitude,
    "lamp": Lamp,
    "random": Random,
    "task-gradient": TaskGradient,
    "snip": Snip,
    "taylor": Taylor,
    "platon": Platon,
    "fisher": Fisher,
    "grasp": GraSP,
    "synflow": SynFlow,
    "wanda": Wanda,
    "prospr": ProsPr,
    "epsd": Epsd,
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
    weights: Named | None = None,
    squared_gradients: Named | None = None,
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
        weights: Values that scores multiply with, by name; the model's own by default. A cut in stages
            gives the unmasked ones here, while gradients are those of the masked model.
        squared_gradients: What `distil_on_inputs` returned, if the student has just been distilled; for
            `TeacherFisher`, which then needs no pass of its own.

    Returns:
        One tensor a weight, by state-dict name; `GuidedScores` for a separate `TeacherGuided`.

    Raises:
        TargetError: if there is nothing to prune.
        ScoreError: if the criterion cannot work with what it was given, or `weights` does not fit.
        DataError: if the batches are empty or not usable.
    """
    check_kind("criterion", criterion, AbstractCriterion, "Magnitude()")
    targets = select_targets(model, include=include, exclude=exclude)
    values = {name: p.detach() for name, p in targets.items()} if weights is None else weights
    if complex_ones := [name for name, weight in targets.items() if weight.is_complex()]:
        raise ScoreError(
            f"{complex_ones[0]!r} is {targets[complex_ones[0]].dtype}; scores are of real weights. Leave it "
            f"out: exclude={tuple(complex_ones)!r}."
        )
    for name, target in targets.items():
        got = tuple(values[name].shape) if name in values else "nothing"
        if got != tuple(target.shape):
            raise ScoreError(
                f"weights holds {got} for {name!r}, expected {tuple(target.shape)}. "
                "Give the unmasked values of every weight that is scored."
            )
    values = {name: values[name].detach() for name in targets}
    if squared_gradients is not None and (missing := sorted(targets.keys() - squared_gradients.keys())):
        raise ScoreError(f"squared_gradients has nothing for {missing[0]!r}. Give those of every weight.")
    with preserving(model), torch.enable_grad():
        scores = criterion(
            ScoreInputs(model, targets, batches, explained(task_loss), values, squared_gradients)
        )
    for name, weight in targets.items():
        _check_answer(type(criterion).__name__, name, scores.get(name), weight)
    foreign = [name for name in scores if name not in targets]
    if foreign:
        raise ScoreError(
            f"{type(criterion).__name__} scored {', '.join(foreign)}, which must not be pruned. "
            "Return a score for each of inputs.targets and nothing else."
        )
    return scores


def _check_answer(criterion: str, name: str, scores: object, weight: Tensor) -> None:
    if scores is not None and not isinstance(scores, Tensor):
        raise ScoreError(
            f"{criterion} returned a {type(scores).__name__} for {name!r}, expected a tensor. Compute in "
            "torch, or make a tensor of it with torch.as_tensor, on the device of the weight."
        )
    got = "nothing" if scores is None else tuple(scores.shape)
    if got != tuple(weight.shape):
        raise ScoreError(f"{criterion} returned {got} for {name!r}, expected {tuple(weight.shape)}.")
