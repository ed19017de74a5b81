"""The quadratic model of a loss with curvature in blocks on the diagonal: for nets with many weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.errors import ScoreError
from secateur.naming import Named
from secateur.scores.base import Solution

_NUMBERS = 1 << 24
"""In the blocks that are inverted at a time, in double precision: 128 MB."""


def add_outer(blocks: Tensor, rows: Tensor) -> None:
    """``F_b += G_bᵀG_b`` for each block b of consecutive columns.

    Args:
        blocks: F, shape (blocks, size, size), written to.
        rows: Rows of G, shape (R, columns); the last block may lack columns.
    """
    parts = _in_blocks(rows, blocks).transpose(0, 1)
    blocks.baddbmm_(parts.mT, parts)


class BlockQuadratic:
    """``ΔL(δ) = gᵀδ + ½δᵀFδ + ½λ‖δ‖²`` around given weights, as `Quadratic`, but with F block-diagonal.

    Args:
        blocks: F by name, shape (blocks, size, size), over consecutive weights; overwritten.
        slope: g by name, shaped like the weights.
        weights: Where the model is made. What is exactly 0 there is taken as gone: it never moves.

    Attributes:
        curvature: Mean over the weights that are there of the diagonal of F: the unit of damping.

    Raises:
        ScoreError: if F is not finite, or all 0.
    """

    def __init__(self, blocks: dict[str, Tensor], slope: Named, weights: Named) -> None:
        self.weights = {name: w.detach().float() for name, w in weights.items()}
        self.slope = {name: slope[name].float() * (w != 0) for name, w in self.weights.items()}
        self.blocks = blocks
        trace = 0.0
        for name, block in blocks.items():
            there = _in_blocks((self.weights[name] != 0).reshape(-1), block)
            block.mul_(there[:, :, None]).mul_(there[:, None, :])
            trace += float(block.diagonal(dim1=1, dim2=2).sum(dtype=torch.float64))
        if not trace < float("inf"):
            raise ScoreError("the gradients of the teacher's loss are not finite. Check weights and inputs.")
        if trace == 0:
            raise ScoreError(
                "the teacher's loss has no curvature in any weight: all its gradients are 0. "
                "Check that the outputs depend on the weights, or raise temperature."
            )
        self.curvature = trace / sum(int((w != 0).sum()) for w in self.weights.values())

    def saliency(self, damping: float) -> dict[str, Tensor]:
        """``w*²/2 / [H⁻¹]_ww``, ``H = λI + F`` and ``w* = w − H⁻¹g`` the minimum; 0 where w is 0."""

        def of_blocks(factor: Tensor, w: Tensor, slope: Tensor) -> Tensor:
            inverse = torch.cholesky_inverse(factor)
            best = w - (inverse @ slope[:, :, None])[:, :, 0]
            return best.square() / (2 * inverse.diagonal(dim1=1, dim2=2))

        return {
            name: self.each(name, damping, of_blocks, w, self.slope[name]) * (w != 0)
            for name, w in self.weights.items()
        }

    def support(self, masks: Named) -> BlockSupport:
        """The model with only the weights free that `masks` keep (True = keep)."""
        kept = {name: masks[name] & (w != 0) for name, w in self.weights.items()}
        removed = {name: w.masked_fill(masks[name], 0.0).neg_() for name, w in self.weights.items()}
        force = {n: (self.slope[n] + self.times(n, removed[n])) * kept[n] for n in self.weights}
        return BlockSupport(self, masks, kept, removed, force)

    def times(self, name: str, vector: Tensor) -> Tensor:
        """``F·v`` of one tensor."""
        block = self.blocks[name]
        product = block @ _in_blocks(vector.reshape(-1), block)[:, :, None]
        return product.reshape(-1)[: vector.numel()].view(vector.shape)

    def each(
        self,
        name: str,
        damping: float,
        apply: Callable[..., Tensor],
        *vectors: Tensor,
        kept: Tensor | None = None,
    ) -> Tensor:
        """`apply` to the factor of each block of H, on `kept` alone, and its part of `vectors`."""
        block = self.blocks[name]
        parts = [_in_blocks(vector.reshape(-1), block) for vector in vectors]
        free = None if kept is None else _in_blocks(kept.reshape(-1), block)
        most = max(1, _NUMBERS // block.shape[1] ** 2)
        found: list[Tensor] = []
        for start in range(0, len(block), most):
            place = slice(start, start + most)
            h = block[place].double()
            if free is not None:
                h = h * free[place, :, None] * free[place, None, :]
            h.diagonal(dim1=1, dim2=2).add_(damping)
            found.append(apply(torch.linalg.cholesky(h), *(part[place].double() for part in parts)).float())
        weight = self.weights[name]
        return torch.cat(found).reshape(-1)[: weight.numel()].view(weight.shape)


@dataclass(frozen=True)
class BlockSupport:
    """A `BlockQuadratic` on the weights that masks keep."""

    model: BlockQuadratic
    masks: Named
    kept: dict[str, Tensor]
    removed: dict[str, Tensor]
    force: dict[str, Tensor]

    def solve(self, damping: float) -> Solution:
        """The kept weights where the model is least: ``H_kk δ_k = −(g_k + F_kp δ_p)``, ``δ_p = −w_p``.

        Args:
            damping: λ > 0.
        """
        model = self.model
        weights: dict[str, Tensor] = {}
        change = 0.0
        for name, kept in self.kept.items():
            back = model.each(name, damping, _solved, self.force[name], kept=kept)
            step = self.removed[name] - back * kept
            pull = model.slope[name] + 0.5 * model.times(name, step)
            change += float((step * pull).sum(dtype=torch.float64))
            weights[name] = (model.weights[name] + step).masked_fill_(~self.masks[name], 0.0)
        return Solution(weights, change)


def _solved(factor: Tensor, right: Tensor) -> Tensor:
    return torch.cholesky_solve(right[:, :, None], factor)[:, :, 0]


def _in_blocks(x: Tensor, blocks: Tensor) -> Tensor:
    """The last axis of `x` as (blocks, size), zeros where the last block has no weights."""
    n, size = blocks.shape[:2]
    return F.pad(x, (0, n * size - x.shape[-1])).unflatten(-1, (n, size))
