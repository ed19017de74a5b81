"""What follows each cut of a cut in stages that moves weights: distillation, or BatchNorm re-estimated."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from secateur.calibration import CalibrationRecovery, DivergedError, answers_of, distil_on_inputs, noise_of
from secateur.evaluate import reestimate_batchnorm
from secateur.inputs import Inputs
from secateur.losses import distillation, kd_loss, logits_for, mse_loss
from secateur.masks import Masks
from secateur.modules import modes_kept, remembered
from secateur.naming import Named
from secateur.stages import Stage

_MEASURED = 512
"""Calibration inputs that a stage's losses are measured on, at most."""
_CHUNK = 256
_SLOWER = 4.0
"""What the rate is divided by where steps did harm, and multiplied by for the next stage."""
_TRIALS = 12
"""Of the steps of one stage, at most; the last at four millionths of the rate."""


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
        self._unit = self._measure.variance() if recovery is not None and recovery.kd == "mse" else 1.0
        self._pace = 1.0  # part of the rate that steps have borne
        self._n_steps = 0
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
        started, n_before = time.perf_counter(), self._n_steps
        steps = partial(self._steps, stage.masks, number, recovery, loss)
        after = self._paced(steps, loss) if recovery.cautious else steps()
        seconds, n_steps = time.perf_counter() - started, self._n_steps - n_before
        return replace(stage, n_steps=n_steps, recovery_s=seconds), after

    def _steps(self, masks: Masks, number: int, recovery: CalibrationRecovery, loss: float) -> float:
        """The loss after the steps of stage `number`, and `loss` before them."""
        self.squared_gradients = distil_on_inputs(
            self._student,
            self._inputs,
            self._teaching,
            masks,
            recovery,
            steps=recovery.steps_after(number, self._stages),
            stage=number,
            share=self._pace * _share_of_rate(loss, self._noise) / self._unit,
            on_step=self._step_done,
        )
        after = self._measure(self._student)
        if not math.isfinite(after) and math.isfinite(loss):
            raise DivergedError(
                f"after the steps of stage {number} the distillation loss is {after}. "
                f"Lower lr ({recovery.lr:g}) or cut in more stages."
            )
        return after

    def _paced(self, steps: Callable[[], float], loss: float) -> float:
        """The loss after `steps` at the first pace at which they do no more harm than their noise explains.

        It is sought by backtracking, anew in each stage: a cut that does more harm bears a higher rate.
        """
        undo = remembered([*self._student.parameters(), *self._student.buffers()])
        squares = self.squared_gradients
        self._pace = first = min(1.0, self._pace * _SLOWER)
        for trial in range(1, _TRIALS + 1):
            try:
                after = steps()
            except DivergedError:
                if trial == _TRIALS:
                    raise
                after = math.inf
            if after <= loss:
                return after
            undo()
            if after <= loss + self._noise:
                return loss
            self.squared_gradients = squares  # those of steps that went astray say nothing
            self._pace /= _SLOWER
        self._pace = first  # there was nothing to repair, which says nothing of the rate
        return loss

    def _step_done(self) -> None:
        self._n_steps += 1
        self._on_step()

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
    harm, noise = max(harm, 0.0), max(noise, 0.0)
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

    def variance(self) -> float:
        """Of the teacher's answers, over the inputs; 1 if they are all the same."""
        return float((self._taught - self._taught.mean(0)).square().mean()) or 1.0

    def __call__(self, student: nn.Module) -> float:
        total = 0.0
        with modes_kept(student), torch.no_grad():
            student.eval()
            parts = zip(self.inputs.split(_CHUNK), self._taught.split(_CHUNK), strict=True)
            for x, taught in parts:
                loss = self._distance(logits_for(student, x).float(), taught)
                total += float(loss) * len(x) / len(self.inputs)
        return total
