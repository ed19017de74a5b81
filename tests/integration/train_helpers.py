"""Recipes and students that the tests of the training loop share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from helpers import Indexed, make_cnn
from secateur.allocate import allocate
from secateur.inputs import Arguments
from secateur.masks import Masks, apply_masks
from secateur.naming import IndexedBatch
from secateur.recovery import Recovery
from secateur.scores import Magnitude, score
from secateur.testing.networks import CLASSES

PLAIN = Recovery(epochs=3, kd_weight=0, precision="fp32")
GUIDED = replace(PLAIN, kd_weight=0.7)


def pruned(model: nn.Module, sparsity: float = 0.6) -> Masks:
    masks = allocate(score(model, None, Magnitude()), sparsity=sparsity)
    apply_masks(model, masks)
    return masks


def student_cnn() -> nn.Sequential:
    """Without dropout, so that the loader alone draws random numbers."""
    return make_cnn(dropout=0)


class Tape:
    """Stands in for a CUDA graph on the CPU: recording runs nothing, a replay runs on the memory recorded."""

    def __init__(self) -> None:
        self.recordings = self.replays = 0

    def record(self, run: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        self.recordings += 1
        loss = torch.full((), torch.nan)

        def replay() -> None:
            self.replays += 1
            loss.copy_(run())

        return loss, replay


def in_two(both: Tensor) -> tuple[Tensor, Tensor]:
    """The vector and the gate of `Gated` from the one tensor of `Stacked`."""
    return both[:, :6].contiguous(), both[:, 6:].contiguous()


class Gated(nn.Module):
    """Takes a vector and a gate in two tensors; `Stacked` the same in one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.first(x))) * torch.sigmoid(gate))


class Stacked(Gated):
    def forward(self, both: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(*in_two(both))


class InTwo(Indexed):
    """A loader that knows its samples, with two tensors of inputs."""

    def epoch(self, *args: Any, **kwargs: Any) -> Iterator[IndexedBatch]:
        for batch in super().epoch(*args, **kwargs):
            assert isinstance(batch.inputs, Tensor)
            x, gate = in_two(batch.inputs)
            yield batch._replace(inputs=Arguments((x,), {"gate": gate}))
