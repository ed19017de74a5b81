"""Is a cut to be trusted? Agreement of rankings, stability of masks, and the shape of scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.allocate import AbstractPattern, AbstractScope, Unstructured, allocate
from secateur.errors import DataError, MaskError
from secateur.masks import Masks
from secateur.modules import random_state_kept
from secateur.naming import Batches, Loss, Named
from secateur.scores import AbstractCriterion, GuidedScores
from secateur.stages import mask_warnings_ignored, staged_masks

_SAMPLE = 1 << 20
"""Most scores that a rank correlation looks at; of more it takes as many at random places."""


def mask_overlap(a: Masks, b: Masks) -> float:
    """Weights kept by both over weights kept by either (Jaccard index), in [0, 1]; 1 = the same masks.

    Two random masks of density d overlap by ``d / (2 − d)``.

    Raises:
        MaskError: if the masks are not of the same names and shapes.
    """
    _check_comparable(a, b)
    both = sum(int((a[name] & b[name]).sum()) for name in a)
    either = sum(int((a[name] | b[name]).sum()) for name in a)
    return both / either if either else 1.0


def _check_comparable(a: Masks, b: Masks) -> None:
    for name in (*a, *(name for name in b if name not in a)):
        ours, theirs = (tuple(masks[name].shape) if name in masks else "nothing" for masks in (a, b))
        if ours != theirs:
            raise MaskError(
                f"masks to compare differ in {name!r}: {ours} in the first, {theirs} in the second. "
                "Compare masks of one network, with the same include, exclude and pattern."
            )


def rank_correlation(a: Tensor, b: Tensor) -> float | None:
    """Spearman's rank correlation of two tensors of equal shape, in [−1, 1]; ties share their mean rank.

    Returns:
        None where it is undefined: fewer than two values, or all equal.
    """
    ranks = [_mean_ranks(_sample(t, _SAMPLE).double()) for t in (a, b)]
    x, y = (r - r.mean() for r in ranks)
    norm = float(x.norm() * y.norm())
    return float(x @ y) / norm if norm > 0 else None


def _sample(scores: Tensor, most: int) -> Tensor:
    """At most so many of the scores, flat; the same places in all tensors of one size."""
    flat = scores.detach().reshape(-1)
    if len(flat) <= most:
        return flat
    # Not every k-th: that may be the same corner of every kernel.
    places = torch.randint(len(flat), (most,), generator=torch.Generator().manual_seed(0))
    return flat[places.to(flat.device)]


def _mean_ranks(values: Tensor) -> Tensor:
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    return (ends - (counts - 1) / 2)[inverse]


def split_half_overlap(
    model: nn.Module,
    batches: Batches,
    criterion: AbstractCriterion,
    *,
    sparsity: float | None = None,
    scope: AbstractScope | None = None,
    pattern: AbstractPattern = Unstructured(),  # noqa: B008 - a frozen value
    stages: int = 1,
    regrow: bool = False,
    task_loss: Loss = F.cross_entropy,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    on_batch: Callable[[], None] = lambda: None,
) -> float:
    """How alike the masks from two halves of the calibration data are, see `mask_overlap`.

    Low overlap says that the calibration set is too small for this criterion at this sparsity. The
    halves are every other batch of one pass over `batches`, all of which are kept in memory.

    Raises:
        DataError: if there are fewer than two batches.
    """
    with random_state_kept(torch.device("cpu")):  # a loader may draw
        kept = list(batches)  # each pass over a loader that shuffles would halve them otherwise
    if len(kept) < 2:
        raise DataError(f"split-half stability needs at least 2 calibration batches, got {len(kept)}.")
    halves: list[Masks] = []
    for start in (0, 1):
        with mask_warnings_ignored():
            masks = staged_masks(
                model,
                kept[start::2],
                criterion,
                sparsity=sparsity,
                scope=scope,
                pattern=pattern,
                stages=stages,
                regrow=regrow,
                task_loss=task_loss,
                include=include,
                exclude=exclude,
                on_batch=on_batch,
            )
        halves.append(masks)
    return mask_overlap(*halves)


@dataclass(frozen=True)
class Histogram:
    """Counts of scores over bins of equal width in log10.

    Attributes:
        counts: One a bin.
        n_zero: Scores of exactly 0, or below, which have no logarithm.
    """

    counts: list[int]
    n_zero: int


def log_edges(scores: Sequence[Named], *, bins: int = 80) -> list[float]:
    """``bins + 1`` edges in log10 that span the positive scores of several rankings together."""
    low, high = math.inf, -math.inf
    for ranking in scores:
        for tensor in ranking.values():
            positive = tensor[tensor > 0]
            if positive.numel():
                low, high = min(low, float(positive.min())), max(high, float(positive.max()))
    if not math.isfinite(low):
        low = high = 1.0
    # Scores far below the largest say nothing more than "none"; they go into the first bin.
    first, last = math.log10(low), math.log10(high)
    first = max(first, last - 8)
    width = max(last - first, 1e-3)
    return [first + width * i / bins for i in range(bins + 1)]


def log_histogram(scores: Named, edges: Sequence[float]) -> Histogram:
    """Histogram of a ranking over `edges`; what lies outside goes into the outermost bins."""
    bins = len(edges) - 1
    counts = torch.zeros(bins, dtype=torch.int64)
    n_zero = 0
    for tensor in scores.values():
        values = tensor.detach().reshape(-1).double().cpu()
        positive = values[values > 0]
        n_zero += values.numel() - positive.numel()
        place = (positive.log10() - edges[0]) / (edges[-1] - edges[0]) * bins
        counts += torch.bincount(place.long().clamp(0, bins - 1), minlength=bins)
    return Histogram(counts=counts.tolist(), n_zero=n_zero)


def smallest_kept(scores: Named, masks: Masks) -> float | None:
    """The smallest score that stays: the threshold of a global cut. None if nothing stays."""
    kept = [float(scores[name][mask].min()) for name, mask in masks.items() if bool(mask.any())]
    return min(kept, default=None)


def dividing_score(scores: Named, masks: Masks) -> float | None:
    """The smallest score that stays, if none that goes is above it: the threshold of a global cut.

    None where there is no such line: under other scopes, with floors, and where a weight was removed by
    an earlier stage than the one that gave these scores.
    """
    least = smallest_kept(scores, masks)
    if least is None or any(bool((scores[name][~mask] > least).any()) for name, mask in masks.items()):
        return None
    return least


def ranking_agreement(a: Named, b: Named) -> dict[str, Any]:
    """Rank correlation of two rankings of the same weights: over all of them, and in each tensor.

    Returns:
        ``{"spearman": float | None, "layers": [{"name", "spearman"}, …]}``.
    """
    share = min(1.0, _SAMPLE / sum(t.numel() for t in a.values()))
    sampled = [torch.cat([_sample(t, math.ceil(share * t.numel())) for t in r.values()]) for r in (a, b)]
    layers = [{"name": name, "spearman": rank_correlation(a[name], b[name])} for name in a]
    return {"spearman": rank_correlation(*sampled), "layers": layers}


def describe_scores(scores: Named, masks: Masks, scope: AbstractScope) -> dict[str, Any]:
    """What a report shows of a ranking and its cut.

    Returns:
        ``score_histogram``: counts over log10 bins of the scores, and of both terms of
        `GuidedScores`, with the threshold if there is one; ``agreement``: rank correlation of the two
        terms, and overlap of the masks that each alone would give at the same sparsity; None for
        scores without two terms, or if nothing stays.
    """
    terms: dict[str, Named] = {}
    if isinstance(scores, GuidedScores) and scores.task is not None:
        terms = {"task": scores.task, "teacher": scores.kd}
    threshold = dividing_score(scores, masks)
    edges = log_edges([scores, *terms.values()])
    histogram: dict[str, Any] = {
        "log10_edges": edges,
        **asdict(log_histogram(scores, edges)),
        "log10_threshold": math.log10(threshold) if threshold and threshold > 0 else None,
        "terms": {name: asdict(log_histogram(term, edges)) for name, term in terms.items()} or None,
    }
    agreement = None
    if terms and masks.n_keep:
        task, teacher = (_allocate_quietly(term, masks.sparsity, scope) for term in terms.values())
        agreement = {**ranking_agreement(*terms.values()), "mask_overlap": mask_overlap(task, teacher)}
    return {"score_histogram": histogram, "agreement": agreement}


def _allocate_quietly(scores: Named, sparsity: float, scope: AbstractScope) -> Masks:
    """`allocate` for a mask that is only compared: a layer it empties is no news."""
    with mask_warnings_ignored():
        return allocate(scores, sparsity=sparsity, scope=scope)
