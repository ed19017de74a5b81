"""Memory layout of images: channels-last is what convolutions prefer, where a network can take it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from secateur.inputs import Inputs, call, filled, tensors_of
from secateur.modules import modes_kept


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
        with modes_kept(network), torch.no_grad():
            try:
                call(network.eval(), images)
            except RuntimeError:  # whatever else is wrong with the batch, its real pass will say
                return torch.contiguous_format
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
