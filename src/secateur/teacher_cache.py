"""The teacher's logits for training batches, paid once where a batch comes back looking the same."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from secateur.losses import logits_of
from secateur.naming import IndexedBatch


class TeacherLogits:
    """A teacher's logits for training batches, remembered where a batch will look the same again.

    Args:
        teacher: Frozen network; it is put in eval mode and left there.
        n_samples: Size of the training split if logits are to be remembered by view and index, else 0.
    """

    def __init__(self, teacher: nn.Module, *, n_samples: int) -> None:
        self._teacher = teacher.eval()
        self._n_samples = n_samples
        self._cache: dict[int, Tensor] = {}

    def __call__(self, batch: IndexedBatch) -> Tensor:
        """Logits of shape (batch, classes, …), without gradient."""
        if not self._n_samples:
            return self._compute(batch.inputs)
        known = self._cache.get(batch.view)
        if known is not None:
            remembered = known[batch.indices]
            if not bool(remembered.isnan().any()):
                return remembered
        logits = self._compute(batch.inputs).float()
        if known is None:
            known = logits.new_full((self._n_samples, *logits.shape[1:]), math.nan)
            self._cache[batch.view] = known
        known[batch.indices] = logits
        return logits

    def _compute(self, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            return logits_of(self._teacher(inputs))
