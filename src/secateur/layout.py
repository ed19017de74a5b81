"""Memory layout of images: channels-last is what convolutions prefer, where a network can take it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from secateur.inputs import Inputs, call, filled, tensors_of
from secateur.modules import modes_kept, random_state_kept, remembered


def image_layout(inputs: Inputs, *networks: nn.Module) -> torch.memory_format:
    """channels-last if all `networks` run on images laid out so, otherwise contiguous.

    Some cannot: a network that flattens by ``view`` needs contiguous activations. Two images are
    tried, in eval mode and without gradients; the networks come back as they were. Values do not
    depend on the layout, but for rounding.

    Args:
        inputs: A batch; anything but images of shape (batch, C, H, W) is contiguous.
        networks: What will run on it.
    """
    if all(tensor.ndim != 4 for tensor in tensors_of(inputs)):
        return torch.contiguous_format
    images = arranged(inputs[:2], torch.channels_last)
    for network in networks:
        put_back = remembered(network.buffers())
        with modes_kept(network), torch.no_grad():
            try:
                call(network.eval(), images)
            except (RuntimeError, AssertionError, ValueError):
                # of two images, or of their layout; whatever else is wrong, the real pass will say
                return torch.contiguous_format
            finally:
                put_back()
    return torch.channels_last


def arranged(inputs: Inputs, layout: torch.memory_format) -> Inputs:
    """`inputs` in the layout that `image_layout` found, if they are images."""
    return filled(
        inputs, [t.contiguous(memory_format=layout) if t.ndim == 4 else t for t in tensors_of(inputs)]
    )


def laid_out(
    batches: Iterable[tuple[Inputs, Tensor | None]], *networks: nn.Module
) -> Iterator[tuple[Inputs, Tensor | None]]:
    """Batches of ``(inputs, labels)`` with images in the layout that suits all `networks`."""
    layout: torch.memory_format | None = None
    for inputs, labels in batches:
        layout = layout or image_layout(inputs, *networks)
        yield arranged(inputs, layout), labels


class TrainingLayout:
    """Arranges the images of a training, and the weights that meet them, in the layout that suits both.

    Which one is found with the first batch. On leaving, weights are back where they lay.
    """

    def __init__(
        self,
        model: nn.Module,
        others: Sequence[nn.Module],
        optimizer: torch.optim.Optimizer,
        *,
        channels_last: bool,
    ) -> None:
        self._model, self._others, self._optimizer = model, others, optimizer
        self._found = None if channels_last else torch.contiguous_format
        self._moved: list[tuple[nn.Parameter, Tensor]] = []

    def __enter__(self) -> TrainingLayout:
        return self

    def __exit__(self, *_: object) -> None:
        self._put_back()

    def __call__(self, inputs: Inputs) -> Inputs:
        """A batch in the layout."""
        if self._found is None:
            with random_state_kept(inputs.device):  # what the trial draws is not missing from the training
                self._found = self._try(inputs)
        return arranged(inputs, self._found)

    def _try(self, inputs: Inputs) -> torch.memory_format:
        with torch.no_grad():  # a network may take such images, but not such weights: both are tried
            for parameter in _with_own_memory(self._model):
                self._moved.append((parameter, parameter.data))
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
                self._lay_out_momentum(parameter, torch.channels_last)
        found = image_layout(inputs, self._model, *self._others)
        if found == torch.contiguous_format:
            self._put_back()
        return found

    def _put_back(self) -> None:
        with torch.no_grad():
            for parameter, memory in self._moved:
                parameter.data = memory.copy_(parameter.data)
                self._lay_out_momentum(parameter, torch.contiguous_format)
        self._moved.clear()

    def _lay_out_momentum(self, parameter: nn.Parameter, layout: torch.memory_format) -> None:
        """Like the parameter: fused steps want that."""
        remembered = self._optimizer.state.get(parameter, {})
        if (momentum := remembered.get("momentum_buffer")) is not None:
            remembered["momentum_buffer"] = momentum.contiguous(memory_format=layout)


def _with_own_memory(model: nn.Module) -> list[nn.Parameter]:
    """4-D parameters that no other tensor of `model` looks into."""
    plain = [t for t in (*model.parameters(), *model.buffers()) if type(t) in (Tensor, nn.Parameter)]
    lies_at = {t: t.untyped_storage().data_ptr() for t in plain}
    users = Counter(lies_at.values())
    return [p for p in model.parameters() if p.ndim == 4 and p in lies_at and users[lies_at[p]] == 1]
