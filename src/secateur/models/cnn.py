"""Small plain networks that train within seconds on 8×8 digits."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from secateur.models.widths import scaled


class Cnn(nn.Module):
    """Three blocks of 3×3 convolution, BatchNorm and ReLU, max-pooling between them, one linear classifier.

    Args:
        widths: Channels of the three convolutions.
        num_classes: Outputs.
        in_channels: Channels of the images.
    """

    def __init__(self, widths: tuple[int, int, int], *, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        first, second, third = widths
        self.features = nn.Sequential(
            *_block(in_channels, first),
            nn.MaxPool2d(2),
            *_block(first, second),
            nn.MaxPool2d(2),
            *_block(second, third),
        )
        self.classifier = nn.Linear(third, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) → logits (B, num_classes)."""
        return self.classifier(self.features(x).mean(dim=(2, 3)))


def small_cnn(*, num_classes: int = 10, in_channels: int = 1, width: float = 1.0) -> Cnn:
    """Three convolutions of 32, 64 and 64 channels, 0.06 M parameters."""
    widths = (scaled(32, width), scaled(64, width), scaled(64, width))
    return Cnn(widths, num_classes=num_classes, in_channels=in_channels)


def wide_cnn(*, num_classes: int = 10, in_channels: int = 1, width: float = 1.0) -> Cnn:
    """Three convolutions of 64, 128 and 128 channels, 0.22 M parameters."""
    widths = (scaled(64, width), scaled(128, width), scaled(128, width))
    return Cnn(widths, num_classes=num_classes, in_channels=in_channels)


class SeparableCnn(nn.Module):
    """A convolution, then pairs of a depthwise 3×3 and a 1×1 one, as in MobileNets; BatchNorm and ReLU.

    Args:
        widths: Channels of the first convolution and of each pair; every second pair halves the image.
        num_classes: Outputs.
        in_channels: Channels of the images.
    """

    def __init__(self, widths: tuple[int, ...], *, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        layers = [*_block(in_channels, widths[0])]
        for place, (before, after) in enumerate(pairwise(widths)):
            layers += _block(before, before, stride=1 + place % 2, groups=before)
            layers += _block(before, after, kernel=1)
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) → logits (B, num_classes)."""
        return self.classifier(self.features(x).mean(dim=(2, 3)))


def separable_cnn(*, num_classes: int = 10, in_channels: int = 1, width: float = 1.0) -> SeparableCnn:
    """Depthwise-separable convolutions of 32 to 128 channels, 0.05 M parameters."""
    widths = tuple(scaled(channels, width) for channels in (32, 64, 128, 128, 128))
    return SeparableCnn(widths, num_classes=num_classes, in_channels=in_channels)


def _block(
    in_channels: int, width: int, *, kernel: int = 3, stride: int = 1, groups: int = 1
) -> tuple[nn.Module, nn.Module, nn.Module]:
    conv = nn.Conv2d(
        in_channels, width, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False
    )
    return conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)
