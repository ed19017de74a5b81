"""The cut in place: in one go or in stages, each of which may move the kept weights and recover a little."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.allocate import AbstractScope
from secateur.calibration import CalibrationRecovery, distil_on_inputs
from secateur.counts import check_fraction
from secateur.errors import InvalidArgument
from secateur.losses import kd_loss, logits_of
from secateur.masks import Masks, apply_masks
from secateur.modules import modes_kept
from secateur.naming import Batches, Loss, split_batches
from secateur.schedules import geometric_sparsities
from secateur.scores import AbstractCriterion, SolvingScores, score
from secateur.stages import (
    Stage,
    check_apart,
    check_repeatable,
    check_stages,
    choose_masks,
    count_returned,
    gone_last,
    networks_of,
    staged_masks,
)
from secateur.targets import select_targets

_MEASURED = 512
"""Calibration inputs that a stage's losses are measured on, at most."""
_CHUNK = 256


def cut(
    student: nn.Module,
    batches: Batches | None,
    criterion: AbstractCriterion,
    *,
    sparsity: float,
    scope: AbstractScope | None = None,
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
    criterion can be used. Both move the weights, so each stage scores them as they are then.

    Args:
        student: A trained network.
        batches: Calibration batches, or None for a criterion that needs none.
        criterion: What to score by.
        sparsity: Fraction of the prunable weights to remove, in [0, 1).
        scope: Where weights compete; `Global()` by default.
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
        InvalidArgument: for a cut that moves weights without batches, with `regrow`, or with a teacher that
            shares weights with the student.
        SecateurError: one of its kinds; `student` is as it was then, as after any exception.
    """
    if not moves_weights(criterion, recovery):
        masks = staged_masks(
            student,
            batches,
            criterion,
            sparsity=sparsity,
            scope=scope,
            stages=stages,
            regrow=regrow,
            task_loss=task_loss,
            include=include,
            exclude=exclude,
            on_stage=on_stage,
        )
        apply_masks(student, masks)
        return masks
    check_fraction("sparsity", sparsity, below_one=True)
    check_stages(stages, regrow=regrow)
    if regrow:
        raise InvalidArgument(
            "regrow does not go with a cut that moves the kept weights: what was removed has no value to "
            "come back with. Drop regrow, or the recovery (and set update_weights=False)."
        )
    if batches is None:
        raise InvalidArgument("a cut that moves the kept weights needs calibration batches, got None.")
    if stages > 1 or recovery is not None:
        check_repeatable(batches, stages + 1)
    targets = select_targets(student, include=include, exclude=exclude)
    check_apart(criterion, targets)
    teacher = teacher or next(networks_of(criterion), None) or copy.deepcopy(student)
    _check_other(teacher, student)
    inputs = torch.cat([x for x, _ in split_batches(batches, next(iter(targets.values())).device)])
    schedule = geometric_sparsities(sparsity, stages)
    masks: Masks | None = None
    measured = inputs[:: max(1, len(inputs) // _MEASURED)]
    with _as_it_was_on_errors(student), torch.enable_grad():
        loss = _loss(student, teacher, measured, recovery)
        for number, asked in enumerate(schedule, start=1):
            started = time.perf_counter()
            scores = score(student, batches, criterion, task_loss=task_loss, include=include, exclude=exclude)
            scored = time.perf_counter()
            before = masks
            masks = choose_masks(
                scores if before is None else gone_last(scores, before), scope, schedule, number
            )
            n_returned = 0 if before is None else count_returned(before, masks, scope, regrow=False)
            predicted = None
            if isinstance(scores, SolvingScores):
                solution = scores.solve(masks)
                predicted = solution.predicted
                _put(targets, solution.weights)
            apply_masks(student, masks)
            chosen = time.perf_counter()
            after_cut = after = _loss(student, teacher, measured, recovery)
            stage = Stage(
                asked, dict(scores), masks, n_returned, scored - started, chosen - scored, predicted
            )
            del scores  # and the rows that it may hold
            if recovery is not None:
                started = time.perf_counter()
                n_steps = recovery.steps_after(number, stages)
                distil_on_inputs(
                    student, inputs, teacher, masks, recovery, steps=n_steps, stage=number, on_step=on_step
                )
                stage = replace(stage, recovery_s=time.perf_counter() - started)
                after = _loss(student, teacher, measured, recovery)
            on_stage(replace(stage, loss=(loss, after_cut, after)))
            loss = after
    assert masks is not None, "there is at least one stage"
    return masks


def moves_weights(criterion: AbstractCriterion, recovery: CalibrationRecovery | None) -> bool:
    """Whether a cut by `criterion` changes weights that it keeps: by solving for them, or by `recovery`."""
    return recovery is not None or bool(getattr(criterion, "update_weights", False))


def _put(targets: dict[str, nn.Parameter], weights: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, weight in targets.items():
            weight.copy_(weights[name])


def _loss(
    student: nn.Module, teacher: nn.Module, inputs: Tensor, recovery: CalibrationRecovery | None
) -> float:
    """The teacher's loss on `inputs`, in eval mode."""
    temperature = 4.0 if recovery is None else recovery.temperature
    total = 0.0
    with modes_kept(student), modes_kept(teacher), torch.no_grad():
        student.eval()
        teacher.eval()
        for x in inputs.split(_CHUNK):
            loss = kd_loss(logits_of(student(x)), logits_of(teacher(x)), temperature=temperature)
            total += float(loss) * len(x) / len(inputs)
    return total


def _check_other(teacher: nn.Module, student: nn.Module) -> None:
    ours = {id(parameter) for parameter in student.parameters()}
    if any(id(parameter) in ours for parameter in teacher.parameters()):
        raise InvalidArgument(
            "the teacher shares weights with the student, and the cut would change both. "
            "Pass copy.deepcopy(student) as teacher."
        )


@contextmanager
def _as_it_was_on_errors(student: nn.Module) -> Generator[None]:
    """Parameters, buffers and gradients of `student` come back bit for bit if the body raises."""
    state = [(t, t.detach().clone()) for t in (*student.parameters(), *student.buffers())]
    grads = [(p, p.grad) for p in student.parameters()]
    for parameter, _ in grads:
        parameter.grad = None
    done = False
    try:
        yield
        done = True
    finally:
        if not done:
            with torch.no_grad():
                for tensor, value in state:
                    tensor.copy_(value)
        for parameter, gradient in grads:
            parameter.grad = gradient
