"""The cut in place: in one go or in stages, each of which may move the kept weights and recover a little."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.allocate import AbstractPattern, AbstractScope, Unstructured
from secateur.calibration import CalibrationRecovery, answers_of, distil_on_inputs, noise_of
from secateur.errors import InvalidArgument
from secateur.evaluate import reestimate_batchnorm
from secateur.losses import kd_loss, logits_of
from secateur.masks import Masks, apply_masks
from secateur.modules import modes_kept
from secateur.naming import Batches, Loss, Named, split_batches
from secateur.schedules import geometric_sparsities
from secateur.scores import AbstractCriterion, SolvingScores, score
from secateur.stages import (
    Stage,
    check_apart,
    check_repeatable,
    check_stages,
    choose_masks,
    count_returned,
    fitting_targets,
    gone_last,
    networks_of,
    staged_masks,
)

_MEASURED = 512
"""Calibration inputs that a stage's losses are measured on, at most."""
_CHUNK = 256


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
            pattern=pattern,
            stages=stages,
            regrow=regrow,
            task_loss=task_loss,
            include=include,
            exclude=exclude,
            on_stage=on_stage,
        )
        apply_masks(student, masks)
        return masks
    sparsity, scope = pattern.sparsity_for(sparsity), pattern.scope_for(scope)
    check_stages(stages, regrow=regrow)
    check_no_regrow(regrow=regrow)
    if batches is None:
        raise InvalidArgument("a cut that moves the kept weights needs calibration batches, got None.")
    if stages > 1 or recovery is not None:
        check_repeatable(batches, stages + 1)
    targets, exclude = fitting_targets(student, pattern, include, exclude)
    check_apart(criterion, targets)
    teacher = teacher or next(networks_of(criterion), None) or copy.deepcopy(student)
    _check_other(teacher, student)
    inputs = torch.cat([x for x, _ in split_batches(batches, next(iter(targets.values())).device)])
    schedule = geometric_sparsities(sparsity, stages)
    masks: Masks | None = None
    squared: Named | None = None
    with _as_it_was_on_errors(student), torch.enable_grad():
        measure = _Measure(teacher, inputs, recovery)
        teaching = teacher
        if recovery is not None and recovery.look is None:
            teaching = answers_of(teacher, inputs, recovery)  # once for all steps of all stages
        loss = measure(student)
        noise = 0.0
        if recovery is not None and recovery.cautious:
            noise = noise_of(student, measure.inputs, recovery)
        for number, asked in enumerate(schedule, start=1):
            started = time.perf_counter()
            scores = score(
                student,
                batches,
                criterion,
                task_loss=task_loss,
                include=include,
                exclude=exclude,
                squared_gradients=squared,
            )
            scored = time.perf_counter()
            before, masks = masks, _next_masks(scores, masks, scope, schedule, number)
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
            del scores  # and the rows that it may hold
            after_cut = measure(student)
            if recovery is None:
                after = _renormalise(student, inputs, measure, after_cut)
            else:
                started = time.perf_counter()
                n_steps = recovery.steps_after(number, stages)
                undo = _remembered([*student.parameters(), *student.buffers()]) if recovery.cautious else None
                squared = distil_on_inputs(
                    student,
                    inputs,
                    teaching,
                    masks,
                    recovery,
                    steps=n_steps,
                    stage=number,
                    share=_share_of_rate(after_cut, noise),
                    on_step=on_step,
                )
                stage = replace(stage, n_steps=n_steps, recovery_s=time.perf_counter() - started)
                after = measure(student)
                if undo is not None and after > after_cut:
                    undo()
                    after = after_cut
            on_stage(replace(stage, loss=(loss, after_cut, after)))
            loss = after
    assert masks is not None, "there is at least one stage"
    return masks


def _share_of_rate(harm: float, noise: float) -> float:
    """Of the learning rate, for steps that see the `harm` of a cut and `noise` of their own."""
    harm = max(harm, 0.0)
    both = harm + noise
    return harm / both if math.isfinite(both) and both > 0 else 1.0


def _next_masks(
    scores: Named, before: Masks | None, scope: AbstractScope, schedule: Sequence[float], number: int
) -> Masks:
    """The masks of stage `number`; what the stages before removed stays so."""
    ranking = scores if before is None else gone_last(scores, before)
    return choose_masks(ranking, scope, schedule, number)


def _put_solution(targets: dict[str, nn.Parameter], scores: Named, masks: Masks) -> float | None:
    """Give the weights that stay the values that the scores solve for; what that is predicted to cost."""
    if not isinstance(scores, SolvingScores):
        return None
    solution = scores.solve(masks)
    with torch.no_grad():
        for name, weight in targets.items():
            weight.copy_(solution.weights[name])
    return solution.predicted


def _renormalise(
    student: nn.Module, inputs: Tensor, measure: Callable[[nn.Module], float], loss: float
) -> float:
    """Re-estimate BatchNorm on `inputs` where that lowers the teacher's loss from `loss`; what it is then.

    After a small cut that was solved for, the recorded statistics of many more images are the better ones.
    """
    undo = _remembered(student.buffers())
    if not reestimate_batchnorm(student, inputs.split(_CHUNK)):
        return loss
    renormalised = measure(student)
    if renormalised < loss:
        return renormalised
    undo()
    return loss


def _remembered(tensors: Iterable[Tensor]) -> Callable[[], None]:
    """Copy `tensors`; what comes back gives them, bit for bit, the values that they have now."""
    state = [(tensor, tensor.detach().clone()) for tensor in tensors]

    def put_back() -> None:
        with torch.no_grad():
            for tensor, value in state:
                tensor.copy_(value)

    return put_back


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


class _Measure:
    """The teacher's loss in eval mode, on some of the inputs; the teacher is asked once."""

    def __init__(self, teacher: nn.Module, inputs: Tensor, recovery: CalibrationRecovery | None) -> None:
        self.inputs = inputs[:: math.ceil(len(inputs) / _MEASURED)]
        self._temperature = 4.0 if recovery is None else recovery.temperature
        self._taught = answers_of(teacher, self.inputs, CalibrationRecovery(precision="fp32"))

    def __call__(self, student: nn.Module) -> float:
        total = 0.0
        with modes_kept(student), torch.no_grad():
            student.eval()
            parts = zip(self.inputs.split(_CHUNK), self._taught.split(_CHUNK), strict=True)
            for x, taught in parts:
                loss = kd_loss(logits_of(student(x)).float(), taught, temperature=self._temperature)
                total += float(loss) * len(x) / len(self.inputs)
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
    undo = _remembered([*student.parameters(), *student.buffers()])
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
