"""Scores from the gradient of a loss: the accumulator they share, and the task-only criterion."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from secateur.counts import check_fraction
from secateur.errors import InvalidArgument, ScoreError
from secateur.kinds import check_used
from secateur.losses import check_finite
from secateur.naming import Named
from secateur.scores.base import AbstractCriterion, ScoreInputs, gradients_to

Saliency: TypeAlias = Literal["grad", "grad*weight", "grad^2"]
"""|g|, |w·g| or g²: what one batch's gradient says about a weight."""

Accumulate: TypeAlias = Literal["mean", "ema"]
"""How batches are combined."""


def _absolute_gradient(gradient: Tensor, weight: Tensor) -> Tensor:
    return gradient.abs()


def _gradient_times_weight(gradient: Tensor, weight: Tensor) -> Tensor:
    return (gradient * weight).abs_()


def _squared_gradient(gradient: Tensor, weight: Tensor) -> Tensor:
    return gradient.square()


SALIENCIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "grad": _absolute_gradient,
    "grad*weight": _gradient_times_weight,
    "grad^2": _squared_gradient,
}
"""Never in place: autograd may give two weights gradients that share memory."""


@dataclass(frozen=True)
class Accumulation:
    """How per-batch saliencies become one score.

    Attributes:
        saliency: What one batch's gradient says about a weight.
        how: The mean over batches, each counted by its samples, or an exponential moving average started by
            the first batch, in which a smaller batch counts as much as any.
        momentum: Weight of the past in the moving average, in [0, 1).

    Raises:
        InvalidArgument: for an unknown name or a momentum out of range.
    """

    saliency: Saliency
    how: Accumulate
    momentum: float

    def __post_init__(self) -> None:
        if self.saliency not in SALIENCIES:
            raise InvalidArgument(f"saliency must be one of {', '.join(SALIENCIES)}, got {self.saliency!r}.")
        if self.how not in ("mean", "ema"):
            raise InvalidArgument(f"accumulate must be mean or ema, got {self.how!r}.")
        check_fraction("momentum", self.momentum, below_one=True)


SQUARES = Accumulation("grad^2", "mean", momentum=0.0)
"""g², averaged over batches."""


class Accumulator:
    """Running score of one loss term: one tensor a weight, in at least float32.

    In the mean each batch counts by its number of samples. The gradient of a batch is mostly noise, and the
    smaller the batch the larger: an odd sample at the end of a loader would otherwise outweigh all others.
    g² falls with the size of a batch, so b·g² is averaged, and given as for batches of the average size.

    Args:
        weights: The values that gradients are multiplied with, by name.
        rule: What is accumulated and how.
    """

    def __init__(self, weights: Named, rule: Accumulation) -> None:
        self._rule = rule
        self._saliency = SALIENCIES[rule.saliency]
        self._power = 2 if rule.saliency == "grad^2" else 1
        self._n_batches = self._n_samples = 0
        self._weights = weights
        self._sums = zero_scores(weights)

    @contextmanager
    def batch(self, size: int) -> Generator[Callable[[str, Tensor], None]]:
        """Inside, what is yielded takes ``(name, gradient)`` of each weight that a batch reaches.

        Args:
            size: Samples of the batch.
        """
        unseen = set(self._sums)

        def add(name: str, gradient: Tensor) -> None:
            self._add(size, name, gradient)
            unseen.discard(name)

        yield add
        if self._rule.how == "ema":  # what a batch does not reach has a gradient of 0 there
            for name in unseen:
                self._sums[name].mul_(self._rule.momentum)
        self._n_batches += 1
        self._n_samples += size

    def _add(self, size: int, name: str, gradient: Tensor) -> None:
        total = self._sums[name]
        # Before squaring or multiplying: in half precision a small gradient's square is 0.
        value = self._saliency(gradient.to(total.dtype), self._weights[name].to(total.dtype))
        if self._rule.how == "mean":
            total.add_(value, alpha=size**self._power)
        elif self._n_batches == 0:
            total.copy_(value)
        else:
            total.mul_(self._rule.momentum).add_(value, alpha=1 - self._rule.momentum)

    def result(self) -> dict[str, Tensor]:
        """The score: the mean over batches, or the moving average. Ends the accumulator."""
        if self._rule.how == "mean" and self._n_batches:
            mean_size = self._n_samples / self._n_batches
            for total in self._sums.values():
                total.div_(self._n_samples * mean_size ** (self._power - 1))
        return self._sums


def backward_to(
    sink: Callable[[str, Tensor], None],
    targets: dict[str, nn.Parameter],
    loss: Tensor,
    *,
    keep_graph: bool = False,
) -> None:
    """Backpropagate `loss` to the targets only.

    Args:
        sink: Takes ``(name, gradient)`` of each target that the loss reaches; must not write to it.
        targets: The weights by name.
        loss: A scalar.
        keep_graph: Keep the graph for a second loss over the same forward pass.

    Raises:
        ScoreError: if the loss does not depend on the weights.
    """
    check_depends(loss)
    with gradients_to(targets, sink), reentrance_explained():
        loss.backward(retain_graph=keep_graph, inputs=list(targets.values()))


@contextmanager
def reentrance_explained() -> Generator[None]:
    """Say what to do where a network's activations are computed anew in a way that forbids what is asked.

    Raises:
        ScoreError: in the place of torch's error.
    """
    try:
        yield
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
        raise ScoreError(
            "gradients of some weights alone cannot be taken through reentrant activation checkpointing. "
            "Call torch.utils.checkpoint with use_reentrant=False, or switch it off while scoring."
        ) from error


def check_depends(loss: Tensor) -> None:
    """Refuse a loss that no gradient leads back from.

    Raises:
        ScoreError: if the loss does not depend on the weights.
    """
    if not loss.requires_grad:
        raise ScoreError(
            "the loss does not depend on the model's weights; "
            "the model may run under no_grad or detach its outputs."
        )


def mean_gradient(criterion: AbstractCriterion, inputs: ScoreInputs) -> dict[str, Tensor]:
    """The gradient of the task loss over all calibration samples, by name, in at least float32.

    Each batch counts as many times as it has samples, so for a loss that averages over samples, all of one
    weight, it does not depend on how the data is batched.

    Raises:
        ScoreError: naming `criterion` if a batch has no labels; if a loss is not finite.
    """
    sums = zero_scores(inputs.weights)
    n_samples = 0

    def add(size: int, name: str, gradient: Tensor) -> None:
        sums[name].add_(gradient, alpha=size)

    for loss, size in each_task_loss(criterion, inputs):
        backward_to(partial(add, size), inputs.targets, loss)
        n_samples += size
    for total in sums.values():
        total.div_(n_samples)
    return sums


def accumulated_gradient(
    criterion: AbstractCriterion, inputs: ScoreInputs, rule: Accumulation
) -> dict[str, Tensor]:
    """What `rule` makes of the gradients of the task loss, batch by batch, in at least float32.

    Raises:
        ScoreError: naming `criterion` if a batch has no labels; if a loss is not finite.
    """
    accumulator = Accumulator(inputs.weights, rule)
    for loss, size in each_task_loss(criterion, inputs):
        with accumulator.batch(size) as add:
            backward_to(add, inputs.targets, loss)
    return accumulator.result()


def each_task_loss(criterion: AbstractCriterion, inputs: ScoreInputs) -> Iterator[tuple[Tensor, int]]:
    """The task loss of each batch, with its graph, and the batch's number of samples.

    Raises:
        ScoreError: naming `criterion` if a batch has no labels; if a loss is not finite.
    """
    for index, (x, y) in enumerate(inputs.stream_labelled(criterion)):
        loss = inputs.task_loss(inputs.logits(x), y)
        check_finite("task", loss, index)
        yield loss, len(x)


def zero_scores(weights: Named) -> dict[str, Tensor]:
    """A tensor of zeros for each weight, in at least float32, to add scores up in."""
    return {
        name: torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
        for name, weight in weights.items()
    }


@dataclass(frozen=True)
class TaskGradient(AbstractCriterion):
    """Gradient of the task loss alone: by default |w·g|, SNIP's sensitivity on trained weights.

    ``S_w = mean over batches of |w·∂L_task/∂w|`` (https://arxiv.org/abs/1810.02340 eq. 4–5), a smaller batch
    counting for less. Deviations: the absolute value is taken per batch, as in arXiv 2511.16653, and scores
    are not normalised by their sum, which changes no ranking.

    Attributes:
        saliency: grad*weight (|w·g|), grad (|g|) or grad^2 (g²).
        accumulate: Mean over batches, or ema.
        momentum: Weight of the past in the moving average, in [0, 1); used by ema.
    """

    saliency: Saliency = "grad*weight"
    accumulate: Accumulate = "mean"
    momentum: float = 0.9

    def __post_init__(self) -> None:
        Accumulation(self.saliency, self.accumulate, self.momentum)
        check_used(self, "momentum", "accumulate", ("ema",))

    def __call__(self, inputs: ScoreInputs) -> Named:
        """Scores from labelled batches.

        Raises:
            ScoreError: if a batch has no labels, or its loss is not finite.
        """
        rule = Accumulation(self.saliency, self.accumulate, self.momentum)
        return accumulated_gradient(self, inputs, rule)
