"""Scores of second order: GraSP, and the diagonal of the Fisher information."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from secateur.counts import check_number
from secateur.errors import InvalidArgument, ScoreError
from secateur.inputs import Inputs, filled, tensors_of
from secateur.losses import check_finite, check_scalar
from secateur.naming import Named
from secateur.scores.base import AbstractCriterion, ScoreInputs
from secateur.scores.functional import (
    Functional,
    gradients_of,
    hessian_product,
    sample_by_sample,
    samples_at_once,
)
from secateur.scores.gradient import SQUARES, accumulated_gradient, zero_scores


@dataclass(frozen=True)
class GraSP(AbstractCriterion):
    """``S_w = w·(Hḡ)_w``: how much of the gradient's flow is lost without w.

    https://arxiv.org/abs/2002.07376: removing w changes ``‖∇L‖²`` by about ``−2·w·(Hg)_w``. The paper
    calls ``−w·(Hg)_w`` the score and removes the **largest**, those whose removal costs no gradient flow or
    adds to it; here higher = keep, so the sign is turned and scores may be negative. ḡ and H are those of
    the task loss at logits z/T over all calibration data, for which it is gone through twice: once for
    ḡ, once for H·ḡ, batch by batch. A one-shot iterator is therefore kept in memory.

    Deviations: eval mode; the classifier is not drawn anew before scoring, as the authors' code can do.

    Attributes:
        temperature: T > 0 that divides the logits.

    Raises:
        InvalidArgument: if it is not.
    """

    temperature: float = 200.0

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, above_zero=True)

    def __call__(self, inputs: ScoreInputs) -> Named:
        """Scores from labelled batches, of either sign.

        Raises:
            ScoreError: if a batch has no labels, or its loss is not finite.
        """
        if isinstance(inputs.batches, Iterator):
            inputs = replace(inputs, batches=list(inputs.batches))
        network = Functional.of(inputs.model)
        targets = {name: network.parameters[name] for name in inputs.targets}
        flow = zero_scores(inputs.weights)
        n_samples = 0
        for loss, size in self._losses(inputs, network):
            for name, gradient in gradients_of(loss, targets).items():
                flow[name].add_(gradient, alpha=size)
            n_samples += size
        for gradient in flow.values():
            gradient.div_(n_samples)
        scores = zero_scores(inputs.weights)
        for loss, size in self._losses(inputs, network):
            for name, product in hessian_product(loss, targets, flow).items():
                scores[name].add_(product, alpha=size / n_samples)
        return {name: total.mul_(inputs.weights[name]) for name, total in scores.items()}

    def _losses(self, inputs: ScoreInputs, network: Functional) -> Iterator[tuple[Tensor, int]]:
        for index, (x, y) in enumerate(inputs.stream_labelled(self)):
            loss = inputs.task_loss(network({}, x) / self.temperature, y)
            check_finite("task", loss, index)
            yield loss, len(x)


@dataclass(frozen=True)
class Fisher(AbstractCriterion):
    """``S_w = w²·F_w/2``, F the diagonal of the empirical Fisher information, ``mean over samples of g²``.

    The saliency of optimal brain damage, ``w²·H_ww/2`` (LeCun 1989), with the Fisher information in place
    of the Hessian, as in https://arxiv.org/abs/1801.05787 for single weights. g is the gradient of one
    **sample's** loss at its label: the square of a batch's mean gradient is another quantity, which on
    a trained network is mostly noise of the batching. Deviation from the true Fisher information: labels
    are those of the data, not drawn from the model.

    Per-sample gradients are exact, 32 samples at a time (``torch.func.vmap``) or as many as fit in 256 MB.
    A network that vmap cannot follow (branches on values, autograd functions without a batching rule)
    needs ``per="batch"``. So does a loss that weights classes by their labels, as the mean over one sample
    cancels its weight.

    Attributes:
        per: sample, or batch: g² of each batch's mean gradient, averaged over batches; one plain backward
            pass a batch, and for batches of one sample the same.

    Raises:
        InvalidArgument: for another name.
    """

    per: Literal["sample", "batch"] = "sample"

    def __post_init__(self) -> None:
        if self.per not in ("sample", "batch"):
            raise InvalidArgument(f"per must be sample or batch, got {self.per!r}.")

    def __call__(self, inputs: ScoreInputs) -> Named:
        """Scores from labelled batches.

        Raises:
            ScoreError: if a batch has no labels, or a loss is not finite.
        """
        if self.per == "sample":
            squares = self._of_samples(inputs)
        else:
            squares = accumulated_gradient(self, inputs, SQUARES)
        for name, mean in squares.items():
            mean.mul_(inputs.weights[name]).mul_(inputs.weights[name]).div_(2)
        return squares

    def _of_samples(self, inputs: ScoreInputs) -> dict[str, Tensor]:
        network = Functional.of(inputs.model)
        targets = {name: network.parameters[name].detach() for name in inputs.targets}

        def loss_of(weights: Named, batch: Inputs, sample: tuple[Tensor, ...], y: Tensor) -> Tensor:
            x = filled(batch, [tensor[None] for tensor in sample])
            loss = inputs.task_loss(network(weights, x), y[None])
            check_scalar("task", loss)
            return loss.reshape(())

        per_sample = cast(
            "Callable[[Named, Inputs, tuple[Tensor, ...], Tensor], tuple[dict[str, Tensor], Tensor]]",
            vmap(grad_and_value(loss_of), in_dims=(None, None, 0, 0), randomness="different"),
        )
        chunk = samples_at_once(sum(weight.numel() for weight in targets.values()))
        squares = zero_scores(inputs.weights)
        n_samples = 0
        for index, (x, y) in enumerate(inputs.stream_labelled(self)):
            with _data_blamed_first(inputs, x, y):
                for x_part, y_part in zip(x.split(chunk), y.split(chunk), strict=True):
                    # vmap differentiates by itself, so no graph to the leaves is needed
                    with torch.no_grad(), sample_by_sample(self, "Choose per='batch'."):
                        gradients, losses = per_sample(targets, x_part, tensors_of(x_part), y_part)
                    _check_samples(inputs, x, y, losses, index)
                    for name, gradient in gradients.items():
                        squares[name].add_(gradient.square().sum(0))
            n_samples += len(x)
        for total in squares.values():
            total.div_(n_samples)
        return squares


def _check_samples(inputs: ScoreInputs, x: Inputs, y: Tensor, losses: Tensor, index: int) -> None:
    """Refuse losses that are not finite; of samples alone where that of their batch is.

    Raises:
        ScoreError: naming the batch.
    """
    if bool(losses.isfinite().all()):
        return
    with torch.no_grad():
        check_finite("task", inputs.task_loss(inputs.logits(x), y), index)
    raise ScoreError(
        f"the task loss of some samples of batch {index} is not finite, though that of the batch is: a "
        "sample whose labels are all ignored has none. Leave such samples out, or choose per='batch'."
    )


@contextmanager
def _data_blamed_first(inputs: ScoreInputs, x: Inputs, y: Tensor) -> Generator[None]:
    """Where samples fail one by one, the loss of the batch says better what is wrong with the data."""
    try:
        yield
    except (ValueError, IndexError):
        with torch.no_grad():
            inputs.task_loss(inputs.logits(x), y)
        raise
