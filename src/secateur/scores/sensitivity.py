"""Scores from w·g that combine batches otherwise than `TaskGradient`: SNIP, Taylor, PLATON."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from secateur.counts import check_fraction
from secateur.naming import Named
from secateur.scores.base import AbstractCriterion, ScoreInputs
from secateur.scores.gradient import (
    SQUARES,
    accumulated_gradient,
    backward_to,
    each_task_loss,
    mean_gradient,
    zero_scores,
)


@dataclass(frozen=True)
class Snip(AbstractCriterion):
    """``S_w = |w·ḡ|``, ḡ the gradient of the task loss over all calibration data.

    Connection sensitivity (https://arxiv.org/abs/1810.02340 eq. 4–5). Gradients are summed over the
    batches, each weighted by its number of samples, and the absolute value is taken **once, at the end**:
    gradients of different batches can cancel, and, with a loss that averages over samples of one weight, the
    score does not depend on how the data is batched.
    `TaskGradient` takes it in every batch, so nothing cancels between batches. Deviation: scores are not
    divided by their sum, which changes no ranking.
    """

    def __call__(self, inputs: ScoreInputs) -> Named:
        """Scores from labelled batches.

        Raises:
            ScoreError: if a batch has no labels, or its loss is not finite.
        """
        gradient = mean_gradient(self, inputs)
        return {name: g.mul_(inputs.weights[name]).abs_() for name, g in gradient.items()}


@dataclass(frozen=True)
class Taylor(AbstractCriterion):
    """``S_w = mean over batches of (w·g)²``: the squared first-order change of the loss when w → 0.

    https://arxiv.org/abs/1906.10771, for a group of one weight: the paper sums w·g over the weights
    of a filter before it squares. Squared per batch, then averaged, as there, a smaller batch counting for
    less (see `Accumulator`). For one batch the ranking is that of `Snip` and `TaskGradient`; over several,
    batches with a large gradient count more.
    """

    def __call__(self, inputs: ScoreInputs) -> Named:
        """Scores from labelled batches.

        Raises:
            ScoreError: if a batch has no labels, or its loss is not finite.
        """
        squares = accumulated_gradient(self, inputs, SQUARES)
        return {name: mean.mul_(inputs.weights[name].square()) for name, mean in squares.items()}


@dataclass(frozen=True)
class Platon(AbstractCriterion):
    """``S_w = Ī·Ū``: smoothed importance times its smoothed uncertainty, I = |w·g| of a batch.

    https://arxiv.org/abs/2206.12562, over calibration batches in place of training steps:
    ``Ī ← β₁·Ī + (1−β₁)·I``, ``Ū ← β₂·Ū + (1−β₂)·|I − Ī|``, both from 0. Deviation: the weights do not
    move between the batches, so the uncertainty is that of the data alone. A smaller batch counts as much
    as any: better to drop it.

    Attributes:
        beta1: Weight of the past in the importance, in [0, 1).
        beta2: Weight of the past in the uncertainty, in [0, 1).

    Raises:
        InvalidArgument: if one of them is out of range.
    """

    beta1: float = 0.85
    beta2: float = 0.95

    def __post_init__(self) -> None:
        check_fraction("beta1", self.beta1, below_one=True)
        check_fraction("beta2", self.beta2, below_one=True)

    def __call__(self, inputs: ScoreInputs) -> Named:
        """Scores from labelled batches, of which the latest count most.

        Raises:
            ScoreError: if a batch has no labels, or its loss is not finite.
        """
        importance, uncertainty = zero_scores(inputs.weights), zero_scores(inputs.weights)
        unseen = set(inputs.weights)

        def smooth(name: str, now: Tensor) -> None:
            mean = importance[name].mul_(self.beta1).add_(now, alpha=1 - self.beta1)
            uncertainty[name].mul_(self.beta2).add_((now - mean).abs_(), alpha=1 - self.beta2)

        def add(name: str, gradient: Tensor) -> None:
            smooth(name, (gradient.to(importance[name].dtype) * inputs.weights[name]).abs_())
            unseen.discard(name)

        for loss, _ in each_task_loss(self, inputs):
            backward_to(add, inputs.targets, loss)
            for name in unseen:  # what a batch does not reach has a gradient of 0 there
                smooth(name, importance[name].new_zeros(()))
            unseen.update(inputs.weights)
        return {name: mean.mul_(uncertainty[name]) for name, mean in importance.items()}
