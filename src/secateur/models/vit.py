"""A small transformer for images: no BatchNorm, nearly all weights in linear layers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from secateur.models.widths import scaled

_HEAD = 16
"""Channels of an attention head."""


class Block(nn.Module):
    """Attention between tokens, then two linear layers for each; both on normalised inputs, added to them.

    Args:
        dim: Channels of a token, a multiple of 16.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.heads = dim // _HEAD
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.grow, self.shrink = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, N, dim) → the same shape."""
        batch, tokens, dim = x.shape
        heads = self.qkv(self.norm1(x)).view(batch, tokens, 3, self.heads, _HEAD).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*heads.unbind(0))
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, dim))
        return x + self.shrink(F.gelu(self.grow(self.norm2(x))))


class ViT(nn.Module):
    """Patches of 2×2 pixels as tokens, blocks of attention, the mean of the tokens, one linear classifier.

    Where a token lies it learns from its neighbours, by a depthwise convolution (conditional positional
    encoding, https://arxiv.org/abs/2102.10882), so images may have any size; of an odd one the last row or
    column is left out.

    Args:
        dim: Channels of a token, a multiple of 16.
        depth: Number of blocks.
        num_classes: Outputs.
        in_channels: Channels of the images.
    """

    def __init__(self, dim: int, depth: int, *, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        self.patches = nn.Conv2d(in_channels, dim, 2, stride=2)
        self.places = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.blocks = nn.Sequential(*(Block(dim) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.classifier = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) → logits (B, num_classes)."""
        x = self.patches(x)
        tokens = (x + self.places(x)).flatten(2).transpose(1, 2)
        return self.classifier(self.norm(self.blocks(tokens)).mean(dim=1))


def small_vit(*, num_classes: int = 10, in_channels: int = 1, width: float = 1.0) -> ViT:
    """Three blocks of 64 channels, 0.15 M parameters."""
    dim = _HEAD * max(1, scaled(64, width) // _HEAD)
    return ViT(dim, 3, num_classes=num_classes, in_channels=in_channels)
