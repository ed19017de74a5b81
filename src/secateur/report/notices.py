"""What a reader should be told without having to find it in a figure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from secateur.counts import n_prune
from secateur.report.outcome_panels import final_stage
from secateur.report.page import Notice
from secateur.report.words import STAGES, listing, number, percent, points

Run = Mapping[str, Any]

STABLE = 0.5
"""Least share of the way from chance to full overlap at which a mask counts as stable."""
REDUNDANT = 0.95
"""Rank correlation from which task and teacher say the same."""


def notices(run: Run) -> tuple[Notice, ...]:
    """Warnings first, then notes, of one run.

    Args:
        run: As `secateur.report.schema.read_run` returns it.
    """
    found = [
        *_emptied(run),
        *_asked(run),
        *_accuracy(run),
        *_recovery(run),
        *_scores(run),
        *_size(run),
        *_recorded(run),
    ]
    return tuple(sorted(found, key=lambda notice: notice.level != "warning"))


def _emptied_names(run: Run) -> list[str]:
    return [layer["name"] for layer in run["layers"] if layer["n_keep"] == 0]


def _emptied(run: Run) -> Iterator[Notice]:
    if names := _emptied_names(run):
        yield Notice(
            "warning",
            "A layer was emptied" if len(names) == 1 else f"{len(names)} layers were emptied",
            f"Nothing flows through {listing(names)} any more. Lower the sparsity, or set a minimum density "
            "that every layer keeps.",
        )


def _recorded(run: Run) -> Iterator[Notice]:
    """What the run itself warned of, unless it is said already."""
    emptied = _emptied_names(run)
    for text in run["warnings"]:
        if not ("leaves no weight in" in str(text) and any(name in str(text) for name in emptied)):
            yield Notice("warning", "The run warned", str(text))


def _asked(run: Run) -> Iterator[Notice]:
    sparsity, removed = run["sparsity"], run["n_prune"]
    asked = n_prune(run["n_prunable"], sparsity["asked"])
    # A scope that rounds layer by layer may be half a weight off in each.
    if abs(asked - removed) > len(run["layers"]):
        yield Notice(
            "warning",
            "Not the sparsity that was asked for",
            f"Asked for {percent(sparsity['asked'], 2)} zeros, got {percent(sparsity['prunable'], 2)}: "
            f"{number(removed)} weights removed instead of {number(asked)}. A minimum density of layers, "
            "or a pattern that removes whole groups, does this.",
        )


def _accuracy(run: Run) -> Iterator[Notice]:
    accuracy, n_classes, stage = run["accuracy"], run["data"]["n_classes"], final_stage(run)
    if stage is not None and n_classes and accuracy[stage] < 1.5 / n_classes:
        yield Notice(
            "warning",
            "The network does little more than guess",
            f"It ends at {percent(accuracy[stage])}, and guessing gives {percent(1 / n_classes)}. "
            "Lower the sparsity or recover for more epochs.",
        )
    teacher, dense = accuracy["teacher"], accuracy["dense"]
    own = (run["models"]["teacher"] or {}).get("name") == "student"
    if teacher is not None and dense is not None and teacher <= dense and not own:
        yield Notice(
            "warning",
            "The teacher is no better than the student",
            f"Teacher {percent(teacher)}, dense student {percent(dense)}. Such a teacher has little to "
            "teach: train it longer or choose a larger one.",
        )


def _recovery(run: Run) -> Iterator[Notice]:
    accuracy, n_test = run["accuracy"], run["data"]["n_test"]
    plain, kd = accuracy["recovered"], accuracy["recovered_kd"]
    if plain is not None and kd is not None and plain - kd > _chance(plain, kd, n_test):
        images = (
            f", {number(round((plain - kd) * n_test))} of {number(n_test)} test samples" if n_test else ""
        )
        yield Notice(
            "warning",
            "Distillation did not help this recovery",
            f"With KD {percent(kd)}, without {percent(plain)}: {points(plain - kd)} less{images}. "
            "Run other seeds before you conclude; then try a smaller KD weight or a better teacher.",
        )
    if plain is None and kd is None and run.get("calibration_recovery"):
        yield Notice(
            "note",
            "No training set was used after the cut",
            "The network was brought back by distillation on the calibration inputs alone. Where there are "
            "training data, recovery on them with the masks kept usually wins back more.",
        )
    elif plain is None and kd is None:
        yield Notice(
            "note",
            "This run stopped after the cut",
            "No recovery was run, so the accuracy is that of a freshly cut network. "
            "Training on with the masks kept usually wins back most of the loss.",
        )
    before = max(
        (accuracy[stage] for stage in ("cut", "batchnorm") if accuracy[stage] is not None), default=None
    )
    after = max((value for value in (plain, kd) if value is not None), default=None)
    if before is not None and after is not None and after < before:
        yield Notice(
            "warning",
            "Recovery made it worse",
            f"{percent(before)} before, {percent(after)} after. Lower the peak learning rate.",
        )
    yield from _training(run)


def _chance(a: float, b: float, n: int | None) -> float:
    """Standard error of the difference of two accuracies on `n` samples; 0 where n is not known."""
    return math.sqrt((a * (1 - a) + b * (1 - b)) / n) if n else 0.0


def _training(run: Run) -> Iterator[Notice]:
    for curve, entries in run["curves"].items():
        if entries and any(entry["loss"] is None for entry in entries):
            yield Notice(
                "warning",
                "A loss was not a finite number",
                f"It happened while training “{STAGES.get(curve, curve)}”. Lower the learning rate.",
            )
    stopped = [
        STAGES.get(curve, curve)
        for curve, chosen in run["selected_epoch"].items()
        if chosen and _went_on(run, curve, chosen)
    ]
    if stopped:
        yield Notice(
            "note",
            "The last epochs were not kept",
            "After the selected epoch validation accuracy stayed more than one standard error below its best "
            f"({listing(stopped)}).",
        )


def _went_on(run: Run, curve: str, chosen: int) -> bool:
    entries: Sequence[Run] | None = run["curves"].get(curve)
    return bool(entries) and entries[-1]["epoch"] > chosen


def _scores(run: Run) -> Iterator[Notice]:
    diagnostics = run["diagnostics"]
    split, agreement, scores = (diagnostics[key] for key in ("split_half", "agreement", "score_histogram"))
    if split is not None and _above_chance(split) < STABLE:
        yield Notice(
            "warning",
            "The choice of weights depends on which samples were seen",
            "Two halves of the calibration data agree on only "
            f"{percent(split['mask_overlap'], 0)} of what they keep (chance: "
            f"{percent(split['expected_random'], 0)}). Give more calibration data.",
        )
    if agreement is not None and (agreement["spearman"] or 0) > REDUNDANT:
        yield Notice(
            "note",
            "Labels and teacher say the same",
            f"Their scores rank the weights almost alike ({agreement['spearman']:.2f}), "
            "so alpha hardly matters here.",
        )
    if scores is not None and scores["n_zero"] > run["n_prune"]:
        yield Notice(
            "warning",
            "More weights score zero than were removed",
            f"{number(scores['n_zero'])} score 0 or less and {number(run['n_prune'])} were removed: which of "
            "them go is decided by their order alone. Give more calibration data, or score in another way.",
        )


def _above_chance(split: Run) -> float:
    chance = split["expected_random"]
    return (split["mask_overlap"] - chance) / (1 - chance) if chance < 1 else 1.0


def _size(run: Run) -> Iterator[Notice]:
    dense, sparse = run["size_bytes"]["dense"], run["size_bytes"]["sparse"]
    if dense and sparse and sparse >= dense:
        yield Notice(
            "warning",
            "The sparse file is no smaller",
            "At this sparsity the positions of the kept weights cost as much as the zeros save. "
            "Keep the dense file.",
        )
