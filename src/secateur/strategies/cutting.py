"""A cut within a strategy: by the student's present state, and never giving a weight back."""

from __future__ import annotations

from contextlib import nullcontext

from secateur.allocate import AbstractScope
from secateur.masks import Masks
from secateur.scores import AbstractCriterion
from secateur.stages import emptied_layers_ignored, staged_masks
from secateur.strategies.base import Problem


def cut_further(
    problem: Problem,
    criterion: AbstractCriterion,
    scope: AbstractScope,
    *,
    sparsity: float,
    gone: Masks | None,
) -> Masks:
    """Masks at `sparsity` by the scores of the student as it is now; it is not changed.

    Args:
        problem: Student, data and what is to be pruned.
        criterion: What to score by.
        scope: Where weights compete.
        sparsity: Fraction of the prunable weights to be gone, in [0, 1).
        gone: Masks that the student is under: what they removed stays removed.

    Raises:
        InvalidArgument: if the scope would take back a weight that is gone.
        SecateurError: as scoring and allocation raise.

    Warns:
        EmptiedLayerWarning: if a tensor keeps nothing; only for the sparsity that is asked in the end.
    """
    final = sparsity == problem.sparsity
    with nullcontext() if final else emptied_layers_ignored():
        return staged_masks(
            problem.student,
            problem.calibration,
            criterion,
            sparsity=sparsity,
            scope=scope,
            task_loss=problem.task_loss,
            include=problem.include,
            exclude=problem.exclude,
            gone=gone,
        )
