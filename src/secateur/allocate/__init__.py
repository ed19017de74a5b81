"""Allocation: from scores and one sparsity to masks, exactly."""

from __future__ import annotations

import warnings

from torch import Tensor

from secateur.allocate.budgets import ERK, SmartRatios, UniformPlus
from secateur.allocate.patterns import NM, AbstractPattern, Groups, Unstructured
from secateur.allocate.per_tensor import PerTensor
from secateur.allocate.scopes import AbstractBudgets, AbstractScope, Global, Layerwise
from secateur.errors import EmptiedLayerWarning, ScoreError
from secateur.kinds import check_kind
from secateur.masks import Masks
from secateur.naming import Named

__all__ = [
    "ERK",
    "NM",
    "SCOPES",
    "AbstractBudgets",
    "AbstractPattern",
    "AbstractScope",
    "Global",
    "Groups",
    "Layerwise",
    "PerTensor",
    "SmartRatios",
    "UniformPlus",
    "Unstructured",
    "allocate",
]

SCOPES: dict[str, type[AbstractScope]] = {
    "global": Global,
    "layerwise": Layerwise,
    "erk": ERK,
    "uniform-plus": UniformPlus,
    "smart-ratios": SmartRatios,
    "per-tensor": PerTensor,
}
"""Scopes by the name they have on the command line."""


def allocate(
    scores: Named,
    *,
    sparsity: float | None = None,
    scope: AbstractScope | None = None,
    pattern: AbstractPattern = Unstructured(),  # noqa: B008 - a frozen value
) -> Masks:
    """Masks that keep the highest scores.

    Deterministic: equal scores are pruned in (tensor order, flat index) order, as by a stable
    ascending argsort of all scores, on every device.

    Args:
        scores: Floating tensors by parameter name, higher = keep; compared as float32.
        sparsity: Fraction removed, in [0, 1). With `NM` it follows from the pattern and may be left out.
        scope: Where weights compete; `Global()` by default, and no other with `NM`.
        pattern: Where zeros may stand: anywhere, or `NM`.

    Returns:
        Masks with exactly ``n_prune(n, sparsity)`` zeros (in each tensor for `Layerwise`), of the
        tensors that the pattern fits.

    Raises:
        InvalidArgument: if `sparsity` is missing, out of range, or not one that scope and pattern can meet.
        ScoreError: naming a tensor whose scores are no tensor, not floating, or NaN or infinite.

    Warns:
        EmptiedLayerWarning: if a tensor keeps nothing.
        LeftDenseWarning: if the pattern does not fit a tensor, which then has no mask.
    """
    check_kind("pattern", pattern, AbstractPattern, "NM(2, 4)")
    sparsity = pattern.sparsity_for(sparsity)
    scope = pattern.scope_for(scope)
    if not scores:
        raise ScoreError("there are no scores to allocate by; score a model first.")
    for name, tensor in scores.items():
        _check_scores(name, tensor)
    scores = pattern.fitting(scores)
    masks = Masks(scope(scores, sparsity))
    emptied = [name for name, mask in masks.items() if mask.numel() and not bool(mask.any())]
    if emptied:
        warnings.warn(
            f"sparsity={sparsity:g} leaves no weight in {', '.join(emptied)}. "
            "Guard with scope=Global(min_density=0.01), or exclude it.",
            EmptiedLayerWarning,
            stacklevel=2,
        )
    return masks


def _check_scores(name: str, scores: object) -> None:
    if not isinstance(scores, Tensor):
        raise ScoreError(
            f"scores of {name!r} must be a floating tensor, got {type(scores).__name__}. Make one of it, as "
            "torch.as_tensor(scores) does, on the device of the weight."
        )
    if not scores.is_floating_point():
        raise ScoreError(f"scores of {name!r} must be floating, got {scores.dtype}.")
