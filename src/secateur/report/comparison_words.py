"""What a comparison may claim: who leads, by how much, and whether the runs can be compared at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import mean
from typing import Any

from secateur.report.grouping import Cell
from secateur.report.outcome_panels import wilson
from secateur.report.page import Notice
from secateur.report.words import FINAL_STAGES, STAGES, listing, percent, points, value

Run = Mapping[str, Any]
Groups = Mapping[str, Sequence[Cell]]


def comparable(runs: Sequence[Run]) -> bool:
    """Whether all runs pruned the same network on the same data."""
    return all(len(_distinct(runs, what)) == 1 for what in ("data", "student"))


def _distinct(runs: Sequence[Run], what: str) -> dict[str, str]:
    """Names of the different data sets, students or teachers, by their full description."""
    found = [run["data"] if what == "data" else run["models"][what] for run in runs]
    # How much data was scored on is a choice of the method, not another data set.
    whole = [{key: item for key, item in part.items() if key != "n_calibration"} for part in found if part]
    return {value(what, part): str(part.get("name")) for part in whole}


def disagreements(runs: Sequence[Run]) -> Iterator[Notice]:
    """Why the runs may not be comparable, and runs that were given twice."""
    for what in ("data", "student", "teacher"):
        if len(distinct := _distinct(runs, what)) > 1:
            names = list(dict.fromkeys(distinct.values()))
            shown = listing(names) if len(names) > 1 else "; ".join(distinct)
            yield Notice(
                "warning",
                f"Not the same {what}",
                f"These runs are not like for like: {shown}. Compare only runs that share it.",
            )
    for curve in ("recovered", "recovered_kd"):
        epochs = sorted({len(run["curves"][curve]) for run in runs if run["curves"][curve]})
        if len(epochs) > 1:
            name = "with KD" if curve.endswith("kd") else "without KD"
            yield Notice(
                "warning",
                f"Not the same recovery {name}",
                f"Some runs recovered for {listing([str(count) for count in epochs])} epochs. "
                "A longer recovery, not the criterion, may make the difference.",
            )
    ids = [run["run_id"] for run in runs]
    if twice := [name for name in dict.fromkeys(ids) if ids.count(name) > 1]:
        yield Notice("warning", "A run was given twice", f"Its numbers count double: {listing(twice)}.")


def lede(groups: Groups, runs: Sequence[Run]) -> str:
    """The result in a sentence, at the last stage that all groups were run to."""
    stage = common_stage(groups)
    if not comparable(runs):
        return "These runs differ in data or student: read each for itself, there is no winner between them."
    if stage is None:
        return "No stage was measured for every way of choosing weights, so there is no winner."
    measured = {label: [cell for cell in cells if cell.accuracies(stage)] for label, cells in groups.items()}
    name = STAGES[stage]
    return f"{name[0].upper()}{name[1:]}: {contest(measured, stage, runs)}"


def common_stage(groups: Groups) -> str | None:
    """The last stage that every group was run to; None if there is none."""
    reached = [
        stage
        for stage in FINAL_STAGES
        if all(any(cell.accuracies(stage) for cell in cells) for cells in groups.values())
    ]
    return reached[0] if reached else None


def contest(groups: Groups, stage: str, runs: Sequence[Run]) -> str:
    """Who leads at the highest sparsity that at least two groups reach, and whether the lead means anything.

    Empty if the runs are not comparable.

    Args:
        groups: Cells by label, each with an accuracy at `stage`.
        stage: A key of ``accuracy``.
        runs: All runs, for the size of the test set.
    """
    if not comparable(runs):
        return ""
    at: dict[float, list[tuple[float, str, int]]] = {}
    for label, cells in groups.items():
        for cell in cells:
            found = cell.accuracies(stage)
            at.setdefault(round(cell.sparsity, 3), []).append((mean(found), label, len(found)))
    shared = sorted(sparsity for sparsity, entries in at.items() if len(entries) > 1)
    if not shared:
        if sum(bool(cells) for cells in groups.values()) > 1:
            return "No two were cut to the same sparsity, so there is no winner."
        sparsity = max(at)
        accuracy, label, _ = at[sparsity][0]
        alone = "; no other way was run to this stage" if len(groups) > 1 else ""
        return f"{label} holds {percent(accuracy)} at {percent(sparsity)} zeros{alone}."
    sparsity = shared[-1]
    (best, label, n_seeds), (second, rival, _), *_ = sorted(at[sparsity], reverse=True)
    text = (
        f"At {percent(sparsity)} zeros {label} is ahead: {percent(best)}, then {rival} with {percent(second)}"
    )
    n_test = min((run["data"]["n_test"] for run in runs if run["data"]["n_test"]), default=None)
    if n_test and best - second < (wilson(best, n_test)[1] - wilson(best, n_test)[0]) / 2:
        return f"{text}. A lead of {points(best - second)} is within what {n_test} test samples can tell."
    return f"{text}." if n_seeds > 1 else f"{text}, from a single seed."
