"""What a comparison may claim: who leads, by how much, and whether the runs can be compared at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import mean
from typing import Any

from secateur.report.grouping import Cell
from secateur.report.outcome_panels import wilson
from secateur.report.page import Notice
from secateur.report.words import FINAL_STAGES, listing, percent, points, value

Run = Mapping[str, Any]
Groups = Mapping[str, Sequence[Cell]]


def disagreements(runs: Sequence[Run]) -> tuple[Notice, ...]:
    """Why the runs may not be comparable, and runs that were given twice."""
    return tuple(_disagreements(runs))


def _disagreements(runs: Sequence[Run]) -> Iterator[Notice]:
    for what, found in (
        ("data", [value("data", run["data"]) for run in runs]),
        ("student", [value("student", run["models"]["student"]) for run in runs]),
        ("teacher", [value("teacher", run["models"]["teacher"]) for run in runs if run["models"]["teacher"]]),
    ):
        if len(distinct := list(dict.fromkeys(found))) > 1:
            yield Notice(
                "warning",
                f"Not the same {what}",
                f"These runs are not like for like: {'; '.join(distinct)}. Compare only runs that share it.",
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
    """The result in a sentence, at the furthest stage that was run."""
    stage = next(
        (stage for stage in FINAL_STAGES if any(run["accuracy"][stage] is not None for run in runs)), None
    )
    if stage is None:
        return "No accuracy was measured in these runs."
    return contest(
        {label: [cell for cell in cells if cell.accuracies(stage)] for label, cells in groups.items()},
        stage,
        runs,
    )


def contest(groups: Groups, stage: str, runs: Sequence[Run]) -> str:
    """Who leads at the highest sparsity that at least two groups reach, and whether the lead means anything.

    Args:
        groups: Cells by label, each with an accuracy at `stage`.
        stage: A key of ``accuracy``.
        runs: All runs, for the size of the test set.
    """
    at: dict[float, list[tuple[float, str, int]]] = {}
    for label, cells in groups.items():
        for cell in cells:
            found = cell.accuracies(stage)
            at.setdefault(round(cell.sparsity, 3), []).append((mean(found), label, len(found)))
    shared = sorted(sparsity for sparsity, entries in at.items() if len(entries) > 1)
    if not shared:
        (accuracy, label, _), sparsity = max((max(entries), sparsity) for sparsity, entries in at.items())
        return f"The most accurate is {label} with {percent(accuracy)} at {percent(sparsity)} zeros."
    sparsity = shared[-1]
    (best, label, n_seeds), (second, rival, _), *_ = sorted(at[sparsity], reverse=True)
    text = (
        f"At {percent(sparsity)} zeros {label} is ahead: {percent(best)}, then {rival} with {percent(second)}"
    )
    n_test = min((run["data"]["n_test"] for run in runs if run["data"]["n_test"]), default=None)
    if n_test and best - second < (wilson(best, n_test)[1] - wilson(best, n_test)[0]) / 2:
        return f"{text}. A lead of {points(best - second)} is within what {n_test} test samples can tell."
    return f"{text}." if n_seeds > 1 else f"{text}, from a single seed."
