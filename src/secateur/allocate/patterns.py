"""Patterns: the shape of what is removed together."""

from __future__ import annotations

import abc
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from secateur.allocate.scopes import AbstractScope, Global
from secateur.allocate.select import refuse_non_finite, without_lowest
from secateur.counts import check_fraction, n_prune
from secateur.errors import InvalidArgument, LeftDenseWarning
from secateur.kinds import check_kind
from secateur.naming import Named
from secateur.targets import TRANSPOSED

T = TypeVar("T", bound=Tensor)


class AbstractPattern(abc.ABC):
    """A rule for where zeros may stand: what sparsities it allows, and how weights compete under it."""

    @abc.abstractmethod
    def sparsity_for(self, asked: float | None) -> float:
        """The sparsity of the cut, in [0, 1).

        Raises:
            InvalidArgument: if the pattern does not allow the one that was asked for, or needs one.
        """

    @abc.abstractmethod
    def scope_for(self, scope: AbstractScope | None) -> AbstractScope:
        """The scope whose masks have the pattern.

        Raises:
            InvalidArgument: if the pattern leaves the scope that was asked for no choice.
        """

    @abc.abstractmethod
    def fitting(self, tensors: Mapping[str, T], model: nn.Module | None = None) -> Mapping[str, T]:
        """Those of the tensors by name that can have the pattern; the others are to stay dense.

        Args:
            tensors: Weights, or scores of them.
            model: Whose weights they are, which may tell more than their shapes.

        Raises:
            InvalidArgument: if none can.

        Warns:
            LeftDenseWarning: naming the others.
        """


@dataclass(frozen=True)
class Unstructured(AbstractPattern):
    """Single weights, anywhere: no constraint on where the zeros stand."""

    def sparsity_for(self, asked: float | None) -> float:
        """The one asked for."""
        if asked is None:
            raise InvalidArgument(
                "sparsity is missing. Pass a fraction in [0, 1), or a pattern that sets it, such as NM(2, 4)."
            )
        # of NumPy's numbers, too, which JSON cannot hold
        return float(check_fraction("sparsity", asked, below_one=True))

    def scope_for(self, scope: AbstractScope | None) -> AbstractScope:
        """The one asked for, or `Global()`."""
        if scope is None:
            return Global()
        check_kind("scope", scope, AbstractScope, "ERK()")
        return scope

    def fitting(self, tensors: Mapping[str, T], model: nn.Module | None = None) -> Mapping[str, T]:
        """All of them."""
        return tensors


@dataclass(frozen=True)
class NM(AbstractPattern):
    """N:M semi-structured: of every m consecutive weights along the input dimension exactly n stay.

    The input dimension is dimension 1: ``in_features`` of `Linear`, and for a convolution ``in_channels``
    (per group) at each place of the kernel, as sparse tensor cores read them
    (https://arxiv.org/abs/2104.08378). The n highest scores of each group stay, so it is all the same how
    tensors compete, and the sparsity is ``1 − n/m``.

    What has no such groups stays dense, as with NVIDIA's ASP, as if it had been excluded: a tensor whose
    input dimension is no multiple of m, such as a first convolution of three channels or a depthwise one,
    and the weight of a transposed convolution, whose dimension 1 is the output. A `LeftDenseWarning` names
    them.
    Kernels may ask for more than the pattern, as ASP does for multiples of 8 outputs and 16 inputs; what they
    do not take is for `exclude`.

    Attributes:
        n: How many of a group stay, from 1 to m − 1.
        m: Size of a group, ≥ 2.

    Raises:
        InvalidArgument: for numbers out of range.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if type(self.n) is not int or type(self.m) is not int:
            raise InvalidArgument(
                f"a pattern n:m takes whole numbers, got n={self.n!r} and m={self.m!r}. "
                "The usual one is NM(2, 4)."
            )
        if not 1 <= self.n < self.m:
            raise InvalidArgument(
                f"a pattern n:m keeps n of m weights with 1 ≤ n < m, got {self}. The usual one is 2:4."
            )

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    def sparsity_for(self, asked: float | None) -> float:
        """``1 − n/m``; it need not be asked for."""
        own = (self.m - self.n) / self.m
        if asked is not None and abs(check_fraction("sparsity", asked, below_one=True) - own) > 1e-9:
            raise InvalidArgument(
                f"sparsity={asked:g} does not go with the pattern {self}, which removes exactly {own!r}. "
                "Leave sparsity out, pass that, or choose a pattern n:m whose 1 - n/m it is."
            )
        return own

    def scope_for(self, scope: AbstractScope | None) -> AbstractScope:
        """`Groups`; any scope but the default is refused, as it could change nothing."""
        if scope not in (None, Global()):
            raise InvalidArgument(
                f"scope {scope!r} does not go with the pattern {self}: the weights of every group of "
                f"{self.m} compete among themselves. Leave scope out."
            )
        return Groups(self.n, self.m)

    def fitting(self, tensors: Mapping[str, T], model: nn.Module | None = None) -> Mapping[str, T]:
        """Those that groups of m fill and that are not of a transposed convolution."""
        modules = () if model is None else model.modules()
        turned = {id(module.weight) for module in modules if isinstance(module, TRANSPOSED)}
        fitting = {
            name: tensor
            for name, tensor in tensors.items()
            if id(tensor) not in turned
            and tensor.ndim > 1
            and tensor.numel()
            and tensor.shape[1] % self.m == 0
        }
        others = ", ".join(f"{name} {tuple(t.shape)}" for name, t in tensors.items() if name not in fitting)
        if not fitting:
            raise InvalidArgument(
                f"the pattern {self} fits no tensor: dimension 1 must be the input and a multiple of "
                f"{self.m}, and there are {others}. Choose another pattern, or include other weights."
            )
        if others:
            warnings.warn(
                f"the pattern {self} leaves {others} dense: dimension 1 must be the input and a multiple of "
                f"{self.m}. They do not count as prunable. Exclude them to say so.",
                LeftDenseWarning,
                stacklevel=3,
            )
        return fitting


@dataclass(frozen=True)
class Groups(AbstractScope):
    """All weights in one ranking, except that the n highest of every group of m stay: the scope of `NM`.

    At the sparsity 1 − n/m these alone stay, which is the pattern. Below it, as in the earlier stages of a
    cut, more do, and no group has lost a weight too many for the stages to come.

    Attributes:
        n: How many of a group stay at least.
        m: Size of a group along dimension 1, which divides it in each tensor.
    """

    n: int
    m: int

    def __call__(self, scores: Named, sparsity: float) -> dict[str, Tensor]:
        """Masks with exactly ``n_prune(n, sparsity)`` zeros over all tensors together.

        Raises:
            InvalidArgument: if `sparsity` is above 1 − n/m.
            ScoreError: if a score is NaN or infinite.
        """
        masks: dict[str, Tensor] = {}
        removable: dict[str, Tensor] = {}
        for name, tensor in scores.items():
            values = tensor.detach().float()
            refuse_non_finite(name, int((~values.isfinite()).sum()))
            masks[name] = self._highest(values)
            removable[name] = values[~masks[name]]
        n_removed = n_prune(sum(tensor.numel() for tensor in scores.values()), sparsity)
        if n_removed > sum(map(len, removable.values())):
            raise InvalidArgument(
                f"sparsity={sparsity:g} leaves fewer than {self.n} of every {self.m} weights. "
                f"Ask for at most {(self.m - self.n) / self.m!r}."
            )
        for name, spared in without_lowest(removable, n_removed).items():
            masks[name][~masks[name]] = spared
        return masks

    def _highest(self, values: Tensor) -> Tensor:
        """Boolean mask of the n highest of each group; among equals the later ones, as everywhere."""
        inputs_last = values.movedim(1, -1)
        groups = inputs_last.unflatten(-1, (-1, self.m))
        order = groups.argsort(dim=-1, stable=True)
        highest = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, order[..., -self.n :], True)
        return highest.flatten(-2).movedim(-1, 1).contiguous()
