"""Scores that look at no data: magnitude, and chance."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from secateur.naming import Named
from secateur.scores.base import AbstractCriterion, ScoreInputs


@dataclass(frozen=True)
class Magnitude(AbstractCriterion):
    """``S_w = |w|``, the baseline that every other score has to beat. No data, no teacher."""

    def __call__(self, inputs: ScoreInputs) -> Named:
        """The absolute weights, in at least float32."""
        return {
            name: weight.detach().abs().to(torch.promote_types(weight.dtype, torch.float32))
            for name, weight in inputs.targets.items()
        }


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
            name: torch.rand(weight.shape, generator=generator).to(weight.device)
            for name, weight in inputs.targets.items()
        }
