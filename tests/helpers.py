"""Small networks, data and snapshots that several tests share; most are those of `secateur.testing`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from secateur.naming import IndexedBatch
from secateur.scores import AbstractCriterion
from secateur.testing.networks import CLASSES, Noise, SharedNet, Tally, images, make_cnn, make_mlp, vectors
from secateur.testing.snapshot import Snapshot, hooks_of, same_bits

__all__ = [
    "Attention",
    "Indexed",
    "Noise",
    "Recurrent",
    "SharedNet",
    "Snapshot",
    "Tally",
    "assert_positive_zero",
    "build",
    "hooks_of",
    "images",
    "indexed_images",
    "indexed_vectors",
    "make_cnn",
    "make_mlp",
    "same_bits",
    "same_state",
    "takes_teacher",
    "vectors",
]


def takes_teacher(criterion: type[AbstractCriterion]) -> bool:
    return any(field.name == "teacher" for field in fields(criterion))  # type: ignore[arg-type]


def build(criterion: type[AbstractCriterion], teacher: nn.Module, **options: Any) -> AbstractCriterion:
    """A criterion with its defaults, and a teacher if it takes one."""
    return criterion(teacher, **options) if takes_teacher(criterion) else criterion(**options)  # type: ignore[call-arg]


def assert_positive_zero(tensor: Tensor) -> None:
    """All elements are exactly +0.0."""
    assert same_bits(tensor, torch.zeros_like(tensor)), tensor


def same_state(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(same_bits(a[name], b[name]) for name in a)


class Attention(nn.Module):
    """Six numbers as six positions of a small transformer."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.embed, self.body = nn.Linear(1, 8), nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.embed(x[..., None])).mean(1))


class Recurrent(nn.Module):
    """Six numbers as six steps."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(1, 8, batch_first=True), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x[..., None])[0].mean(1))


@dataclass
class Indexed:
    """A loader whose epochs are pure functions of their number: the smallest `IndexedLoader`."""

    inputs: Tensor
    labels: Tensor
    batch_size: int = 8
    seed: int = 0

    @property
    def n_samples(self) -> int:
        return len(self.labels)

    def __len__(self) -> int:
        return -(-self.n_samples // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.epoch(0):
            yield batch.inputs, batch.labels

    def epoch(
        self, number: int, *, view: int | None = None, start: int = 0, stop: int | None = None
    ) -> Iterator[IndexedBatch]:
        look = number if view is None else view
        order = torch.randperm(
            self.n_samples, generator=torch.Generator().manual_seed(self.seed + 1000 * number)
        )
        noise = torch.randn(self.inputs.shape, generator=torch.Generator().manual_seed(self.seed + look))
        for indices in order.split(self.batch_size)[start:stop]:
            inputs = self.inputs[indices] + 0.1 * noise[indices]
            yield IndexedBatch(inputs, self.labels[indices], indices, look)


def indexed_vectors(n: int = 30, *, batch_size: int = 8) -> Indexed:
    """Learnable data for `make_mlp`: the class is that of the largest of the first three inputs."""
    inputs = torch.randn(n, 6, generator=torch.Generator().manual_seed(5))
    return Indexed(inputs, inputs[:, :CLASSES].argmax(1), batch_size)


def indexed_images(n: int = 30, *, batch_size: int = 8) -> Indexed:
    """Data for `make_cnn`."""
    generator = torch.Generator().manual_seed(6)
    inputs = torch.randn(n, 1, 6, 6, generator=generator)
    return Indexed(inputs, torch.randint(0, CLASSES, (n,), generator=generator), batch_size)
