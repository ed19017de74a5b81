"""Scopes: among which weights the ranking is made."""

from __future__ import annotations

import abc
from dataclasses import dataclass

from torch import Tensor

from secateur.allocate.select import cut_at, find_threshold
from secateur.counts import check_fraction, n_floor, n_prune
from secateur.errors import InvalidArgument
from secateur.naming import Named


class AbstractScope(abc.ABC):
    """A rule that spreads a sparsity over tensors."""

    @abc.abstractmethod
    def __call__(self, scores: Named, sparsity: float) -> dict[str, Tensor]:
        """Boolean masks, True = keep."""


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
            masks = cut_at(free, find_threshold(free, to_prune - spent))
            starved = [
                name for name, mask in masks.items() if floors[name] and int(mask.sum()) < floors[name]
            ]
            if not starved:
                return {name: {**masks, **protected}[name] for name in scores}
            for name in starved:
                alone = {name: scores[name]}
                protected |= cut_at(alone, find_threshold(alone, sizes[name] - floors[name]))


@dataclass(frozen=True)
class Layerwise(AbstractScope):
    """Each tensor in a ranking of its own, all at the same sparsity.

    Only a tensor so small that its share rounds to all of it can be emptied.
    """

    def __call__(self, scores: Named, sparsity: float) -> dict[str, Tensor]:
        """Masks with exactly ``n_prune(numel, sparsity)`` zeros in every tensor.

        Raises:
            ScoreError: if a score is NaN or infinite.
        """
        masks: dict[str, Tensor] = {}
        for name, tensor in scores.items():
            alone = {name: tensor}
            masks |= cut_at(alone, find_threshold(alone, n_prune(tensor.numel(), sparsity)))
        return masks
