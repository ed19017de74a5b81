"""One cut, or few without training in between, and then all the training; and no cut at all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

from secateur.allocate import AbstractScope, Global
from secateur.calibration import CalibrationRecovery
from secateur.cutting import cut, moves_weights
from secateur.modules import twin
from secateur.scores import AbstractCriterion, Magnitude
from secateur.stages import check_stages, staged_masks
from secateur.strategies.base import AbstractStrategy, Problem, Round


@dataclass(frozen=True)
class OneShot(AbstractStrategy):
    """Cut once by a criterion, then recover on the whole budget. The default; needs no budget.

    Where the cut moves the weights that it keeps, by `TeacherCurvature` or by `recovery`, these are what the
    recovery starts from.

    Attributes:
        criterion: What to score by.
        scope: Where weights compete.
        stages: Partial cuts, re-scored on the same data without training in between (Iter-SNIP).
        regrow: Whether a later stage may bring weights back (FORCE).
        recovery: Distillation steps on the calibration inputs after each stage, no part of the budget; the
            teacher is the criterion's, or else the student as it was. The problem's seed is added to its own.
    """

    in_rounds: ClassVar[bool] = False
    criterion: AbstractCriterion = field(default_factory=Magnitude)
    scope: AbstractScope = field(default_factory=Global)
    stages: int = 1
    regrow: bool = False
    recovery: CalibrationRecovery | None = None

    def __post_init__(self) -> None:
        check_stages(self.stages, regrow=self.regrow)

    def rounds_for(self, problem: Problem) -> Iterator[Round]:
        """One round."""
        if moves_weights(self.criterion, self.recovery):
            trial, recipe = twin(problem.student), self.recovery
            if recipe is not None:
                recipe = replace(recipe, seed=recipe.seed + problem.seed)
            masks = cut(
                trial,
                problem.calibration,
                self.criterion,
                sparsity=problem.sparsity,
                scope=self.scope,
                stages=self.stages,
                regrow=self.regrow,
                recovery=recipe,
                task_loss=problem.task_loss,
                include=problem.include,
                exclude=problem.exclude,
            )
            weights = trial.state_dict()
            yield Round(masks, parts=problem.parts, schedule=problem.parts, weights=weights)
            return
        masks = staged_masks(
            problem.student,
            problem.calibration,
            self.criterion,
            sparsity=problem.sparsity,
            scope=self.scope,
            stages=self.stages,
            regrow=self.regrow,
            task_loss=problem.task_loss,
            include=problem.include,
            exclude=problem.exclude,
        )
        yield Round(masks, parts=problem.parts, schedule=problem.parts)


@dataclass(frozen=True)
class Dense(AbstractStrategy):
    """No cut: the network as it is, trained on the whole budget. What the extra epochs alone buy."""

    in_rounds: ClassVar[bool] = False

    def rounds_for(self, problem: Problem) -> Iterator[Round]:
        """One round without masks."""
        yield Round(None, parts=problem.parts, schedule=problem.parts)
