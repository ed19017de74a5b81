"""VGG-16 with BatchNorm for small images: Simonyan and Zisserman 2015, https://arxiv.org/abs/1409.1556."""

from __future__ import annotations

from torch import Tensor, nn

from secateur.models.widths import scaled

_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels and number of convolutions of each stage; configuration D of the paper."""


class Vgg(nn.Module):
    """VGG-16 with BatchNorm, global average pooling and one linear classifier.

    The three fully connected layers of the paper are one here, as is usual for 32×32 images.

    Args:
        num_classes: Outputs.
        in_channels: Channels of the images.
        width: What the numbers of channels are multiplied by.
    """

    def __init__(self, *, num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for full, n in _STAGES:
            out_channels = scaled(full, width)
            for _ in range(n):
                conv = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
                nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
                layers += [conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]
                channels = out_channels
            # ceil_mode lets a 1×1 map through, so images smaller than 32×32 work
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) → logits (B, num_classes)."""
        return self.classifier(self.features(x).mean(dim=(2, 3)))


def vgg16_bn(*, num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> Vgg:
    """VGG-16 with BatchNorm and one linear classifier, 14.7 M parameters."""
    return Vgg(num_classes=num_classes, in_channels=in_channels, width=width)
