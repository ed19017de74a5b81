"""What follows each cut of a cut in stages that moves weights: distillation, or BatchNorm re-estimated."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from secateur.calibration import CalibrationRecovery, answers_of, distil_on_inputs, noise_of
from secateur.errors import TrainingError
from secateur.evaluate import reestimate_batchnorm
from secateur.inputs import Inputs
from secateur.losses import distillation, kd_loss, logits_for, mse_loss
from secateur.modules import modes_kept, remembered
from secateur.naming import Named
from secateur.stages import Stage

_MEASURED = 512
"""Calibration inputs that a stage's losses are measured on, at most."""
_CHUNK = 256


class Repair:
    """Repairs `student` after each cut, towards the teacher's answers to the calibration inputs.

    With `recovery` by distillation steps, else by re-estimating BatchNorm; that, and cautious steps, are
    undone where they do not lower the teacher's loss.

    Attributes:
        squared_gradients: Those of the last steps, for a criterion that scores by them; None before any.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        inputs: Inputs,
        recovery: CalibrationRecovery | None,
        *,
        stages: int,
        on_step: Callable[[], None],
    ) -> None:
        self.squared_gradients: Named | None = None
        self._student = student
        self._inputs = inputs
        self._recovery = recovery
        self._stages = stages
        self._on_step = on_step
        self._measure = _Measure(teacher, inputs, recovery)
        self._teaching: nn.Module | Tensor = teacher
        if recovery is not None and recovery.look is None:
            # once for all steps of all stages
            self._teaching = answers_of(teacher, inputs, recovery)
        self._loss = self._measure(student)
        self._noise = 0.0
        if recovery is not None and recovery.cautious:
            self._noise = noise_of(student, self._measure.inputs, recovery)

    def __call__(self, stage: Stage, number: int) -> Stage:
        """The stage, which cut the student, with its steps and losses; stages count from 1."""
        before, after_cut = self._loss, self._measure(self._student)
        if self._recovery is None:
            self._loss = self._renormalise(after_cut)
        else:
            stage, self._loss = self._distil(stage, number, self._recovery, after_cut)
        return replace(stage, loss=(before, after_cut, self._loss))

    def _distil(
        self, stage: Stage, number: int, recovery: CalibrationRecovery, loss: float
    ) -> tuple[Stage, float]:
        started = time.perf_counter()
        student, n_steps = self._student, recovery.steps_after(number, self._stages)
        undo = remembered([*student.parameters(), *student.buffers()]) if recovery.cautious else None
        self.squared_gradients = distil_on_inputs(
            student,
            self._inputs,
            self._teaching,
            stage.masks,
            recovery,
            steps=n_steps,
            stage=number,
            share=_share_of_rate(loss, self._noise),
            on_step=self._on_step,
        )
        stage = replace(stage, n_steps=n_steps, recovery_s=time.perf_counter() - started)
        after = self._measure(student)
        if not math.isfinite(after) and math.isfinite(loss):
            raise TrainingError(
                f"after the steps of stage {number} the distillation loss is {after}. "
                f"Lower lr ({recovery.lr:g}) or cut in more stages."
            )
        if undo is not None and after > loss:
            undo()
            after = loss
        return stage, after

    def _renormalise(self, loss: float) -> float:
        # After a small cut that was solved for, the recorded statistics, of many more images, are better.
        undo = remembered(self._student.buffers())
        if not reestimate_batchnorm(self._student, self._inputs.split(_CHUNK)):
            return loss
        renormalised = self._measure(self._student)
        if renormalised < loss:
            return renormalised
        undo()
        return loss


def _share_of_rate(harm: float, noise: float) -> float:
    """Of the learning rate, for steps that see the `harm` of a cut and `noise` of their own."""
    harm = max(harm, 0.0)
    both = harm + noise
    return harm / both if math.isfinite(both) and both > 0 else 1.0


class _Measure:
    """The teacher's loss in eval mode, on some of the inputs; the teacher is asked once."""

    def __init__(self, teacher: nn.Module, inputs: Inputs, recovery: CalibrationRecovery | None) -> None:
        self.inputs = inputs[:: math.ceil(len(inputs) / _MEASURED)]
        self._taught = answers_of(teacher, self.inputs)
        if recovery is not None:
            self._distance = distillation(recovery)
        elif self._taught.ndim > 1 and self._taught.shape[1] > 1:
            self._distance = partial(kd_loss, temperature=4.0)
        else:  # no logits
            self._distance = mse_loss

    def __call__(self, student: nn.Module) -> float:
        total = 0.0
        with modes_kept(student), torch.no_grad():
            student.eval()
            parts = zip(self.inputs.split(_CHUNK), self._taught.split(_CHUNK), strict=True)
            for x, taught in parts:
                loss = self._distance(logits_for(student, x).float(), taught)
                total += float(loss) * len(x) / len(self.inputs)
        return total
