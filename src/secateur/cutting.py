"""The cut in place: in one go or in stages, each of which may move the kept weights and recover a little."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from secateur.allocate import AbstractPattern, AbstractScope, Unstructured
from secateur.calibration import CalibrationRecovery
from secateur.errors import InvalidArgument
from secateur.inputs import joined
from secateur.kinds import check_kind
from secateur.masks import Masks, apply_masks
from secateur.modules import random_state_kept, remembered, share_weights, twin
from secateur.naming import Batches, Loss, Named, split_batches
from secateur.repair import Repair
from secateur.schedules import geometric_sparsities
from secateur.scores import AbstractCriterion, SolvingScores, score
from secateur.stages import (
    Stage,
    check_calibration,
    check_stages,
    choose_masks,
    count_returned,
    fitting_targets,
    gone_last,
    networks_of,
    staged_masks,
)


def cut(
    student: nn.Module,
    batches: Batches | None,
    criterion: AbstractCriterion,
    *,
    sparsity: float | None = None,
    scope: AbstractScope | None = None,
    pattern: AbstractPattern = Unstructured(),  # noqa: B008 - a frozen value
    stages: int = 1,
    regrow: bool = False,
    recovery: CalibrationRecovery | None = None,
    teacher: nn.Module | None = None,
    task_loss: Loss = F.cross_entropy,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    on_stage: Callable[[Stage], None] = lambda stage: None,
    on_step: Callable[[], None] = lambda: None,
) -> Masks:
    """Score, allocate and apply in one call; `student` is pruned in place.

    A criterion whose scores can solve for the kept weights (`TeacherCurvature`) does so in each stage. With
    `recovery` each stage is followed by distillation steps on the same inputs, which need no labels; any
    criterion can be used. Both move the weights, so each stage scores them as they are then. A stage without
    such steps ends with BatchNorm re-estimated on the inputs, where that lowers the teacher's loss on them.

    Args:
        student: A trained network.
        batches: Calibration batches, or None for a criterion that needs none.
        criterion: What to score by.
        sparsity: Fraction of the prunable weights to remove, in [0, 1); `NM` sets it.
        scope: Where weights compete; `Global()` by default.
        pattern: Where zeros may stand, see `secateur.allocate`.
        stages: How many times to score and cut, see `staged_masks`; 1 is one cut.
        regrow: Let a later stage take back what an earlier one removed; not where weights move.
        recovery: Distillation on the calibration inputs after each stage; its budget is
            ``recovery.total_steps(stages)`` steps.
        teacher: Who teaches in it; by default the criterion's teacher, or else the student as it was.
        task_loss: ``f(outputs, labels)``, a scalar averaged over the batch.
        include: Shell patterns of weights to prune.
        exclude: Shell patterns of weights to leave dense.
        on_stage: Called after each stage.
        on_step: Called after each distillation step.

    Returns:
        The masks; keep them with `keep_masks` in any training that follows.

    Raises:
        InvalidArgument: for a teacher that shares weights with the student, and for a cut that moves weights
            without batches or with `regrow`.
        SecateurError: one of its kinds; `student` is as it was then, as after any exception.
    """
    check_kind("student", student, nn.Module, "a trained torch.nn.Module")
    check_kind("criterion", criterion, AbstractCriterion, "Magnitude()")
    check_kind("pattern", pattern, AbstractPattern, "NM(2, 4)")
    if recovery is not None:
        check_kind("recovery", recovery, CalibrationRecovery, "CalibrationRecovery()")
    for network in (teacher, *networks_of(criterion)):
        if network is not None and share_weights(network, student):
            raise InvalidArgument(
                "the teacher is, or shares weights with, the student, and the cut would change both. "
                "Pass copy.deepcopy(student) as teacher."
            )
    if not moves_weights(criterion, recovery):
        masks = staged_masks(
            student,
            batches,
            criterion,
            sparsity=sparsity,
            scope=scope,
            pattern=pattern,
            stages=stages,
            regrow=regrow,
            task_loss=task_loss,
            include=include,
            exclude=exclude,
            on_stage=on_stage,
        )
        with _as_it_was_on_errors(student):  # such as Ctrl-C between two layers
            apply_masks(student, masks)
        return masks
    sparsity, scope = pattern.sparsity_for(sparsity), pattern.scope_for(scope)
    check_stages(stages, regrow=regrow)
    check_no_regrow(regrow=regrow)
    if batches is None:
        raise InvalidArgument("a cut that moves the kept weights needs calibration batches, got None.")
    check_calibration(batches, stages + 1)
    targets, exclude = fitting_targets(student, pattern, include, exclude)
    if teacher is None:  # a network may be false, if it has a length
        teacher = next(networks_of(criterion), None)
    if teacher is None:
        teacher = twin(student)
    device = next(iter(targets.values())).device
    with random_state_kept(device):
        inputs = joined([x for x, _ in split_batches(batches, device)])
    scored_by = partial(
        score, student, batches, criterion, task_loss=task_loss, include=include, exclude=exclude
    )
    schedule = geometric_sparsities(sparsity, stages)
    with _as_it_was_on_errors(student), torch.enable_grad():
        repair = Repair(student, teacher, inputs, recovery, stages=stages, on_step=on_step)
        return _cut_and_repair(student, targets, scored_by, scope, schedule, repair, on_stage)


def _cut_and_repair(
    student: nn.Module,
    targets: dict[str, nn.Parameter],
    scored_by: Callable[..., Named],
    scope: AbstractScope,
    schedule: Sequence[float],
    repair: Repair,
    on_stage: Callable[[Stage], None],
) -> Masks:
    """Cut `student` to each sparsity of `schedule`, and repair it after each cut; the masks of the last."""
    masks: Masks | None = None
    for number, asked in enumerate(schedule, start=1):
        started = time.perf_counter()
        scores = scored_by(squared_gradients=repair.squared_gradients)
        scored = time.perf_counter()
        ranking = scores if masks is None else gone_last(scores, masks)
        before, masks = masks, choose_masks(ranking, scope, schedule, number)
        predicted = _put_solution(targets, scores, masks)
        apply_masks(student, masks)
        stage = Stage(
            asked,
            dict(scores),
            masks,
            n_returned=0 if before is None else count_returned(before, masks, scope, regrow=False),
            score_s=scored - started,
            allocate_s=time.perf_counter() - scored,
            predicted=predicted,
        )
        del scores, ranking  # and the rows that they may hold
        on_stage(repair(stage, number))
    assert masks is not None, "there is at least one stage"
    return masks


def _put_solution(targets: dict[str, nn.Parameter], scores: Named, masks: Masks) -> float | None:
    """Give the weights that stay the values that the scores solve for; what that is predicted to cost."""
    if not isinstance(scores, SolvingScores):
        return None
    solution = scores.solve(masks)
    with torch.no_grad():
        for name, weight in targets.items():
            weight.copy_(solution.weights[name])
    return solution.predicted


def moves_weights(criterion: AbstractCriterion, recovery: CalibrationRecovery | None) -> bool:
    """Whether a cut by `criterion` changes weights that it keeps: by solving for them, or by `recovery`."""
    return recovery is not None or bool(getattr(criterion, "update_weights", False))


def check_no_regrow(*, regrow: bool) -> None:
    """Refuse `regrow` for a cut that moves the weights that it keeps.

    Raises:
        InvalidArgument: saying what to drop.
    """
    if regrow:
        raise InvalidArgument(
            "regrow does not go with a cut that moves the kept weights: what was removed has no value to "
            "come back with. Drop regrow, or the recovery (and set update_weights=False)."
        )


@contextmanager
def _as_it_was_on_errors(student: nn.Module) -> Generator[None]:
    """Parameters, buffers and gradients of `student` come back bit for bit if the body raises."""
    undo = remembered([*student.parameters(), *student.buffers()])
    grads = [(p, p.grad) for p in student.parameters()]
    for parameter, _ in grads:
        parameter.grad = None
    done = False
    try:
        yield
        done = True
    finally:
        if not done:
            undo()
        for parameter, gradient in grads:
            parameter.grad = gradient
