"""Entropy-guided pruning: layers whose neurons are nearly always in one state lose the most."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from secateur.allocate.apportion import Claim, apportion
from secateur.allocate.select import without_lowest
from secateur.counts import check_fraction, n_floor, n_prune
from secateur.errors import EmptiedLayerWarning, InvalidArgument
from secateur.masks import Masks
from secateur.strategies.activations import layer_entropies
from secateur.strategies.base import AbstractStrategy, Problem, Round
from secateur.strategies.parts import split_evenly
from secateur.targets import select_targets


@dataclass(frozen=True)
class EntropyGuided(AbstractStrategy):
    """Entropy-guided pruning, EGP (https://arxiv.org/abs/2308.06619); arXiv 2511.16653 writes EPG.

    Every round removes a fraction of what is left and trains with a full learning-rate schedule. A layer's
    relevance is its entropy (see `layer_entropies`) times the mean magnitude of its weights; how much of a
    round's removal falls to it follows from a softmax of the inverse relevances (see `layer_budgets`), and
    there its smallest weights go. The method is made to empty layers, which networks without shortcuts do
    not survive.

    What the paper leaves open: layers that no rectifier follows, such as the classifier, and layers without
    entropy. As in the authors' code they lose nothing, unless the others have no more to give; then they
    share the rest in proportion to their sizes.

    Attributes:
        fraction: Part of the weights left that a round removes, in (0, 1); the last round removes less.
        min_density: Smallest fraction of each layer that stays, in [0, 1]; the paper has no such guard.

    Raises:
        InvalidArgument: if a number is out of range.
    """

    fraction: float = 0.5
    min_density: float = 0.0

    def __post_init__(self) -> None:
        check_fraction("fraction", self.fraction, below_one=True)
        check_fraction("min_density", self.min_density)
        if self.fraction == 0:
            raise InvalidArgument("fraction must be above 0, got 0.")

    def sparsities(self, sparsity: float) -> list[float]:
        """Sparsity after each round: ``1 − (1 − fraction)^i`` for round i, and in the end `sparsity`."""
        steps: list[float] = []
        while (step := 1 - (1 - self.fraction) ** (len(steps) + 1)) < sparsity:
            steps.append(step)
        return [*steps, sparsity]

    def least_parts(self, sparsity: float) -> int:
        """One a round."""
        return len(self.sparsities(sparsity))

    def rounds_for(self, problem: Problem) -> Iterator[Round]:
        """A cut and a share of the budget each.

        Raises:
            InvalidArgument: if `min_density` keeps more than may stay.
        """
        asked = self.sparsities(problem.sparsity)
        masks: Masks | None = None
        for sparsity, parts in zip(asked, split_evenly(problem.parts, len(asked)), strict=True):
            masks = self._cut(problem, sparsity, masks)
            yield Round(masks, parts, schedule=parts)

    def _cut(self, problem: Problem, sparsity: float, gone: Masks | None) -> Masks:
        targets = select_targets(problem.student, include=problem.include, exclude=problem.exclude)
        sizes = {name: weight.numel() for name, weight in targets.items()}
        left = {name: int(gone[name].sum()) if gone else n for name, n in sizes.items()}
        room = {name: max(n - n_floor(sizes[name], self.min_density), 0) for name, n in left.items()}
        n_remove = n_prune(sum(sizes.values()), sparsity) - sum(sizes.values()) + sum(left.values())
        if n_remove > sum(room.values()):
            raise InvalidArgument(
                f"min_density={self.min_density:g} leaves {sum(room.values())} weights to remove, "
                f"sparsity={sparsity:g} removes {n_remove} more. Lower one of them."
            )
        relevance: dict[str, float] = {}
        for name, entropy in layer_entropies(problem.student, problem.calibration, targets).items():
            magnitudes = targets[name].detach().abs().double()
            n_weights = int((magnitudes > 0).sum())
            if n_weights and entropy > 0:
                relevance[name] = entropy * float(magnitudes.sum()) / n_weights
        guided = min(n_remove, sum(room[name] for name in relevance))
        counts = layer_budgets(relevance, room, guided)
        others = {name: Claim(n, 0, n) for name, n in room.items() if name not in relevance and n}
        counts |= apportion(others, n_remove - guided)
        kept: dict[str, torch.Tensor] = {}
        for name, weight in targets.items():
            scores = weight.detach().abs().float()
            scores = scores if gone is None else scores.masked_fill(~gone[name], -1.0)
            kept |= without_lowest({name: scores}, sizes[name] - left[name] + counts.get(name, 0))
        if sparsity == problem.sparsity:
            _warn_of_emptied(Masks(kept))
        return Masks(kept)


def layer_budgets(relevance: Mapping[str, float], room: Mapping[str, int], n: int) -> dict[str, int]:
    """How many weights each layer loses: `n` in all, shared out by a softmax of inverse relevances.

    The share of layer l is ``softmax_l(Σ_k R_k / R_l)``. A layer whose share is more than it has to give
    gives all that; what is over is shared out anew among the others, by the same rule over them alone.

    Args:
        relevance: R_l > 0 by layer.
        room: The most that each layer can lose.
        n: At most the sum of that.
    """
    counts: dict[str, int] = {}
    while True:
        shares = _softmax_of_inverse({name: r for name, r in relevance.items() if name not in counts})
        rest = n - sum(counts.values())
        full = [name for name, share in shares.items() if rest * share > room[name]]
        if not full:
            break
        counts |= {name: room[name] for name in full}
    # A share below a millionth gets nothing; whole numbers are enough for `apportion`.
    claims = {name: Claim(max(round(share * 2**20), 1), 0, room[name]) for name, share in shares.items()}
    counts |= apportion(claims, rest)
    return counts


def _softmax_of_inverse(relevance: Mapping[str, float]) -> dict[str, float]:
    total = sum(relevance.values())
    exponents = {name: total / r for name, r in relevance.items()}
    top = max(exponents.values(), default=0.0)
    powers = {name: math.exp(exponent - top) for name, exponent in exponents.items()}
    return {name: power / sum(powers.values()) for name, power in powers.items()}


def _warn_of_emptied(masks: Masks) -> None:
    emptied = [name for name, mask in masks.items() if not bool(mask.any())]
    if emptied:
        warnings.warn(
            f"EntropyGuided leaves no weight in {', '.join(emptied)}. It is made to remove layers; "
            "guard with min_density if the network cannot do without.",
            EmptiedLayerWarning,
            stacklevel=3,
        )
