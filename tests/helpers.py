"""Small networks, data and snapshots that several tests share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from secateur.naming import IndexedBatch
from secateur.scores import AbstractCriterion

CLASSES = 3


def make_mlp(seed: int = 0, *, width: int = 8) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, CLASSES))


def make_cnn(seed: int = 0, *, width: int = 4, dropout: float = 0.3) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, stride=2, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Dropout(dropout) if dropout else nn.Identity(),
        nn.Flatten(),
        nn.Linear(width * 9, CLASSES),
    )
    with torch.no_grad():  # statistics that are not those of a fresh network
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.add_(torch.rand_like(buffer))
    return model


class SharedNet(nn.Module):
    """Two layers that are one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


class Tally(nn.Module):
    """Writes its buffers in every forward pass, in eval mode too: one in place, one by assignment."""

    calls: Tensor
    last: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = x.detach().flatten()[:3].clone()
        return x


class Noise(nn.Module):
    """Draws random numbers in eval mode too."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn_like(x)


def vectors(n: int = 3, size: int = 5, *, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    """Labelled batches for `make_mlp` and `SharedNet`."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(size, 6, generator=generator), torch.randint(0, CLASSES, (size,), generator=generator))
        for _ in range(n)
    ]


def images(n: int = 3, size: int = 5, *, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    """Labelled batches for `make_cnn`."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(size, 1, 6, 6, generator=generator),
            torch.randint(0, CLASSES, (size,), generator=generator),
        )
        for _ in range(n)
    ]


def takes_teacher(criterion: type[AbstractCriterion]) -> bool:
    return any(field.name == "teacher" for field in fields(criterion))  # type: ignore[arg-type]


def build(criterion: type[AbstractCriterion], teacher: nn.Module, **options: Any) -> AbstractCriterion:
    """A criterion with its defaults, and a teacher if it takes one."""
    return criterion(teacher, **options) if takes_teacher(criterion) else criterion(**options)  # type: ignore[call-arg]


_MODULE_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def hooks_of(model: nn.Module) -> dict[str, int]:
    """Number of hooks on every module and parameter that has any."""
    found = {
        f"{name}.{kind}": len(getattr(module, kind))
        for name, module in model.named_modules()
        for kind in _MODULE_HOOKS
    }
    found |= {
        f"{name}.{kind}": len(getattr(parameter, kind) or ())
        for name, parameter in model.named_parameters()
        for kind in ("_backward_hooks", "_post_accumulate_grad_hooks")
    }
    return {place: count for place, count in found.items() if count}


@dataclass
class Snapshot:
    """All of a model's state, and the random state, to compare bit for bit."""

    tensors: dict[str, tuple[Tensor, Tensor]]
    grads: dict[str, tuple[Tensor, Tensor] | None]
    flags: dict[str, Any]
    rng: Tensor

    @classmethod
    def of(cls, model: nn.Module) -> Snapshot:
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        return cls(
            tensors={name: (t, t.detach().clone()) for name, t in tensors.items()},
            grads={
                name: None if p.grad is None else (p.grad, p.grad.clone())
                for name, p in model.named_parameters()
            },
            flags={
                "keys": list(model.state_dict()),
                "modes": {name: module.training for name, module in model.named_modules()},
                "trainable": {name: p.requires_grad for name, p in model.named_parameters()},
                "strides": {name: t.stride() for name, t in tensors.items()},
                "hooks": hooks_of(model),
            },
            rng=torch.get_rng_state(),
        )

    def assert_unchanged(self, model: nn.Module) -> None:
        now = Snapshot.of(model)
        assert now.flags == self.flags
        assert torch.equal(now.rng, self.rng), "the random state changed"
        assert now.tensors.keys() == self.tensors.keys()
        for name, (tensor, value) in self.tensors.items():
            assert now.tensors[name][0] is tensor, f"{name} is another object"
            assert same_bits(now.tensors[name][1], value), f"{name} changed"
        for name, before in self.grads.items():
            after = now.grads[name]
            if before is None:
                assert after is None, f"{name} got a gradient"
            else:
                assert after is not None
                assert after[0] is before[0], f"the gradient of {name} is another object"
                assert same_bits(after[1], before[1]), f"the gradient of {name} changed"


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal to the last bit: −0.0 differs from 0.0, NaN equals itself."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    a, b = a.detach().contiguous(), b.detach().contiguous()
    return bool(torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8)))


def assert_positive_zero(tensor: Tensor) -> None:
    """All elements are exactly +0.0."""
    assert same_bits(tensor, torch.zeros_like(tensor)), tensor


def same_state(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(same_bits(a[name], b[name]) for name in a)


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

    def epoch(self, number: int, *, view: int | None = None) -> Iterator[IndexedBatch]:
        look = number if view is None else view
        order = torch.randperm(
            self.n_samples, generator=torch.Generator().manual_seed(self.seed + 1000 * number)
        )
        noise = torch.randn(self.inputs.shape, generator=torch.Generator().manual_seed(self.seed + look))
        for indices in order.split(self.batch_size):
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
