"""Scores that look at no data: magnitude, magnitude made comparable between layers, and chance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.naming import Named
from secateur.scores.base import AbstractCriterion, ScoreInputs


@dataclass(frozen=True)
class Magnitude(AbstractCriterion):
    """``S_w = |w|``, the baseline that every other score has to beat. No data, no teacher."""

    def __call__(self, inputs: ScoreInputs) -> Named:
        """The absolute weights, in at least float32."""
        return {
            name: weight.abs().to(torch.promote_types(weight.dtype, torch.float32))
            for name, weight in inputs.weights.items()
        }


@dataclass(frozen=True)
class Lamp(AbstractCriterion):
    """``S_w = w² / Σ v²`` over the weights v of the same tensor with |v| ≥ |w|. No data, no teacher.

    Layer-adaptive magnitude (https://arxiv.org/abs/2010.07611): the share of the squared
    magnitude that w has among what is left of its layer when weights go in order of magnitude. The
    largest weight of each tensor scores 1, so a global cut empties a layer only if every weight that it
    keeps is the largest of its own. Equal magnitudes are put in order by their flat index, the first
    one to go first; a tensor of zeros scores 0.
    """

    def __call__(self, inputs: ScoreInputs) -> Named:
        """Scores in [0, 1]."""
        scores: dict[str, Tensor] = {}
        for name, weight in inputs.weights.items():
            # In float64: the running sum of millions of squares, and the squares of small weights.
            ascending, order = weight.flatten().double().square().sort(stable=True)
            left = ascending.flip(0).cumsum(0).flip(0)
            shares = torch.where(left == 0, 0.0, ascending / left)  # NaN stays, to be refused
            dtype = torch.promote_types(weight.dtype, torch.float32)
            scores[name] = torch.empty_like(shares).scatter_(0, order, shares).view(weight.shape).to(dtype)
        return scores


@dataclass(frozen=True)
class Random(AbstractCriterion):
    """``S_w ~ U(0, 1)``: what a score is worth if it knows nothing.

    Attributes:
        seed: Same seed, same scores, on any device.
    """

    seed: int = 0

    def __call__(self, inputs: ScoreInputs) -> Named:
        """Uniform numbers, drawn on the CPU so that they do not depend on the device."""
        generator = torch.Generator().manual_seed(self.seed)
        return {
            name: torch.rand(weight.shape, generator=generator, dtype=torch.float32).to(weight.device)
            for name, weight in inputs.targets.items()
        }
