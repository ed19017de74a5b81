"""Sparsities by hand: named tensors get what they are told, the others share the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch import Tensor

from secateur.allocate.scopes import AbstractScope
from secateur.allocate.select import without_lowest
from secateur.counts import check_fraction, n_prune
from secateur.errors import InvalidArgument
from secateur.naming import Named


@dataclass(frozen=True)
class PerTensor(AbstractScope):
    """Tensors by name at sparsities of their own; the others in one ranking, for what is left to remove.

    The sparsity asked for stays that of all weights together. To set every tensor, end with ``"*"``.

    Attributes:
        sparsities: Fraction removed, in [0, 1), by shell pattern (``*``, ``?``, ``[…]``) of parameter
            names; the first pattern that matches a tensor counts.
    """

    sparsities: Mapping[str, float] = field(hash=False)

    def __post_init__(self) -> None:
        if not self.sparsities:
            raise InvalidArgument("PerTensor needs at least one pattern; for none there is Global().")
        for pattern, sparsity in self.sparsities.items():
            check_fraction(f"sparsity of {pattern!r}", sparsity, below_one=True)

    def __call__(self, scores: Named, sparsity: float) -> dict[str, Tensor]:
        """Masks with exactly ``n_prune(n, sparsity)`` zeros over all tensors together.

        Raises:
            InvalidArgument: if a pattern matches no tensor, or the named tensors lose more than that, or
                so little that the others are not enough.
            ScoreError: if a score is NaN or infinite.
        """
        named = self._named(scores)
        rest = {name: tensor for name, tensor in scores.items() if name not in named}
        losses = {name: n_prune(scores[name].numel(), own) for name, own in named.items()}
        n = sum(tensor.numel() for tensor in scores.values())
        least = sum(losses.values())
        most = least + sum(tensor.numel() for tensor in rest.values())
        to_prune = n_prune(n, sparsity)
        if not least <= to_prune <= most:
            allowed = f"{least / n!r}" if least == most else f"{least / n!r} to {most / n!r}"
            raise InvalidArgument(
                f"sparsity={sparsity:g} removes {to_prune} of {n} weights, but the sparsities by name leave "
                f"room for {least} to {most}. Ask for a sparsity of {allowed}, or change those by name."
            )
        masks = without_lowest(rest, to_prune - least)
        for name, n_lost in losses.items():
            masks |= without_lowest({name: scores[name]}, n_lost)
        return {name: masks[name] for name in scores}

    def _named(self, names: Named) -> dict[str, float]:
        """The sparsity of every tensor that a pattern matches."""
        for pattern in self.sparsities:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise InvalidArgument(
                    f"pattern {pattern!r} of PerTensor matches no tensor. There are: {', '.join(names)}."
                )
        matches = {name: [p for p in self.sparsities if fnmatchcase(name, p)] for name in names}
        return {name: self.sparsities[patterns[0]] for name, patterns in matches.items() if patterns}
