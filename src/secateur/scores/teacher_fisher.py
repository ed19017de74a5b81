"""Magnitude weighed by the squared gradients of the teacher's loss, a curvature that steps leave behind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from secateur.counts import check_fraction, check_number
from secateur.errors import InvalidArgument, ScoreError
from secateur.kinds import check_kind, check_used
from secateur.losses import at_least_single, check_finite, check_outputs, logits_for
from secateur.naming import Named
from secateur.scores.base import AbstractCriterion, ScoreInputs, preserving
from secateur.scores.gradient import SQUARES, Accumulator, backward_to


@dataclass(frozen=True)
class TeacherFisher(AbstractCriterion):
    """``S_w = |w|·F_w^p``, F the mean over batches of the squared gradient of the teacher's loss.

    With `relative`, ``S_w = |w|/σ · (σ²F_w)^p``: weights, and the curvature with them, in units of σ, the
    root mean square of the layer's weights that are not zero. A layer with BatchNorm behind it computes the
    same if its weights are all multiplied by one number, and then none of these scores changes.

    ``w²·F`` is the saliency of optimal brain damage (LeCun 1989) with the Fisher information as curvature
    (https://arxiv.org/abs/1801.05787), here of ``L = T²·KL(softmax(z_T/T) ‖ softmax(z_S/T))``. p = ½ ranks by
    it, p = 0 by magnitude, and ¼ by their geometric mean: the curvature of a cut that is not small is
    known by its order only, and magnitude has to take part.

    Distillation steps compute such gradients anyway. So in a cut in stages with `CalibrationRecovery`, F is
    what the steps of the stage before left behind, at no pass. Where there were none, in the first stage or
    without steps, it takes one pass over the batches, by the gradients of ``T²·CE(z_S/T, ŷ)`` with ŷ drawn
    from softmax(z_T/T): that of L in expectation, but not 0 where the student agrees with its teacher. For
    outputs that are no logits, L is the mean squared difference, and ŷ has a normal distribution of variance
    1 about z_T.

    Attributes:
        teacher: A frozen network over the same inputs and classes, such as a copy of the student.
        temperature: T > 0, in that pass; the steps have their own.
        kd: forward, of logits, or mse, of other outputs, in that pass; the steps have their own.
        power: p, in [0, 1].
        relative: Whether weights are measured by the others of their layer; of no effect for p = ½.
        seed: Of the draws.

    Raises:
        InvalidArgument: for a number out of range.
    """

    teacher: nn.Module
    temperature: float = 4.0
    kd: Literal["forward", "mse"] = "forward"
    power: float = 0.25
    relative: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_kind("teacher", self.teacher, nn.Module, "a trained torch.nn.Module")
        check_number("temperature", self.temperature, above_zero=True)
        if self.kd not in ("forward", "mse"):
            raise InvalidArgument(f"kd must be forward or mse, got {self.kd!r}.")
        check_used(self, "temperature", "kd", ("forward",))
        check_fraction("power", self.power)

    def __call__(self, inputs: ScoreInputs) -> Named:
        """Scores from batches with or without labels, or without a look at them after distillation steps.

        Raises:
            ScoreError: if teacher and student outputs cannot be compared or are not logits of shape
                (batch, classes, …), or if a loss is not finite.
        """
        squared = inputs.squared_gradients
        if squared is None:
            squared = self._from_pass(inputs)
        return {
            name: self._scores(weight.to(squared[name].dtype), squared[name])
            for name, weight in inputs.weights.items()
        }

    def _scores(self, weight: Tensor, squared: Tensor) -> Tensor:
        """Scores of one layer."""
        scores = weight.abs() * squared**self.power
        if not self.relative:
            return scores
        mean_square = weight.square().sum() / weight.count_nonzero().clamp(min=1)
        # σ^(2p − 1), 1 for a layer of zeros
        return scores * torch.where(mean_square > 0, mean_square, 1.0) ** (self.power - 0.5)

    def _from_pass(self, inputs: ScoreInputs) -> Named:
        """F over the batches."""
        teacher = self.teacher
        generator = torch.Generator().manual_seed(self.seed)
        squares = Accumulator(inputs.weights, SQUARES)
        with preserving(teacher):
            for index, (x, _) in enumerate(inputs.stream(teacher)):
                with torch.no_grad():
                    taught = logits_for(teacher, x)
                logits = inputs.logits(x)
                check_outputs(logits, taught)
                loss = self._loss(logits, taught, generator)
                check_finite("teacher's", loss, index)
                with squares.batch(len(x)) as add:
                    backward_to(add, inputs.targets, loss)
        return squares.result()

    def _loss(self, logits: Tensor, taught: Tensor, generator: torch.Generator) -> Tensor:
        """T²·CE(z_S/T, ŷ), averaged over the batch, and over positions where the logits have them; or MSE."""
        if self.kd == "mse":
            noise = torch.randn(taught.shape, generator=generator).to(taught)
            return torch.nn.functional.mse_loss(logits, taught + noise)
        if logits.ndim < 2 or logits.shape[1] < 2:
            raise ScoreError(
                "the teacher's loss is drawn from logits of shape (batch, classes, …), with 2 classes or "
                f"more, got {tuple(logits.shape)}. For other outputs set kd='mse'."
            )
        logits, taught = (z.movedim(1, -1).flatten(0, -2) for z in (logits, taught))
        drawn = draw_classes(taught / self.temperature, generator)
        logits = at_least_single(logits) / self.temperature
        return self.temperature**2 * torch.nn.functional.cross_entropy(logits, drawn)


def draw_classes(logits: Tensor, generator: torch.Generator) -> Tensor:
    """A class for each row of `logits` by its softmax, int64, shape (N,); the same on any device.

    Raises:
        ScoreError: if the logits are no numbers.
    """
    dice = torch.rand((len(logits), 1), generator=generator, dtype=torch.float64).to(logits.device)
    cumulative = logits.double().softmax(dim=1).cumsum(dim=1)
    if bool(cumulative.isnan().any()):
        raise ScoreError(
            "no classes can be drawn from logits that hold NaN or infinity. Check the weights of the network "
            "that gave them: the teacher, or the student where it draws."
        )
    return (cumulative < dice).sum(dim=1).clamp_(max=logits.shape[1] - 1)
