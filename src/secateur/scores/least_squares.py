"""Least squares for the weights of one layer: what each is worth, and what the kept ones should be."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_TOLERANCE = 1e-5
"""Residual of a row, relative to its right-hand side, at which it counts as solved."""
_MOST_STEPS = 1000


@dataclass(frozen=True)
class Moments:
    """``E(W) = Σ‖y − Wx‖²`` as a function of W: x are a layer's inputs, y the outputs that it should have.

    Sums over rows (x, y), so none need be kept. Weights come in the shape of `cross`; everything is double.

    Attributes:
        inner: ``H = Σ xxᵀ``, shape (groups, K, K).
        cross: ``C = Σ yxᵀ``, shape (groups, outputs of a group, K).
        square: ``Σ‖y‖²``, a scalar.
        total: ``Σ y``, shape (groups, outputs of a group).
        rows: How many.
    """

    inner: Tensor
    cross: Tensor
    square: Tensor
    total: Tensor
    rows: int

    @classmethod
    def of(cls, inputs: Tensor, outputs: Tensor) -> Moments:
        """Those of some rows: x of shape (groups, rows, K), y of shape (groups, rows, outputs of a group)."""
        return cls(
            (inputs.mT @ inputs).double(),
            (outputs.mT @ inputs).double(),
            outputs.square().sum().double(),
            outputs.sum(1).double(),
            inputs.shape[1],
        )

    def __add__(self, other: Moments) -> Moments:
        """Those of the rows of both."""
        return Moments(
            self.inner + other.inner,
            self.cross + other.cross,
            self.square + other.square,
            self.total + other.total,
            self.rows + other.rows,
        )

    @property
    def spread(self) -> float:
        """``Σ‖y − ȳ‖²``, the outputs about their means."""
        return max(float(self.square - self.total.square().sum() / self.rows), 0.0)

    def error(self, w: Tensor) -> float:
        """``E(w)``."""
        return max(float(((w @ self.inner - 2 * self.cross) * w).sum() + self.square), 0.0)

    def cosine(self, w: Tensor) -> float:
        """Of the angle between all of y and all of ``wx``; 0 if either is 0."""
        own = float((w @ self.inner * w).sum()) * float(self.square)
        return float((self.cross * w).sum()) / math.sqrt(own) if own > 0 else 0.0

    def saliency(self, w: Tensor, damping: float) -> Tensor:
        """``w*²/[H⁻¹]_ww`` over `spread`: how much E grows if w goes and the others make up for it.

        w* is the minimum over the weights that are there, as in `solve`. The inverse is that of all of H.

        Args:
            w: The weights as they are; 0 is gone, and scores 0.
            damping: As in `solve`.

        Raises:
            ArithmeticError: if H is singular to rounding, for want of damping.
        """
        there = w != 0
        factor, failed = torch.linalg.cholesky_ex(self._damped(damping))
        if bool(failed.any()):
            raise ArithmeticError("H is not positive definite")
        inverse = torch.cholesky_inverse(factor)
        best = self.solve(w, there, damping)
        cost = best.square() / inverse.diagonal(dim1=1, dim2=2)[:, None]
        return cost * there / (self.spread or 1.0)

    def solve(self, w: Tensor, kept: Tensor, damping: float) -> Tensor:
        """The v with the least ``E(v) + λ‖v − w‖²`` of those that are 0 outside of `kept`.

        All rows at once by conjugate gradients, each on its own support; the diagonal preconditions.

        Args:
            w: The weights as they are, which the ridge pulls to.
            kept: True = may be other than 0.
            damping: λ > 0 in units of the mean of diag H.
        """
        h = self._damped(damping)
        scale = 1 / h.diagonal(dim1=1, dim2=2)[:, None]
        goal = (self.cross + damping * self._unit * w) * kept
        v = w * kept
        residual = goal - v @ h * kept
        near = goal.square().sum(-1, keepdim=True) * _TOLERANCE**2
        direction = residual * scale
        slope = (residual * direction).sum(-1, keepdim=True)
        for _ in range(_MOST_STEPS):
            if bool((residual.square().sum(-1, keepdim=True) <= near).all()):
                break
            turned = direction @ h * kept
            length = _ratio(slope, (direction * turned).sum(-1, keepdim=True))
            v = v + length * direction
            residual = residual - length * turned
            steepest = residual * scale
            before, slope = slope, (residual * steepest).sum(-1, keepdim=True)
            direction = steepest + _ratio(slope, before) * direction
        return v

    @property
    def _unit(self) -> float:
        """Mean of diag H: the unit of damping; 1 where all inputs are 0."""
        return float(self.inner.diagonal(dim1=1, dim2=2).mean()) or 1.0

    def _damped(self, damping: float) -> Tensor:
        h = self.inner.clone()
        h.diagonal(dim1=1, dim2=2).add_(damping * self._unit)
        return h


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a/b, and 0 where b is: a row that is solved exactly stays so."""
    return torch.where(b > 0, a / b, 0.0)
