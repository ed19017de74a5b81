"""Residual networks for small images: ResNet-20 to 56, and ResNet-18/34/50 with a small stem.

He et al. 2016, https://arxiv.org/abs/1512.03385.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from secateur.models.widths import scaled


class PaddedShortcut(nn.Module):
    """Option A of the paper: every `stride`-th pixel, new channels filled with zeros. Without parameters."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, C, H, W) → (B, C', ⌈H/stride⌉, ⌈W/stride⌉)."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class ProjectedShortcut(nn.Sequential):
    """Option B of the paper: a strided 1×1 convolution and BatchNorm."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        conv = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
        super().__init__(conv, nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut.

    Args:
        in_channels: Channels that come in.
        width: Channels of both convolutions.
        stride: Of the first convolution.
        shortcut: What stands beside the convolutions where the shape changes.
    """

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        stride: int,
        shortcut: type[PaddedShortcut | ProjectedShortcut],
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        same = stride == 1 and in_channels == width
        self.downsample = None if same else shortcut(in_channels, width, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, C, H, W) → (B, width, ⌈H/stride⌉, ⌈W/stride⌉)."""
        identity = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + identity)


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions and a shortcut; four times `width` channels come out.

    Args:
        in_channels: Channels that come in.
        width: Channels of the 3×3 convolution.
        stride: Of the 3×3 convolution.
        shortcut: What stands beside the convolutions where the shape changes.
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        stride: int,
        shortcut: type[PaddedShortcut | ProjectedShortcut],
    ) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        same = stride == 1 and in_channels == out_channels
        self.downsample = None if same else shortcut(in_channels, out_channels, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, C, H, W) → (B, 4·width, ⌈H/stride⌉, ⌈W/stride⌉)."""
        identity = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + identity)


class CifarResNet(nn.Module):
    """ResNet of §4.2 of the paper: 6n + 2 layers in three stages of 16, 32 and 64 channels.

    State-dict names are ``conv1, bn1, layer{1,2,3}.{i}.{conv1,bn1,conv2,bn2}, linear``, as in
    https://github.com/akamaster/pytorch_resnet_cifar10, whose published weights load.

    Args:
        blocks: Blocks a stage, the n of the paper.
        num_classes: Outputs.
        in_channels: Channels of the images.
        width: What the numbers of channels are multiplied by.
    """

    def __init__(
        self, blocks: int, *, num_classes: int = 10, in_channels: int = 3, width: float = 1.0
    ) -> None:
        super().__init__()
        first, second, third = (scaled(channels, width) for channels in (16, 32, 64))
        self.conv1 = nn.Conv2d(in_channels, first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.layer1 = _stage(BasicBlock, first, first, blocks, stride=1, shortcut=PaddedShortcut)
        self.layer2 = _stage(BasicBlock, first, second, blocks, stride=2, shortcut=PaddedShortcut)
        self.layer3 = _stage(BasicBlock, second, third, blocks, stride=2, shortcut=PaddedShortcut)
        self.linear = nn.Linear(third, num_classes)
        _init_he(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) → logits (B, num_classes)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.linear(out.mean(dim=(2, 3)))


class ResNet(nn.Module):
    """ResNet for ImageNet with the stem for small images: one 3×3 convolution, no pooling.

    State-dict names are torchvision's: ``conv1, bn1, layer{1..4}.{i}.{…, downsample.0, downsample.1}, fc``.

    Args:
        block: `BasicBlock` or `Bottleneck`.
        blocks: Blocks in each of the four stages.
        num_classes: Outputs.
        in_channels: Channels of the images.
        width: What the numbers of channels are multiplied by.
    """

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        blocks: tuple[int, int, int, int],
        *,
        num_classes: int = 10,
        in_channels: int = 3,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        e = block.expansion
        first, second, third, fourth = (scaled(channels, width) for channels in (64, 128, 256, 512))
        self.conv1 = nn.Conv2d(in_channels, first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.layer1 = _stage(block, first, first, blocks[0], stride=1, shortcut=ProjectedShortcut)
        self.layer2 = _stage(block, first * e, second, blocks[1], stride=2, shortcut=ProjectedShortcut)
        self.layer3 = _stage(block, second * e, third, blocks[2], stride=2, shortcut=ProjectedShortcut)
        self.layer4 = _stage(block, third * e, fourth, blocks[3], stride=2, shortcut=ProjectedShortcut)
        self.fc = nn.Linear(fourth * e, num_classes)
        _init_he(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) → logits (B, num_classes)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        return self.fc(out.mean(dim=(2, 3)))


def resnet20(*, num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> CifarResNet:
    """ResNet-20 of the CIFAR paper, 0.27 M parameters."""
    return CifarResNet(3, num_classes=num_classes, in_channels=in_channels, width=width)


def resnet32(*, num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> CifarResNet:
    """ResNet-32 of the CIFAR paper, 0.46 M parameters."""
    return CifarResNet(5, num_classes=num_classes, in_channels=in_channels, width=width)


def resnet44(*, num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> CifarResNet:
    """ResNet-44 of the CIFAR paper, 0.66 M parameters."""
    return CifarResNet(7, num_classes=num_classes, in_channels=in_channels, width=width)


def resnet56(*, num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> CifarResNet:
    """ResNet-56 of the CIFAR paper, 0.85 M parameters."""
    return CifarResNet(9, num_classes=num_classes, in_channels=in_channels, width=width)


def resnet18(*, num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> ResNet:
    """ResNet-18 with the stem for small images, 11.2 M parameters."""
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes=num_classes, in_channels=in_channels, width=width)


def resnet34(*, num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> ResNet:
    """ResNet-34 with the stem for small images, 21.3 M parameters."""
    return ResNet(BasicBlock, (3, 4, 6, 3), num_classes=num_classes, in_channels=in_channels, width=width)


def resnet50(*, num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> ResNet:
    """ResNet-50 with the stem for small images, 23.5 M parameters."""
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes=num_classes, in_channels=in_channels, width=width)


def _stage(
    block: type[BasicBlock | Bottleneck],
    in_channels: int,
    width: int,
    n: int,
    *,
    stride: int,
    shortcut: type[PaddedShortcut | ProjectedShortcut],
) -> nn.Sequential:
    out_channels = width * block.expansion
    first = block(in_channels, width, stride=stride, shortcut=shortcut)
    others = (block(out_channels, width, stride=1, shortcut=shortcut) for _ in range(n - 1))
    return nn.Sequential(first, *others)


def _init_he(model: nn.Module) -> None:
    """Convolutions as in He et al. 2015, https://arxiv.org/abs/1502.01852; the rest as torch does."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
