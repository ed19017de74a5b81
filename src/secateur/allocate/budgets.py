"""Budgets from shapes and depth: the densities that papers prune to, whatever the scores say."""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm, prod

from secateur.allocate.apportion import Claim, apportion
from secateur.allocate.scopes import AbstractBudgets, Shapes
from secateur.counts import check_fraction, n_floor, n_keep
from secateur.errors import InvalidArgument


@dataclass(frozen=True)
class ERK(AbstractBudgets):
    """Erdős–Rényi-Kernel densities: small tensors keep a larger fraction.

    ``density ∝ (n_in + n_out + k_h + k_w) / (n_in · n_out · k_h · k_w)``, so the number kept is
    proportional to the sum of the sides; a tensor that this would overfill stays dense and the factor
    is found anew for the others (RigL, https://arxiv.org/abs/1911.11134 sec. 3). For `Linear` it is
    the Erdős–Rényi density of SET. Sides are those of the tensor as stored, so a grouped convolution
    counts its inputs per group.
    """

    def n_keep(self, shapes: Shapes, sparsity: float) -> dict[str, int]:
        """Number of weights that each tensor keeps; they add up to ``n_keep(n, sparsity)`` exactly."""
        claims = {name: Claim(sum(shape) or 1, 0, prod(shape)) for name, shape in shapes.items()}
        return apportion(claims, _total(shapes, sparsity))


@dataclass(frozen=True)
class UniformPlus(AbstractBudgets):
    """One density for all but two: the first tensor stays dense, the last keeps at least a fifth.

    The "uniform+" baseline: uniform pruning with the exceptions of Gale et al. 2019
    (https://arxiv.org/abs/1902.09574). First and last are meant in the order of the network.

    Attributes:
        last_density: Smallest fraction of the last tensor that stays, in [0, 1].
    """

    last_density: float = 0.2

    def __post_init__(self) -> None:
        check_fraction("last_density", self.last_density)

    def n_keep(self, shapes: Shapes, sparsity: float) -> dict[str, int]:
        """Number of weights that each tensor keeps; they add up to ``n_keep(n, sparsity)`` exactly.

        Raises:
            InvalidArgument: if the first and the last tensor alone keep more than may stay.
        """
        total, sizes = _total(shapes, sparsity), {name: prod(shape) for name, shape in shapes.items()}
        first, last = next(iter(sizes)), list(sizes)[-1]
        least = {last: n_floor(sizes[last], self.last_density), first: sizes[first]}
        if sum(least.values()) > total:
            raise InvalidArgument(
                f"UniformPlus keeps at least {sum(least.values())} weights in {first} (all) and {last} "
                f"(last_density={self.last_density:g}), sparsity={sparsity:g} leaves {total}. "
                "Lower one of them."
            )
        return apportion({name: Claim(n, least.get(name, 0), n) for name, n in sizes.items()}, total)


@dataclass(frozen=True)
class SmartRatios(AbstractBudgets):
    """Densities that fall with depth, the "smart ratios" of random tickets.

    The l-th of L tensors has ``density ∝ (L−l+1)² + (L−l+1)``, and `Linear` weights keep
    `linear_density` (Su et al. 2020, https://arxiv.org/abs/2009.11094). With the random score
    these are the paper's random tickets, with magnitude its hybrid tickets.

    Deviations: a tensor that would be overfilled stays dense and the excess goes to all others in
    proportion, where the authors' code fills the next ones in order; and where the convolutions stay
    dense and there is still more to keep, `Linear` weights keep more than `linear_density`.

    Attributes:
        linear_density: Fraction of every `Linear` weight that stays, in [0, 1].
        over_square: Also divide the density by l², as the paper does for VGG.
    """

    linear_density: float = 0.3
    over_square: bool = False

    def __post_init__(self) -> None:
        check_fraction("linear_density", self.linear_density)

    def n_keep(self, shapes: Shapes, sparsity: float) -> dict[str, int]:
        """Number of weights that each tensor keeps; they add up to ``n_keep(n, sparsity)`` exactly.

        Raises:
            InvalidArgument: if `Linear` weights alone keep more than may stay.
        """
        total, n_tensors = _total(shapes, sparsity), len(shapes)
        common = lcm(*(depth * depth for depth in range(1, n_tensors + 1))) if self.over_square else 1
        convs: dict[str, Claim] = {}
        linears: dict[str, Claim] = {}
        for depth, (name, shape) in enumerate(shapes.items(), start=1):
            n, left = prod(shape), n_tensors - depth + 1
            if len(shape) == 2:
                linears[name] = Claim(n, n_floor(n, self.linear_density), n)
            else:
                ratio = (left * left + left) * common
                convs[name] = Claim(n * (ratio // (depth * depth) if self.over_square else ratio), 0, n)
        least = sum(claim.low for claim in linears.values())
        if least > total:
            raise InvalidArgument(
                f"SmartRatios keeps {least} weights in {', '.join(linears)} "
                f"(linear_density={self.linear_density:g}), sparsity={sparsity:g} leaves {total}. "
                "Lower one of them."
            )
        kept = apportion(convs, min(total - least, sum(claim.high for claim in convs.values())))
        kept |= apportion(linears, total - sum(kept.values()))
        return {name: kept[name] for name in shapes}


def _total(shapes: Shapes, sparsity: float) -> int:
    return n_keep(sum(prod(shape) for shape in shapes.values()), sparsity)
