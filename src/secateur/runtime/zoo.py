"""The networks of the runtime benchmark, with random weights and masks: speed depends on neither."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.allocate import Layerwise, allocate
from secateur.evaluate import reestimate_batchnorm
from secateur.masks import apply_masks
from secateur.models import resnet, vgg
from secateur.scores import Random, score


class ImageNetResNet50(resnet.ResNet):
    """ResNet-50 with the stem of the paper: a 7×7 convolution and pooling, both of stride 2."""

    def __init__(self) -> None:
        super().__init__(resnet.Bottleneck, (3, 4, 6, 3), num_classes=1000)
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) → logits (B, 1000)."""
        out = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        return self.fc(out.mean(dim=(2, 3)))


class InvertedResidual(nn.Module):
    """1×1 to more channels, depthwise 3×3, 1×1 back; Sandler et al. 2018, https://arxiv.org/abs/1801.04381."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        inner = in_channels * expansion
        widen = [] if expansion == 1 else _conv(in_channels, inner, 1)
        narrow = [nn.Conv2d(inner, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)]
        self.layers = nn.Sequential(*widen, *_conv(inner, inner, 3, stride=stride, groups=inner), *narrow)
        self.shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, C, H, W) → (B, C', ⌈H/stride⌉, ⌈W/stride⌉)."""
        return x + self.layers(x) if self.shortcut else self.layers(x)


class MobileNetV2(nn.Module):
    """MobileNet-V2 of width 1 for ImageNet, table 2 of the paper."""

    def __init__(self) -> None:
        super().__init__()
        rows = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2))
        layers = _conv(3, 32, 3, stride=2)
        channels = 32
        for expansion, width, n, stride in (*rows, (6, 320, 1, 1)):
            for i in range(n):
                step = stride if i == 0 else 1
                layers.append(InvertedResidual(channels, width, stride=step, expansion=expansion))
                channels = width
        self.features = nn.Sequential(*layers, *_conv(channels, 1280, 1))
        self.classifier = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) → logits (B, 1000)."""
        return self.classifier(self.features(x).mean((2, 3)))


class EncoderLayer(nn.Module):
    """Self-attention and two linear layers, each with a shortcut and LayerNorm behind it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.mixed, self.norm1 = nn.Linear(width, width), nn.LayerNorm(width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, T, width) → the same shape."""
        q, k, v = (self._split(layer(x)) for layer in (self.query, self.key, self.value))
        found = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.norm1(x + self.mixed(found))
        return self.norm2(x + self.narrow(F.gelu(self.wide(x))))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class Encoder(nn.Module):
    """Four layers of BERT-base: 768 wide, 12 heads, GELU; Devlin et al. 2019, https://arxiv.org/abs/1810.04805."""

    def __init__(self, *, tokens: int = 128) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(30522, 768), nn.Embedding(tokens, 768)
        self.norm = nn.LayerNorm(768)
        self.layers = nn.Sequential(*(EncoderLayer(768, 12) for _ in range(4)))
        self.classifier = nn.Linear(768, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        """Indices of words (B, T) → logits (B, 2)."""
        places = torch.arange(tokens.shape[1])
        x = self.norm(self.words(tokens) + self.positions(places))
        return self.classifier(self.layers(x)[:, 0])


@dataclass(frozen=True)
class Entry:
    """A network of the benchmark.

    Attributes:
        build: Makes it, with random weights.
        input_shape: Of one sample.
        dense: Name patterns of weights that stay dense.
        words: Whether its input are indices.
    """

    build: Callable[[], nn.Module]
    input_shape: tuple[int, ...]
    dense: tuple[str, ...] = ("conv1.weight",)
    words: bool = False

    def example(self, batch: int) -> Tensor:
        """A batch of zeros."""
        return torch.zeros(batch, *self.input_shape, dtype=torch.int64 if self.words else torch.float32)


ZOO = {
    "resnet20": Entry(resnet.resnet20, (3, 32, 32)),
    "resnet18": Entry(resnet.resnet18, (3, 32, 32)),
    "vgg16": Entry(vgg.vgg16_bn, (3, 32, 32), ("features.0.weight",)),
    "resnet50": Entry(ImageNetResNet50, (3, 224, 224)),
    "mobilenet-v2": Entry(
        MobileNetV2, (3, 224, 224), ("features.0.weight", "*.layers.3.weight", "*.3.layers.0.weight")
    ),
    "encoder": Entry(Encoder, (128,), (), words=True),
}


def pruned(name: str, sparsity: float, *, seed: int = 0) -> nn.Module:
    """A network of the zoo in eval mode; of each of its layers but the dense ones the same share is zero.

    Args:
        name: A key of `ZOO`.
        sparsity: Fraction of the prunable weights that are zero, in [0, 1).
        seed: Of weights and masks.
    """
    entry = ZOO[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = entry.build().eval()
        if sparsity:
            scores = score(model, None, Random(seed), exclude=entry.dense)
            apply_masks(model, allocate(scores, sparsity=sparsity, scope=Layerwise()))
        if not entry.words:
            # Activations keep their size through all layers, so that relative differences mean something.
            reestimate_batchnorm(model, [torch.randn(4, *entry.input_shape)])
    return model


def _conv(
    in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    conv = nn.Conv2d(
        in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False
    )
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU6(inplace=True)]
