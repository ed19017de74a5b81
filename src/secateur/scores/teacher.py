"""The teacher-guided score of arXiv 2511.16653: the heart of the library, equation by equation."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from secateur.counts import check_fraction
from secateur.errors import InvalidArgument, ScoreError, SecateurWarning
from secateur.kinds import check_kind, check_used
from secateur.losses import KDKind, check_finite, distillation, logits_for
from secateur.naming import GIVE_LABELS, Loss, Named
from secateur.scores.base import AbstractCriterion, ScoreInputs, preserving
from secateur.scores.gradient import Accumulate, Accumulation, Accumulator, Saliency, backward_to

_ROUNDING = 1e-6
"""A KD loss between equal outputs is as large as this at most."""


class GuidedScores(Mapping[str, Tensor]):
    """Teacher-guided scores with both terms kept: ``α·task + (1−α)·kd``, mixed when looked up.

    Attributes:
        task: The term of the labels, or None if the calibration data had none.
        kd: The term of the teacher.
        alpha: Weight of the task term.
    """

    def __init__(self, task: Named | None, kd: Named, alpha: float) -> None:
        check_fraction("alpha", alpha)
        if task is None and alpha > 0:
            raise ScoreError(
                f"alpha={alpha:g} needs labels, and the scores were made without; only alpha=0 can."
            )
        self.task = task
        self.kd = kd
        self.alpha = alpha

    def at(self, alpha: float) -> GuidedScores:
        """The same scores with another weight of the task term: no pass, no copy.

        Args:
            alpha: In [0, 1]; 0 = teacher only, 1 = labels only.

        Raises:
            InvalidArgument: if `alpha` is out of range.
            ScoreError: if it is above 0 and there were no labels.
        """
        return GuidedScores(self.task, self.kd, alpha)

    def __getitem__(self, name: str) -> Tensor:
        if self.task is None or self.alpha == 0:
            return self.kd[name]
        if self.alpha == 1:
            return self.task[name]
        return torch.lerp(self.kd[name], self.task[name], self.alpha)

    def __contains__(self, name: object) -> bool:
        return name in self.kd  # the inherited one would mix the terms to find out

    def __iter__(self) -> Iterator[str]:
        return iter(self.kd)

    def __len__(self) -> int:
        return len(self.kd)

    def __repr__(self) -> str:
        without = "" if self.task is not None else ", without labels"
        return f"GuidedScores({len(self)} tensors, alpha={self.alpha:g}{without})"


@dataclass(frozen=True)
class TeacherGuided(AbstractCriterion):
    """How much the labels and the teacher need each weight, from one pass over calibration data.

    ``form="separate"`` is the published formula ``S_w = α·|∇_w L_task| + (1−α)·|∇_w L_KD|``, absolute
    values per batch, averaged over batches by their size; `saliency` says whether |g|, |w·g| or g² stands
    for |∇|. Both terms are kept, so any α afterwards is free (`GuidedScores.at`). ``form="joint"`` is what
    the authors' experiments ran: ``|w ⊙ ∇_w(α·L_task + (1−α)·L_KD)|``, with ``accumulate="ema"``; its two
    gradients can cancel, and it is one number a weight, so α is fixed.

    Deviations from the authors' code: the student is scored in eval mode, so BatchNorm statistics do
    not drift, and calibration data is seen once. Defaults are what works on trained weights: |w·g|,
    since the raw gradient of a trained network ranks weights no better than chance.

    Attributes:
        teacher: A frozen network over the same inputs and classes. Its mode is put back afterwards.
        alpha: Weight of the task term, in [0, 1]; 0 needs no labels.
        temperature: T > 0 of the distances on logits.
        saliency: grad (the formula as printed), grad*weight or grad^2.
        form: separate or joint.
        accumulate: Mean over batches, or ema (moving average started by the first batch).
        momentum: Weight of the past in the moving average, in [0, 1); used by ema.
        kd: forward, reverse, ca-kld, mse, cosine, or any ``f(student_outputs, teacher_outputs)``.
        beta: Weight of the reverse divergence in ca-kld, in [0, 1].
        standardize: Standardise logits per sample before the softmax.

    Raises:
        InvalidArgument: if a number is out of range, a name unknown, or an option set that the others leave
            unused.
    """

    teacher: nn.Module
    alpha: float = 0.5
    temperature: float = 4.0
    saliency: Saliency = "grad*weight"
    form: Literal["separate", "joint"] = "separate"
    accumulate: Accumulate = "mean"
    momentum: float = 0.9
    kd: KDKind | Loss = "forward"
    beta: float = 0.5
    standardize: bool = False

    def __post_init__(self) -> None:
        check_kind("teacher", self.teacher, nn.Module, "a trained torch.nn.Module")
        check_fraction("alpha", self.alpha)
        if self.form not in ("separate", "joint"):
            raise InvalidArgument(f"form must be separate or joint, got {self.form!r}.")
        self._rule()
        distillation(self)
        check_used(self, "momentum", "accumulate", ("ema",))

    def __call__(self, inputs: ScoreInputs) -> Named:
        """`GuidedScores` for the separate form, plain scores for the joint one.

        Raises:
            ScoreError: if alpha > 0 and a batch has no labels, if some batches have labels and others
                not, if teacher and student outputs cannot be compared, or if a loss is not finite.
        """
        with preserving(self.teacher):
            if self.form == "joint":
                return self._joint(inputs)
            # What torch.compile makes of a model frees its buffers with the first of the two losses.
            with torch.compiler.set_stance("force_eager"):
                return self._separate(inputs)

    def _rule(self) -> Accumulation:
        return Accumulation(self.saliency, self.accumulate, self.momentum)

    def _losses(self, inputs: ScoreInputs) -> Iterator[tuple[Tensor | None, Tensor, int]]:
        """Task loss (None without labels) and KD loss of each batch, over one forward pass, and its size."""
        kd_loss, most = distillation(self), 0.0
        for index, (x, y) in enumerate(inputs.stream(self.teacher)):
            if y is None and self.alpha > 0:
                raise ScoreError(
                    f"alpha={self.alpha:g} needs labels, batch {index} has none. "
                    f"{GIVE_LABELS}; or alpha=0 for the teacher alone."
                )
            with torch.no_grad():
                guidance = logits_for(self.teacher, x)
            outputs = inputs.logits(x)
            kd = kd_loss(outputs, guidance)
            check_finite("KD", kd, index)
            task = None if y is None else inputs.task_loss(outputs, y)
            if task is not None:
                check_finite("task", task, index)
            most = max(most, float(kd.detach()))
            yield task, kd, len(x)
        if most <= _ROUNDING and self.alpha == 0:
            warnings.warn(
                f"student and teacher give the same outputs (KD loss at most {most:.1g}), so that at alpha=0 "
                "scores are nothing but rounding. Pass another teacher, or an alpha above 0.",
                SecateurWarning,
                stacklevel=2,
            )

    def _separate(self, inputs: ScoreInputs) -> GuidedScores:
        kd_term = Accumulator(inputs.weights, self._rule())
        task_term: Accumulator | None = None
        for index, (task, kd, size) in enumerate(self._losses(inputs)):
            if index == 0 and task is not None:
                task_term = Accumulator(inputs.weights, self._rule())
            if (task is None) != (task_term is None):
                raise ScoreError(f"batch {index} and the first one differ in whether they have labels.")
            if task is not None and task_term is not None:
                with task_term.batch(size) as add:
                    backward_to(add, inputs.targets, task, keep_graph=True)
            with kd_term.batch(size) as add:
                backward_to(add, inputs.targets, kd)
        return GuidedScores(task_term.result() if task_term else None, kd_term.result(), self.alpha)

    def _joint(self, inputs: ScoreInputs) -> Named:
        term = Accumulator(inputs.weights, self._rule())
        for task, kd, size in self._losses(inputs):
            # Without labels alpha is 0, and the joint loss is the KD loss alone.
            loss = kd if task is None else self.alpha * task + (1 - self.alpha) * kd
            with term.batch(size) as add:
                backward_to(add, inputs.targets, loss)
        return term.result()
