"""Scopes: among which weights the ranking is made."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

from torch import Tensor

from secateur.allocate.select import without_lowest
from secateur.counts import check_fraction, n_floor, n_keep, n_prune
from secateur.errors import InvalidArgument
from secateur.naming import Named

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
"""Shapes of weights by parameter name, in the order of the network."""


class AbstractScope(abc.ABC):
    """A rule that spreads a sparsity over tensors."""

    @abc.abstractmethod
    def __call__(self, scores: Named, sparsity: float) -> dict[str, Tensor]:
        """Boolean masks, True = keep."""


class AbstractBudgets(AbstractScope):
    """A scope that says from the shapes alone how many weights each tensor keeps.

    Within a tensor the highest scores stay.
    """

    @abc.abstractmethod
    def n_keep(self, shapes: Shapes, sparsity: float) -> dict[str, int]:
        """Number of weights that each tensor keeps."""

    def __call__(self, scores: Named, sparsity: float) -> dict[str, Tensor]:
        """Masks with exactly `n_keep` ones in every tensor.

        Raises:
            InvalidArgument: if the budgets cannot meet the sparsity.
            ScoreError: if a score is NaN or infinite.
        """
        kept = self.n_keep({name: tuple(tensor.shape) for name, tensor in scores.items()}, sparsity)
        masks: dict[str, Tensor] = {}
        for name, tensor in scores.items():
            masks |= without_lowest({name: tensor}, tensor.numel() - kept[name])
        return masks


@dataclass(frozen=True)
class Global(AbstractScope):
    """All weights in one ranking, so a layer loses as much as its scores say.

    Attributes:
        min_density: Smallest fraction of each tensor that stays, in [0, 1]: a guard against layers
            that a global ranking empties. The count over all tensors stays exact; what a protected
            tensor keeps, the others lose.
    """

    min_density: float = 0.0

    def __post_init__(self) -> None:
        check_fraction("min_density", self.min_density)

    def __call__(self, scores: Named, sparsity: float) -> dict[str, Tensor]:
        """Masks with exactly ``n_prune(n, sparsity)`` zeros over all tensors together.

        Raises:
            InvalidArgument: if the floors add up to more than what may stay.
            ScoreError: if a score is NaN or infinite.
        """
        sizes = {name: tensor.numel() for name, tensor in scores.items()}
        floors = {name: n_floor(n, self.min_density) for name, n in sizes.items()}
        to_prune = n_prune(sum(sizes.values()), sparsity)
        if sum(floors.values()) > sum(sizes.values()) - to_prune:
            raise InvalidArgument(
                f"min_density={self.min_density:g} keeps at least {sum(floors.values())} weights, "
                f"sparsity={sparsity:g} leaves {sum(sizes.values()) - to_prune}. Lower one of them."
            )
        protected: dict[str, Tensor] = {}
        # Protecting a tensor makes the others lose more, which can starve another one: repeat until none is.
        while True:
            free = {name: scores[name] for name in scores if name not in protected}
            spent = sum(sizes[name] - floors[name] for name in protected)
            masks = without_lowest(free, to_prune - spent)
            starved = [
                name for name, mask in masks.items() if floors[name] and int(mask.sum()) < floors[name]
            ]
            if not starved:
                return {name: {**masks, **protected}[name] for name in scores}
            for name in starved:
                protected |= without_lowest({name: scores[name]}, sizes[name] - floors[name])


@dataclass(frozen=True)
class Layerwise(AbstractBudgets):
    """Each tensor in a ranking of its own, all at the same sparsity.

    Only a tensor so small that its share rounds to all of it can be emptied.
    """

    def n_keep(self, shapes: Shapes, sparsity: float) -> dict[str, int]:
        """``n_keep(numel, sparsity)`` of every tensor: the total may be off by half a weight a tensor."""
        return {name: n_keep(prod(shape), sparsity) for name, shape in shapes.items()}
