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
        accuracy: Fraction of samples whose largest logit is the label, in [0, 1]; NaN is no largest.
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
                # argmax takes NaN for the largest
                hits.append(((logits.argmax(dim=1) == y) & ~logits.isnan().any(dim=1)).sum())
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
    whose parameters are frozen; no weight changes. Mean and variance are those of all samples together,
    however they are dealt out to batches. A layer that no batch reaches keeps its statistics, and after an
    exception all do.

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
    found = [_Pooled(layer) for layer in layers]
    n_seen = 0
    with ExitStack() as stack, modes_kept(model), torch.no_grad():
        model.eval()
        for layer, pooled in zip(layers, found, strict=True):
            stack.callback(_give_back, layer, layer.momentum, copy.deepcopy(layer.state_dict()), pooled)
            layer.momentum = None  # a plain average where it is called several times in a pass
            layer.train()
        for x, _ in laid_out(split_batches(batches, device_of(model)), model):
            if len(x) == 1 and n_seen:
                continue
            n_seen += len(x)
            for pooled in found:
                pooled.begin()
            _pass(model, x)
            for pooled in found:
                pooled.add(len(x))
        for pooled in found:
            pooled.finish()
    return sum(pooled.done for pooled in found)


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


class _Pooled:
    """Statistics of a BatchNorm layer in training mode, without momentum, over all batches that reach it.

    Attributes:
        done: Whether the layer has them, which it has not if no batch reached it.
    """

    def __init__(self, layer: _BatchNorm) -> None:
        self._layer = layer
        self._n_values = self._n_new = 0  # a channel; the latter in this pass
        self._n_batches = 0
        self._mean = self._variance = torch.zeros(())
        self._counting = layer.register_forward_hook(self._count)
        self.done = False

    def _count(self, layer: nn.Module, inputs: tuple[object, ...], output: Tensor) -> None:
        self._n_new += output.numel() // self._layer.num_features

    def begin(self) -> None:
        """Forget what the layer holds, before a pass."""
        self._layer.reset_running_stats()
        self._n_new = 0

    def add(self, n_samples: int) -> None:
        """Take in what the layer holds after a pass of so many, by https://doi.org/10.2307/2683386."""
        mean, variance = self._layer.running_mean, self._layer.running_var
        if not self._layer.num_batches_tracked or mean is None or variance is None:
            return
        n = self._n_new or n_samples  # compiled code may call no hooks
        # in halves, what a late batch adds would be rounded off
        mean, variance = (
            t.to(torch.promote_types(t.dtype, torch.float32), copy=True) for t in (mean, variance)
        )
        variance *= max(n - 1, 1) / n
        self._n_batches += 1
        self._n_values += n
        share = n / self._n_values
        if share == 1:
            self._mean, self._variance = mean, variance
            return
        apart = mean - self._mean
        self._mean += share * apart
        self._variance.lerp_(variance, share).add_(apart.square(), alpha=share * (1 - share))

    def finish(self) -> None:
        """Give the layer the statistics, if any batch has reached it."""
        mean, variance = self._layer.running_mean, self._layer.running_var
        if not self._n_batches or mean is None or variance is None:
            return
        mean.copy_(self._mean)
        variance.copy_(self._variance * (self._n_values / max(self._n_values - 1, 1)))
        if self._layer.num_batches_tracked is not None:
            self._layer.num_batches_tracked.fill_(self._n_batches)
        self.done = True

    def close(self) -> None:
        """Count no more."""
        self._counting.remove()


def _give_back(layer: _BatchNorm, momentum: float | None, before: dict[str, Tensor], pooled: _Pooled) -> None:
    """Restore momentum, and the statistics of a layer that has no new ones."""
    pooled.close()
    layer.momentum = momentum
    if not pooled.done:
        layer.load_state_dict(before)
