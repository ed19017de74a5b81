"""Recipes and students that the tests of the training loop share."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from helpers import make_cnn
from secateur.allocate import allocate
from secateur.masks import Masks, apply_masks
from secateur.recovery import Recovery
from secateur.scores import Magnitude, score

PLAIN = Recovery(epochs=3, kd_weight=0, precision="fp32")
GUIDED = replace(PLAIN, kd_weight=0.7)


def pruned(model: nn.Module, sparsity: float = 0.6) -> Masks:
    masks = allocate(score(model, None, Magnitude()), sparsity=sparsity)
    apply_masks(model, masks)
    return masks


def student_cnn() -> nn.Sequential:
    """Without dropout, so that the loader alone draws random numbers."""
    return make_cnn(dropout=0)
