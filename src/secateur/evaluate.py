"""What a network is worth: accuracy and loss, and BatchNorm statistics put right after a cut."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from secateur.errors import DataError
from secateur.inputs import Inputs, call
from secateur.layout import laid_out
from secateur.losses import check_scalar, explained, logits_for
from secateur.modules import device_of, modes_kept
from secateur.naming import GIVE_LABELS, Batches, Loss, split_batches


@dataclass(frozen=True)
class Metrics:
    """Quality of a classifier on labelled data.

    Attributes:
        accuracy: Fraction of samples whose largest logit is the label, in [0, 1].
        loss: Task loss averaged over samples.
        n_samples: Number of samples.
    """

    accuracy: float
    loss: float
    n_samples: int


def evaluate(model: nn.Module, batches: Batches, *, task_loss: Loss = F.cross_entropy) -> Metrics:
    """Accuracy and loss of `model` over labelled batches, in eval mode and the model's own precision.

    Args:
        model: Returns logits of shape (batch, classes).
        batches: Iterable of ``(inputs, labels)``, labels of shape (batch,).
        task_loss: Averaged over the batch.

    Raises:
        DataError: if there is no batch or no sample, if logits are not of that shape, or if labels are
            missing, not of theirs, or not in [0, classes).
    """
    hits: list[Tensor] = []
    lowest: list[Tensor] = []
    losses: list[Tensor] = []
    sizes: list[int] = []
    task_loss = explained(task_loss)
    with modes_kept(model), torch.no_grad():
        model.eval()
        for x, y in laid_out(split_batches(batches, device_of(model)), model):
            if y is None:
                raise DataError(f"evaluation needs labels, got a batch without. {GIVE_LABELS}.")
            if y.ndim != 1:
                raise DataError(
                    f"labels must have shape (batch,), got {tuple(y.shape)}: accuracy is counted by samples. "
                    "For other labels leave validation out, and measure by a loop of your own."
                )
            if y.dtype.is_floating_point:
                raise DataError(f"labels must be whole numbers, got {y.dtype}.")
            logits = logits_for(model, x)
            if logits.ndim != 2 or len(logits) != len(y) or logits.shape[1] < 2:
                raise DataError(
                    f"evaluation needs logits of shape (batch, classes) with 2 classes or more, got "
                    f"{tuple(logits.shape)} for {len(y)} labels. Give a binary classifier two outputs."
                )
            # All stays on the device until the end: no batch waits for the one before.
            if len(y):
                loss = task_loss(logits, y)
                check_scalar("task", loss)
                hits.append((logits.argmax(dim=1) == y).sum())
                lowest.append(y.min())
                losses.append(loss.reshape(()))
                sizes.append(len(y))
    n = sum(sizes)
    if not n:
        raise DataError("the loader yielded batches without a sample; check that the data set is not empty.")
    if (low := int(torch.stack(lowest).min())) < 0:
        raise DataError(
            f"every sample needs a class to be counted, got the label {low}. Leave such samples out."
        )
    total = sum(loss * size for loss, size in zip(torch.stack(losses).tolist(), sizes, strict=True))
    return Metrics(accuracy=int(torch.stack(hits).sum()) / n, loss=total / n, n_samples=n)


def check_first(model: nn.Module, batches: Batches) -> None:
    """Refuse batches of which the first cannot be evaluated: before long work, not after it.

    Args:
        model: As for `evaluate`.
        batches: As for `evaluate`; they must be there to be gone through again.

    Raises:
        DataError: as `evaluate` does.
    """
    evaluate(model, list(islice(batches, 1)))


def reestimate_batchnorm(model: nn.Module, batches: Batches) -> int:
    """Replace BatchNorm running statistics by averages over `batches`, in place.

    After a cut the activations no longer have the mean and variance that were recorded before it;
    this alone often brings back much of the accuracy. Only BatchNorm layers run in training mode, those too
    whose parameters are frozen; no weight changes. A batch counts as much as it has samples. A layer that no
    batch reaches keeps its statistics, and after an exception all do.

    Args:
        model: Any module.
        batches: Iterable of inputs or ``(inputs, labels)``; a few hundred inputs are enough. One sample says
            little of a variance, so batches of one are left out where there are others before.

    Returns:
        Number of BatchNorm layers re-estimated; without any in the model, the batches are not looked at.

    Raises:
        DataError: if there is no batch, or a BatchNorm layer sees one value a channel only.
    """
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not layers:
        return 0
    found = [_Average(layer) for layer in layers]
    n_seen = 0
    with ExitStack() as stack, modes_kept(model), torch.no_grad():
        model.eval()
        for layer, average in zip(layers, found, strict=True):
            stack.callback(_give_back, layer, layer.momentum, copy.deepcopy(layer.state_dict()), average)
            layer.momentum = None  # a plain average over the calls of a pass
            layer.train()
        for x, _ in laid_out(split_batches(batches, device_of(model)), model):
            if len(x) == 1 and n_seen:
                continue
            n_seen += len(x)
            for layer in layers:
                layer.reset_running_stats()
            _pass(model, x)
            for average in found:
                average.add(len(x))
        for average in found:
            average.finish()
    return sum(average.done for average in found)


def _pass(model: nn.Module, x: Inputs) -> None:
    try:
        call(model, x)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise DataError(
            f"BatchNorm cannot be re-estimated on a batch of {len(x)}: a layer sees one value a channel. "
            "Use larger batches."
        ) from error


class _Average:
    """The statistics of a BatchNorm layer, averaged over the batches that reach it by their samples.

    Attributes:
        done: Whether the layer has them, which it has not if no batch reached it.
    """

    def __init__(self, layer: _BatchNorm) -> None:
        self._layer = layer
        self._n_samples = self._n_batches = 0
        self._means: list[Tensor] = []
        self.done = False

    def add(self, n: int) -> None:
        """Count what the layer holds after a pass of `n` samples."""
        if not self._layer.num_batches_tracked:
            return
        self._n_samples += n
        self._n_batches += 1
        if self._n_batches == 1:
            # in halves, what a late batch adds to the average would be rounded off
            self._means = [
                t.to(torch.promote_types(t.dtype, torch.float32), copy=True) for t in self._statistics()
            ]
        else:
            for mean, tensor in zip(self._means, self._statistics(), strict=True):
                mean.lerp_(tensor.to(mean.dtype), n / self._n_samples)

    def finish(self) -> None:
        """Give the layer the averages, if any batch has reached it."""
        if self._n_batches:
            for tensor, mean in zip(self._statistics(), self._means, strict=True):
                tensor.copy_(mean)
            if self._layer.num_batches_tracked is not None:
                self._layer.num_batches_tracked.fill_(self._n_batches)
            self.done = True

    def _statistics(self) -> list[Tensor]:
        return [t for t in (self._layer.running_mean, self._layer.running_var) if t is not None]


def _give_back(
    layer: _BatchNorm, momentum: float | None, before: dict[str, Tensor], average: _Average
) -> None:
    """Restore momentum, and the statistics of a layer that has no new ones."""
    layer.momentum = momentum
    if not average.done:
        layer.load_state_dict(before)
