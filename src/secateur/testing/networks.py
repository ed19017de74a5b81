"""Small networks and data that hold what scoring could stumble over or disturb."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

CLASSES = 3
"""Of all networks and data here."""


@contextmanager
def seeded(seed: int) -> Generator[None]:
    """Random numbers inside follow `seed`; the caller's random state is not touched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def make_mlp(seed: int = 0, *, width: int = 8) -> nn.Sequential:
    """6 inputs, 3 classes, two linear layers."""
    with seeded(seed):
        return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, CLASSES))


def make_cnn(seed: int = 0, *, width: int = 4, dropout: float = 0.3) -> nn.Sequential:
    """1×6×6 images, 3 classes, BatchNorm with statistics that are not those of a fresh network, dropout."""
    with seeded(seed):
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
        with torch.no_grad():
            for buffer in model.buffers():
                if buffer.is_floating_point():
                    buffer.add_(torch.rand_like(buffer))
    return model


class SharedNet(nn.Module):
    """6 inputs, 3 classes; two layers that are one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
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
        """`x` itself."""
        self.calls += 1
        self.last = x.detach().flatten()[:3].clone()
        return x


class Noise(nn.Module):
    """Draws random numbers, in eval mode too."""

    def forward(self, x: Tensor) -> Tensor:
        """`x` and some noise."""
        return x + 0.1 * torch.randn_like(x)


def busy_cnn() -> nn.Sequential:
    """`make_cnn` with all that scoring could disturb: mixed modes, a frozen bias, gradients, busy buffers."""
    model = make_cnn()
    model.insert(1, Tally())
    model.train()
    model[2].eval()  # a frozen BatchNorm
    convolution, linear = model[4], model[9]
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(linear, nn.Linear)
    assert convolution.bias is not None
    convolution.bias.requires_grad_(False)
    with seeded(7):
        convolution.weight.grad = torch.randn_like(convolution.weight)
        linear.bias.grad = torch.randn_like(linear.bias)
    return model


def noisy_teacher() -> nn.Sequential:
    """A teacher over `images` that draws random numbers, is busy, and is in training mode."""
    return nn.Sequential(Noise(), busy_cnn())


def half_idle_mlp(width: int = 32) -> tuple[nn.Sequential, dict[str, Tensor]]:
    """A network in which half of the hidden units do nothing to speak of, and which weights those are.

    The weights into and out of an idle unit are 1,000 times smaller than the others, so that by their
    size, their gradient, or what passes through them they are needed least.

    Args:
        width: Number of hidden units, even.

    Returns:
        The network, over `vectors`; and a boolean tensor a weight, True = idle.
    """
    model = make_mlp(width=width)
    model[1] = nn.ReLU()
    idle = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in model.named_parameters() if p.ndim > 1}
    idle["0.weight"][width // 2 :] = True
    idle["2.weight"][:, width // 2 :] = True
    with torch.no_grad(), seeded(3):
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.zero_()
                continue
            sizes = torch.empty_like(parameter).uniform_(0.5, 1.5) * torch.randn_like(parameter).sign()
            parameter.copy_(torch.where(idle[name], 1e-3 * sizes, sizes))
    return model, idle


def vectors(n: int = 3, size: int = 5, *, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    """`n` labelled batches of `size` samples for `make_mlp` and `SharedNet`."""
    return _batches(n, size, (6,), seed)


def images(n: int = 3, size: int = 5, *, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    """`n` labelled batches of `size` samples for `make_cnn` and `busy_cnn`."""
    return _batches(n, size, (1, 6, 6), seed)


def _batches(n: int, size: int, shape: tuple[int, ...], seed: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(size, *shape, generator=generator),
            torch.randint(0, CLASSES, (size,), generator=generator),
        )
        for _ in range(n)
    ]
