"""Allocation: from scores and one sparsity to masks, exactly."""

from __future__ import annotations

import warnings

from secateur.allocate.budgets import ERK, SmartRatios, UniformPlus
from secateur.allocate.patterns import Unstructured
from secateur.allocate.per_tensor import PerTensor
from secateur.allocate.scopes import AbstractBudgets, AbstractScope, Global, Layerwise
from secateur.counts import check_fraction
from secateur.errors import EmptiedLayerWarning, ScoreError
from secateur.masks import Masks
from secateur.naming import Named

__all__ = [
    "ERK",
    "SCOPES",
    "AbstractBudgets",
    "AbstractScope",
    "Global",
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
    sparsity: float,
    scope: AbstractScope | None = None,
    pattern: Unstructured = Unstructured(),  # noqa: B008 - a frozen value
) -> Masks:
    """Masks that keep the highest scores.

    Deterministic: equal scores are pruned in (tensor order, flat index) order, as by a stable
    ascending argsort of all scores, on every device.

    Args:
        scores: Floating tensors by parameter name, higher = keep; compared as float32.
        sparsity: Fraction removed, in [0, 1).
        scope: Where weights compete; `Global()` by default.
        pattern: What is removed together; so far single weights only.

    Returns:
        Masks with exactly ``n_prune(n, sparsity)`` zeros (in each tensor for `Layerwise`).

    Raises:
        InvalidArgument: if `sparsity` is out of range, or not one that the scope can meet.
        ScoreError: naming a tensor whose scores are not floating, or NaN or infinite.

    Warns:
        EmptiedLayerWarning: if a tensor keeps nothing.
    """
    check_fraction("sparsity", sparsity, below_one=True)
    if not scores:
        raise ScoreError("there are no scores to allocate by; score a model first.")
    for name, tensor in scores.items():
        if not tensor.is_floating_point():
            raise ScoreError(f"scores of {name!r} must be floating, got {tensor.dtype}.")
    masks = Masks((scope or Global())(scores, sparsity))
    emptied = [name for name, mask in masks.items() if mask.numel() and not bool(mask.any())]
    if emptied:
        warnings.warn(
            f"sparsity={sparsity:g} leaves no weight in {', '.join(emptied)}. "
            "Guard with scope=Global(min_density=0.01), or exclude it.",
            EmptiedLayerWarning,
            stacklevel=2,
        )
    return masks
