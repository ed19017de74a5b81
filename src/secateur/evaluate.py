"""What a network is worth: accuracy and loss, and BatchNorm statistics put right after a cut."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from secateur.errors import DataError
from secateur.layout import laid_out
from secateur.losses import logits_of
from secateur.modules import device_of, modes_kept
from secateur.naming import Batches, Loss, split_batches


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
        DataError: if there is no batch or no sample, or labels are missing or not of that shape.
    """
    hits: list[Tensor] = []
    losses: list[Tensor] = []
    sizes: list[int] = []
    with modes_kept(model), torch.no_grad():
        model.eval()
        for x, y in laid_out(split_batches(batches, device_of(model)), model):
            if y is None:
                raise DataError("evaluation needs labels, got a batch without.")
            if y.ndim != 1:
                raise DataError(f"labels must have shape (batch,), got {tuple(y.shape)}.")
            logits = logits_of(model(x))
            # All stays on the device until the end: no batch waits for the one before.
            hits.append((logits.argmax(dim=1) == y).sum())
            losses.append(task_loss(logits, y).reshape(()))
            sizes.append(len(y))
    n = sum(sizes)
    if not n:
        raise DataError("the loader yielded batches without a sample; check that the data set is not empty.")
    total = sum(loss * size for loss, size in zip(torch.stack(losses).tolist(), sizes, strict=True))
    return Metrics(accuracy=int(torch.stack(hits).sum()) / n, loss=total / n, n_samples=n)


def reestimate_batchnorm(model: nn.Module, batches: Batches) -> int:
    """Replace BatchNorm running statistics by averages over `batches`, in place.

    After a cut the activations no longer have the mean and variance that were recorded before it;
    this alone often brings back much of the accuracy. Only BatchNorm layers run in training mode;
    no weight changes. A layer that no batch reaches keeps its statistics, and after an exception all do.

    Args:
        model: Any module.
        batches: Iterable of inputs or ``(inputs, labels)``; a few hundred inputs are enough.

    Returns:
        Number of BatchNorm layers re-estimated; without any in the model, the batches are not looked at.

    Raises:
        DataError: if there is no batch.
    """
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not layers:
        return 0
    reached: list[_BatchNorm] = []
    with ExitStack() as stack, modes_kept(model), torch.no_grad():
        model.eval()
        for layer in layers:
            stack.callback(_give_back, layer, layer.momentum, copy.deepcopy(layer.state_dict()), reached)
            layer.reset_running_stats()
            layer.momentum = None  # a plain average over all batches
            layer.train()
        for x, _ in laid_out(split_batches(batches, device_of(model)), model):
            model(x)
        reached += [layer for layer in layers if layer.num_batches_tracked]
    return len(reached)


def _give_back(
    layer: _BatchNorm, momentum: float | None, before: dict[str, Tensor], reached: list[_BatchNorm]
) -> None:
    """Restore momentum, and the statistics of a layer that has no new ones."""
    layer.momentum = momentum
    if not any(layer is other for other in reached):
        layer.load_state_dict(before)
