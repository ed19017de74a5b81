"""The teacher's logits for training batches, paid once where a batch comes back looking the same."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from secateur.errors import TrainingError
from secateur.inputs import Inputs, tensors_of
from secateur.layout import arranged
from secateur.losses import logits_for
from secateur.naming import IndexedBatch, IndexedLoader


class TeacherLogits:
    """A teacher's logits for training batches; with a loader they are remembered, one view at a time.

    A view is computed as a whole when it is first asked for, in the loader's own batches and the order
    of its epoch 0. What is remembered then depends on nobody's order of asking, though a sample's last
    bits can depend on its batch: trainings over the same loader may share this, stopped and resumed ones
    too, and each ends with the same bits as alone.

    Args:
        teacher: Frozen network, in eval mode whenever this is called.
        loader: Where the batches come from; None asks the teacher every time.

    Attributes:
        teacher: The network.

    Raises:
        TrainingError: when asked, if an epoch of `loader` is not the whole split.
    """

    def __init__(self, teacher: nn.Module, loader: IndexedLoader | None = None) -> None:
        self.teacher = teacher
        self._loader = loader
        self._views: dict[int, Tensor] = {}

    @property
    def remembers(self) -> bool:
        """Whether logits are remembered; if not, the teacher is asked every time."""
        return self._loader is not None

    def __call__(self, batch: IndexedBatch) -> Tensor:
        """Logits of shape (batch, classes, …), without gradient.

        What is remembered is looked up without waiting for the device.
        """
        if self._loader is None:
            return self.ask(batch.inputs)
        if batch.view not in self._views:
            self._views[batch.view] = self._compute_view(self._loader, batch.view, batch.inputs)
        return self._views[batch.view][batch.indices]

    def _compute_view(self, loader: IndexedLoader, view: int, like: Inputs) -> Tensor:
        """Logits of all samples in one view, from inputs on the device and in the layout of `like`."""
        images = [tensor for tensor in tensors_of(like) if tensor.ndim == 4]
        last = any(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in images)
        layout = torch.channels_last if last else torch.contiguous_format
        known: Tensor | None = None
        n_seen = 0
        for batch in loader.epoch(0, view=view):
            logits = self.ask(arranged(batch.inputs.to(like.device), layout)).float()
            if known is None:
                known = logits.new_full((loader.n_samples, *logits.shape[1:]), math.nan)
            known[batch.indices.to(like.device)] = logits
            n_seen += len(logits)
        if known is None or n_seen != loader.n_samples:
            raise TrainingError(
                f"epoch 0 of the loader has {n_seen} samples, its split {loader.n_samples}; "
                "to remember the teacher's logits it must go through all of them."
            )
        return known

    def ask(self, inputs: Inputs) -> Tensor:
        """The teacher's logits for inputs on its device, without gradient; nothing is remembered."""
        with torch.no_grad():
            return logits_for(self.teacher, inputs)
