"""Controls: another criterion's scores spoilt on purpose, to see what of a result is due to them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from secateur.naming import Named
from secateur.scores.base import AbstractCriterion, ScoreInputs


@dataclass(frozen=True)
class Shuffled(AbstractCriterion):
    """Another criterion's scores, permuted at random within each tensor.

    In one cut every layer keeps exactly the density that the criterion gives it, and which of its weights
    stay is left to chance: if that does as well, only the densities mattered
    (https://arxiv.org/abs/2009.08576, https://arxiv.org/abs/2009.11094).

    Attributes:
        criterion: Whose scores are shuffled.
        seed: Same seed, same permutations, on any device.
    """

    criterion: AbstractCriterion
    seed: int = 0

    def __call__(self, inputs: ScoreInputs) -> Named:
        """The same numbers in each tensor, elsewhere. Drawn on the CPU, whatever the device."""
        scores = self.criterion(inputs)
        generator = torch.Generator().manual_seed(self.seed)
        return {
            name: score.flatten()[torch.randperm(score.numel(), generator=generator).to(score.device)].view(
                score.shape
            )
            for name, score in scores.items()
        }


@dataclass(frozen=True)
class Inverted(AbstractCriterion):
    """``S_w = −S'_w`` of another criterion: keeps what that one would remove first.

    If the cut is not worse than the criterion's own, its ranking says nothing
    (https://arxiv.org/abs/2009.08576). Scores are negative where the criterion's are positive.

    Attributes:
        criterion: Whose scores are turned round.
    """

    criterion: AbstractCriterion

    def __call__(self, inputs: ScoreInputs) -> Named:
        """The scores with the other sign."""
        return {name: -score for name, score in self.criterion(inputs).items()}
