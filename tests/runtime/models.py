"""Models and comparisons for the tests of the runtime."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.conftest import HAS_NATIVE
from secateur.runtime import Engine, Plan

ENGINES = ("native", "reference") if HAS_NATIVE else ("reference",)


def sparsify(model: nn.Module, *, density: float = 0.2, seed: int = 0) -> nn.Module:
    """Zeros at random in the larger weights, and BatchNorm with statistics that do something; eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator) * 0.2)
                module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
                module.weight.copy_(torch.rand(module.weight.shape, generator=generator) + 0.5)
                module.bias.copy_(torch.randn(module.bias.shape, generator=generator) * 0.2)
            elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)) and module.weight.numel() > 100:
                keep = torch.rand(module.weight.shape, generator=generator) < density
                module.weight.mul_(keep / max(density, 0.01) ** 0.5)
    return model.eval()


def outputs_of(model: nn.Module, inputs: Sequence[Tensor]) -> list[np.ndarray]:
    with torch.no_grad():
        found = model(*inputs)
    found = found if isinstance(found, (list, tuple)) else [found]
    return [y.numpy() for y in found]


def outputs_in(engine: str, plan: Plan, inputs: Sequence[Tensor], *, threads: int = 1) -> list[np.ndarray]:
    """What one of `ENGINES` gives."""
    with mock.patch.dict(os.environ, {"SECATEUR_ENGINE": engine}):
        found = Engine(plan, threads=threads)(*(x.numpy() for x in inputs))
    return list(found) if isinstance(found, tuple) else [found]


def worst_error(
    model: nn.Module, plan: Plan, inputs: Sequence[Tensor], *, engines: Sequence[str] = ENGINES
) -> float:
    """Largest difference between engines and torch, relative to the largest number of each output.

    The native engine with one thread and with several, whatever the plan advises: they lay out images
    differently.
    """
    plan = replace(plan, program=replace(plan.program, one_thread=0))
    expected = outputs_of(model, inputs)
    errors: list[float] = []
    for engine, threads in (("native", 1), ("native", 2), ("native", 3), ("reference", 1)):
        if engine not in engines:
            continue
        found = outputs_in(engine, plan, inputs, threads=threads)
        assert [y.shape for y in found] == [y.shape for y in expected]
        assert all(y.dtype == np.float32 for y in found)
        errors += [_error(a, b) for a, b in zip(found, expected, strict=True)]
    return float(np.max(errors))


def _error(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, relative to the largest number; infinite where only one is a number."""
    with np.errstate(invalid="ignore"):
        difference = np.abs(found - expected)
    difference[(found == expected) | (np.isnan(found) & np.isnan(expected))] = 0
    difference[np.isnan(difference)] = np.inf
    size = np.abs(expected[np.isfinite(expected)])
    return float(difference.max() / max(size.max(initial=0), 1e-6))


def conv_bn(in_channels: int, out_channels: int, kernel: int, **options: Any) -> list[nn.Module]:
    padding = kernel // 2
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=padding, bias=False, **options)
    return [conv, nn.BatchNorm2d(out_channels)]


class Function(nn.Module):
    """A function as a model."""

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> object:
        return self.function(*inputs)


class InvertedResidual(nn.Module):
    """The block of MobileNet-V2 and EfficientNet-Lite: 1×1 up, depthwise, 1×1 down, shortcut."""

    def __init__(self, channels: int, out: int, *, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        inner = channels * expand
        self.block = nn.Sequential(
            *conv_bn(channels, inner, 1),
            nn.ReLU6(inplace=True),
            *conv_bn(inner, inner, kernel, stride=stride, groups=inner),
            nn.ReLU6(inplace=True),
            *conv_bn(inner, out, 1),
        )
        self.shortcut = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x) if self.shortcut else self.block(x)


class MobileNet(nn.Module):
    """MobileNet-V2 (kernel 3) or EfficientNet-Lite (kernel 5), cut down."""

    def __init__(self, *, kernel: int = 3, width: int = 8) -> None:
        super().__init__()
        layout = [(width, 1), (width, 2), (width, 1), (2 * width, 2), (2 * width, 1)]
        blocks: list[nn.Module] = []
        channels = width
        for out, stride in layout:
            blocks.append(InvertedResidual(channels, out, kernel=kernel, stride=stride, expand=6))
            channels = out
        self.stem = nn.Sequential(*conv_bn(3, width, 3, stride=2), nn.ReLU6())
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(*conv_bn(channels, 64, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.head(self.blocks(self.stem(x))), 1))


class SqueezeExcite(nn.Module):
    """A convolution whose channels are weighted by a small network: hardswish, hardsigmoid, products."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, padding=1)
        self.down, self.up = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)
        self.out = nn.Conv2d(channels, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.conv(x))
        weights = F.hardsigmoid(self.up(F.silu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        return self.out(x * weights).mean((2, 3))


class Encoder(nn.Module):
    """A small text classifier: embeddings, positions, transformer layers, the first token."""

    def __init__(self, *, width: int = 32, heads: int = 4, layers: int = 2, tokens: int = 12) -> None:
        super().__init__()
        self.tokens = nn.Embedding(50, width)
        self.positions = nn.Parameter(torch.randn(1, tokens + 1, width) * 0.1)
        self.first = nn.Parameter(torch.randn(1, 1, width))
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, activation="gelu", batch_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 5)

    def forward(self, ids: Tensor) -> Tensor:
        x = torch.cat([self.first.expand(ids.shape[0], -1, -1), self.tokens(ids)], dim=1) + self.positions
        return self.head(self.norm(self.layers(x))[:, 0])


class Padded(nn.Module):
    """A classifier of words with padding: attention does not see it, the mean leaves it out."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(9, 16), nn.Embedding(12, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)

    def forward(self, ids: Tensor, hidden: Tensor | None = None) -> Tensor:
        padding = ids == 0 if hidden is None else hidden
        seen = (~padding).long()
        x = self.tokens(ids) + self.positions(seen.cumsum(1) * seen)
        x = self.layers(x, src_key_padding_mask=padding)
        return self.head((x * seen.unsqueeze(-1)).sum(1) / seen.sum(1, keepdim=True).clamp(min=1))


class Attention(nn.Module):
    """Causal attention written out: one projection for q, k and v, split into heads, softmax by hand."""

    def __init__(self, width: int = 24, heads: int = 3, tokens: int = 7) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.register_buffer("mask", torch.full((tokens, tokens), -1e9).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        n, t, width = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) / (width // self.heads) ** 0.5 + self.mask
        mixed = torch.softmax(scores, dim=-1) @ v
        return x + self.out(mixed.transpose(1, 2).reshape(n, t, width))
