"""Dynamic sparse training: the number of weights stays, but which ones they are changes while training."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from secateur.allocate import ERK, AbstractScope
from secateur.counts import check_fraction, check_whole
from secateur.errors import InvalidArgument
from secateur.masks import Masks
from secateur.naming import Named
from secateur.schedules import cosine_decay
from secateur.scores import AbstractCriterion, Magnitude, ScoreInputs, score
from secateur.scores.gradient import mean_gradient
from secateur.strategies.base import AbstractStrategy, Problem, Round
from secateur.strategies.cutting import cut_further
from secateur.strategies.parts import place_in


@dataclass(frozen=True)
class AbstractDynamic(AbstractStrategy):
    """Cut once, then swap weights for others in the same tensor at every update.

    An update drops the smallest weights of each tensor and grows as many elsewhere in it; what is grown
    begins at 0, with no momentum. As in the authors' code a dropped weight may be grown again at once, and
    then keeps its value. The fraction that is dropped falls along half a cosine to 0 at `end`.

    Attributes:
        criterion: What the first cut scores by.
        scope: How the first cut spreads the sparsity; each tensor keeps its number of weights from then on.
        drop: Fraction of each tensor's kept weights dropped if an update came at the very start, in [0, 1].
        updates: Number of updates, ≥ 1, evenly spaced before `end`.
        end: Fraction of the budget after which nothing changes any more, in (0, 1].

    Raises:
        InvalidArgument: if a number is out of range.
    """

    criterion: AbstractCriterion = field(default_factory=Magnitude)
    scope: AbstractScope = field(default_factory=ERK)
    drop: float = 0.3
    updates: int = 20
    end: float = 0.75

    def __post_init__(self) -> None:
        check_fraction("drop", self.drop)
        check_fraction("end", self.end)
        if self.end == 0:
            raise InvalidArgument("end must be above 0, got 0.")
        check_whole("updates", self.updates, least=1)

    @abc.abstractmethod
    def growth(self, problem: Problem, masks: Masks, update: int) -> Named:
        """A number for each weight under `masks`; at update number `update`, the highest are grown."""

    def least_parts(self, sparsity: float) -> int:
        """So many that no two updates fall into one part."""
        return math.ceil((self.updates + 1) / self.end)

    def rounds_for(self, problem: Problem) -> Iterator[Round]:
        """Training up to each update, and from the last one to the end."""
        masks = cut_further(problem, self.criterion, self.scope, sparsity=problem.sparsity, gone=None)
        places = [
            place_in(problem.parts, self.end * number / (self.updates + 1))
            for number in range(1, self.updates + 1)
        ]
        yield Round(masks, places[0], schedule=problem.parts)
        for update, (place, until) in enumerate(zip(places, [*places[1:], problem.parts], strict=True)):
            fraction = self.drop * cosine_decay(place / (problem.parts * self.end))
            weights = {name: weight.detach() for name, weight in masks.match(problem.student).items()}
            masks = swap(masks, weights, self.growth(problem, masks, update), fraction=fraction)
            yield Round(masks, until - place)


@dataclass(frozen=True)
class RigL(AbstractDynamic):
    """Grows the weights with the largest gradient (https://arxiv.org/abs/1911.11134).

    That is the gradient of the task loss at every place, pruned ones too, over the calibration batches.
    """

    def growth(self, problem: Problem, masks: Masks, update: int) -> Named:
        """|∂L/∂w| of the loss averaged over all calibration samples."""
        return score(
            problem.student,
            problem.calibration,
            _DenseGradient(),
            task_loss=problem.task_loss,
            include=problem.include,
            exclude=problem.exclude,
        )


@dataclass(frozen=True)
class SET(AbstractDynamic):
    """Grows weights at random: sparse evolutionary training (https://arxiv.org/abs/1707.04780)."""

    def growth(self, problem: Problem, masks: Masks, update: int) -> Named:
        """Uniform numbers that follow from the seed and the number of the update."""
        drawn = np.random.SeedSequence([problem.seed, update]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(drawn >> np.uint64(1)))
        return {
            name: torch.rand(mask.shape, generator=generator).to(mask.device) for name, mask in masks.items()
        }


@dataclass(frozen=True)
class _DenseGradient(AbstractCriterion):
    """``|∂L/∂w|`` of the task loss, averaged over samples before the absolute value is taken."""

    def __call__(self, inputs: ScoreInputs) -> Named:
        """Scores from labelled batches."""
        return {name: gradient.abs_() for name, gradient in mean_gradient(self, inputs).items()}


def swap(masks: Masks, weights: Named, growth: Named, *, fraction: float) -> Masks:
    """Drop the smallest weights of each tensor and grow as many, so that every count stays.

    Args:
        masks: What stays now.
        weights: Values by name.
        growth: Where it is highest among all that is not kept, weights are grown.
        fraction: Part of each tensor's kept weights to drop, in [0, 1]; the number is rounded down.
    """
    swapped: dict[str, Tensor] = {}
    for name, mask in masks.items():
        flat = mask.flatten()
        active = flat.nonzero().squeeze(1)
        n_drop = int(len(active) * fraction)
        order = weights[name].flatten()[active].abs().argsort(stable=True)
        kept = torch.zeros_like(flat)
        kept[active[order[n_drop:]]] = True
        free = (~kept).nonzero().squeeze(1)
        order = growth[name].flatten()[free].argsort(stable=True, descending=True)
        kept[free[order[:n_drop]]] = True
        swapped[name] = kept.view(mask.shape)
    return Masks(swapped)
