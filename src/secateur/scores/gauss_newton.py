"""The quadratic model of a loss that low-rank curvature gives: what a cut costs, and what makes up for it.

With rows G (R × weights), ``H = λI + GᵀG`` is never formed: its inverse is reached through the R × R
matrix ``GGᵀ`` (Woodbury), so time is R²·weights and memory is that of the rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.errors import ScoreError
from secateur.naming import Named
from secateur.scores.base import Solution


class Quadratic:
    """``ΔL(δ) = gᵀδ + ½‖Gδ‖² + ½λ‖δ‖²`` around given weights.

    Rows are turned on the way in, ``G ← QᵀG`` with ``GGᵀ = QΛQᵀ``: the same ``GᵀG``, but ``GGᵀ`` is then
    diagonal, and each damping costs one pass over the rows.

    Args:
        rows: G by name, shape (R, numel) each, float32; overwritten.
        slope: g by name, shaped like the weights.
        weights: Where the model is made. What is exactly 0 there is taken as gone: it never moves.

    Attributes:
        curvature: Mean over the weights that are there of the diagonal of ``GᵀG``: the unit of damping.

    Raises:
        ScoreError: if a row is not finite, or all are 0.
    """

    def __init__(self, rows: dict[str, Tensor], slope: Named, weights: Named) -> None:
        self._slope = {name: g.detach().float() * (weights[name] != 0) for name, g in slope.items()}
        self._weights = {name: w.detach().float() for name, w in weights.items()}
        for name, block in rows.items():
            block.mul_(self._weights[name].reshape(-1) != 0)
        gram = _gram(rows, {name: w != 0 for name, w in self._weights.items()})
        trace = float(gram.diagonal().sum())
        if not trace < float("inf"):
            raise ScoreError("the gradients of the teacher's loss are not finite. Check weights and inputs.")
        if trace == 0:
            raise ScoreError(
                "the teacher's loss has no curvature in any weight: all its gradients are 0. "
                "Check that the outputs depend on the weights, or raise temperature."
            )
        spectrum, vectors = torch.linalg.eigh(gram)
        self._spectrum = spectrum.clamp_(min=0)
        turn = vectors.T.float().contiguous()
        for block in rows.values():
            _turn(block, turn)
        self._rows = rows
        n_there = sum(int((w != 0).sum()) for w in self._weights.values())
        self.curvature = trace / n_there

    def saliency(self, damping: float) -> dict[str, Tensor]:
        """``w*²/2 / [H⁻¹]_ww`` (optimal brain surgeon), ``w* = w − H⁻¹g`` the minimum; 0 where w is 0.

        The cost of removing w alone, beside that minimum, all other weights free to make up for it. The
        diagonal of the inverse is exact, over all tensors at once, but for rounding in float32: for λ of a
        hundredth and less it is a difference of nearly equal numbers.

        Args:
            damping: λ > 0.
        """
        damped = self._spectrum + damping  # λI + GGᵀ, diagonal as the rows are turned
        shift = self.against(self._slope, self.inner(self._slope) / damped, damping)
        scores: dict[str, Tensor] = {}
        for name, block in self._rows.items():
            explained = _square_sums(block, (1 / damped).float())
            left = (1 - explained).clamp_(min=_LEAST).view_as(self._weights[name])  # λ·[H⁻¹]_ww, in (0, 1]
            distance = self._weights[name] - shift[name]
            scores[name] = (
                distance.square_().mul_(damping / 2).div_(left).masked_fill_(self._weights[name] == 0, 0.0)
            )
        return scores

    def support(self, masks: Named) -> Support:
        """The model with only the weights free that `masks` keep (True = keep)."""
        removed = {name: w.masked_fill(masks[name], 0.0).neg_() for name, w in self._weights.items()}
        kept = {name: masks[name] & (w != 0) for name, w in self._weights.items()}
        pulled = self.inner(removed).float()
        force = {
            name: (self._slope[name] + torch.mv(block.T, pulled).view_as(kept[name])) * kept[name]
            for name, block in self._rows.items()
        }
        return Support(self, masks, kept, removed, force, self._gram_of(kept))

    def _gram_of(self, kept: Named) -> Tensor:
        """``GGᵀ`` over the columns `kept`, from those or from the others, whichever are fewer."""
        others = {name: ~keep & (self._weights[name] != 0) for name, keep in kept.items()}
        n_kept, n_others = (sum(int(part.sum()) for part in side.values()) for side in (kept, others))
        if n_kept <= n_others:
            return _gram(self._rows, kept)
        return torch.diag(self._spectrum) - _gram(self._rows, others)

    def weights_after(self, step: Named, masks: Named) -> dict[str, Tensor]:
        """The weights after δ, exactly 0 where `masks` prune."""
        return {n: (w + step[n]).masked_fill_(~masks[n], 0.0) for n, w in self._weights.items()}

    def change(self, step: Named) -> float:
        """``gᵀδ + ½‖Gδ‖²``: what the loss is predicted to change by; the damping is no part of it."""
        linear = sum(float((self._slope[name] * d).sum(dtype=torch.float64)) for name, d in step.items())
        return linear + 0.5 * float(self.inner(step).square().sum())

    def against(self, vector: Named, inner: Tensor, damping: float) -> dict[str, Tensor]:
        """``(v − Gᵀu)/λ``, the second half of Woodbury's formula, with u = `inner`."""
        return {
            name: (vector[name] - torch.mv(block.T, inner.float()).view_as(vector[name])) / damping
            for name, block in self._rows.items()
        }

    def inner(self, vector: Named) -> Tensor:
        """``G·v``, shape (R,), in double precision from here on."""
        return torch.stack(
            [torch.mv(block, vector[name].reshape(-1)).double() for name, block in self._rows.items()]
        ).sum(0)


@dataclass(frozen=True)
class Support:
    """A `Quadratic` on the weights that masks keep; each damping costs one R × R solve."""

    model: Quadratic
    masks: Named
    kept: dict[str, Tensor]
    removed: dict[str, Tensor]
    force: dict[str, Tensor]
    gram: Tensor

    def solve(self, damping: float) -> Solution:
        """The kept weights where the model is least: ``H_kk δ_k = −(g_k + G_kᵀG_p δ_p)``, ``δ_p = −w_p``.

        Args:
            damping: λ > 0.
        """
        damped = self.gram + damping * torch.eye(len(self.gram), dtype=torch.float64, device=self.gram.device)
        factor = torch.linalg.cholesky(damped)
        inner = torch.cholesky_solve(self.model.inner(self.force)[:, None], factor)[:, 0]
        back = self.model.against(self.force, inner, damping)
        step = {name: self.removed[name] - back[name] * keep for name, keep in self.kept.items()}
        return Solution(self.model.weights_after(step, self.masks), self.model.change(step))


_COLUMNS = 1 << 16
"""Weights handled at a time."""
_LEAST = 1e-6
"""Of λ·[H⁻¹]_ww, which rounding could make 0."""


def _gram(rows: Named, kept: Named) -> Tensor:
    """``GGᵀ`` over the columns of the weights `kept`; double, shape (R, R)."""
    total: Tensor | None = None
    for name, block in rows.items():
        for start in range(0, block.shape[1], _COLUMNS):
            place = slice(start, start + _COLUMNS)
            part = block[:, place][:, kept[name].reshape(-1)[place]]
            product = (part @ part.T).double()
            total = product if total is None else total.add_(product)
    assert total is not None, "there is at least one weight"
    return total


def _square_sums(block: Tensor, factors: Tensor) -> Tensor:
    """``Σ_r factors_r · block_rw²`` for each column w."""
    parts = block.split(_COLUMNS, dim=1)
    return torch.cat([torch.mv(part.square().T, factors) for part in parts])


def _turn(block: Tensor, turn: Tensor) -> None:
    """``block ← turn @ block`` in place, some columns at a time."""
    for start in range(0, block.shape[1], _COLUMNS):
        part = block[:, start : start + _COLUMNS]
        part.copy_(turn @ part)
