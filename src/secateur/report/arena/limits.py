"""What stands between a reader and a conclusion: gaps, unequal terms, and what no number here can say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from secateur.report.arena.cost import cost
from secateur.report.arena.grid import Grid
from secateur.report.arena.schema import STAGES
from secateur.report.arena.square import square_notices
from secateur.report.arena.words import at, count, other_recoveries, zeros
from secateur.report.outcome_panels import wilson
from secateur.report.page import Notice
from secateur.report.words import SPACE, listing, number, percent, value

_MOST_WARNINGS = 5


def notices(grid: Grid) -> tuple[Notice, ...]:
    """All that should be known before the numbers are read, warnings first."""
    found = [*_incomplete(grid), *_unequal(grid), *square_notices(grid), *_said_by_cells(grid)]
    return tuple(sorted(found, key=lambda notice: notice.level != "warning"))


def _incomplete(grid: Grid) -> Iterator[Notice]:
    done, planned = len(grid.cells), grid.content["n_planned"]
    if done < planned:
        missing = [m.label for m in grid.methods if not grid.cells_of(m.key)]
        none = f" Nothing is finished of {listing(missing, most=9)}." if missing else ""
        yield Notice(
            "warning",
            f"{done} of {planned} cells are finished",
            f"Means are over the seeds that are there, so they may still move.{none}",
        )
    reference = grid.reference
    if not grid.cells_of(reference.key):
        yield Notice(
            "warning",
            f"{reference.label} has no finished cell",
            "All others are held against it, so no difference can be given yet.",
        )
    if len(grid.seeds) == 1:
        yield Notice(
            "warning",
            "A single seed",
            "There is no spread and no interval: another seed may well change the order. Run at least three.",
        )


def _unequal(grid: Grid) -> Iterator[Notice]:
    trained = {m.label: found.mean for m in grid.competitors if (found := cost(grid, m, "epochs"))}
    usual = Counter(round(epochs, 2) for epochs in trained.values()).most_common(1)[0][0] if trained else 0.0
    near = max(0.01, 0.05 * usual)  # what does not fill the last part of a budget in rounds is not used
    others = [f"{label} ({n:.3g})" for label, n in trained.items() if abs(n - usual) > near]
    if others:
        yield Notice(
            "warning",
            "Not the same budget",
            f"Most methods trained for {count(usual, 'epoch')} of images, others for more or less: "
            f"{listing(others, most=9)}. The length of training, not the choice of weights, may make the "
            "difference.",
        )
    if others := _other_rates(grid):
        yield Notice(
            "warning",
            "Not the same rate",
            f"Recovered at another peak rate than most: {listing(others, most=9)}. "
            "The rate, not the choice of weights, may make the difference.",
        )
    removed = _other_counts(grid)
    if removed:
        yield Notice(
            "warning",
            "Not the same number of zeros",
            f"Asked for the same sparsity, {listing(removed, most=9)} removed more or fewer weights.",
        )
    for seed in grid.seeds:
        dense = {
            cell["accuracy"]["dense"]
            for method in grid.competitors
            for cell in grid.cells_of(method.key)
            if cell["seed"] == seed and cell["accuracy"]["dense"] is not None
        }
        if len(dense) > 1:
            yield Notice(
                "warning",
                "Not the same dense network",
                f"With seed {seed} the methods start from networks of {percent(min(dense), 2)} to "
                f"{percent(max(dense), 2)} test accuracy: differences are no longer those of pruning alone.",
            )
            break
    for what, name in (("data", "data"), ("models", "networks")):
        if len(grid.common(what)) > 1:
            yield Notice(
                "warning",
                f"Not the same {name}",
                f"The cells name {len(grid.common(what))} descriptions; the end of the page has them.",
            )


def _other_rates(grid: Grid) -> list[str]:
    """Competitors that are recovered at another rate than most, each with it."""
    rates = {
        m.label: (grid.cells_of(m.key)[0]["about"].get("recovery") or {}).get("lr") for m in grid.competitors
    }
    usual = Counter(rate for rate in rates.values() if rate is not None).most_common(1)
    return [
        f"{label} ({rate:g})" for label, rate in rates.items() if rate is not None and rate != usual[0][0]
    ]


def _other_counts(grid: Grid) -> list[str]:
    """Labels of competitors that removed another number of weights than most did at the same sparsity."""
    odd: dict[str, None] = {}
    for sparsity in grid.sparsities:
        counts = {m.label: {c["n_prune"] for c in grid.cells_of(m.key, sparsity)} for m in grid.competitors}
        for usual, _ in Counter(n for found in counts.values() for n in found).most_common(1):
            odd |= dict.fromkeys(label for label, found in counts.items() if found - {usual})
    return list(odd)


def _said_by_cells(grid: Grid) -> Iterator[Notice]:
    said = Counter(str(warning) for cell in grid.cells for warning in cell["warnings"])
    for warning, n_cells in said.most_common(_MOST_WARNINGS):
        yield Notice("note", f"Said by {count(n_cells, 'cell')}", warning)
    if len(said) > _MOST_WARNINGS:
        yield Notice(
            "note", "More warnings", f"{len(said) - _MOST_WARNINGS} others are in the file of the suite."
        )


def limits(grid: Grid) -> tuple[tuple[str, str], ...]:
    """What the numbers count, and what they cannot say; each with its subject first."""
    return tuple(
        (f"{lead}.", text)
        for lead, text in (
            *_denominator(grid),
            *_accuracy(grid),
            *_intervals(grid),
            *_budget(grid),
            *_machines(grid),
        )
        if text
    )


def _denominator(grid: Grid) -> Iterator[tuple[str, str]]:
    cells = [c for m in grid.competitors for c in grid.cells_of(m.key, grid.spotlight)]
    if cells:
        shares = [{percent(cell["sparsity"][key], 2) for cell in cells} for key in ("prunable", "all")]
        prunable, everything = (" or ".join(sorted(found)) for found in shares)
        yield (
            "Denominator",
            f"Sparsity is the share of zeros among prunable weights (convolutions and linear layers): "
            f"{prunable} where {zeros(grid.spotlight)} was asked for, {everything} of all parameters.",
        )


def _accuracy(grid: Grid) -> Iterator[tuple[str, str]]:
    yield "Accuracy", f"On the test split, {STAGES[grid.final]} unless another stage is named."
    n_test = next((n for data in grid.common("data") if (n := data.get("n_test"))), None)
    best = [grid.accuracy(m.key, grid.final, grid.spotlight) for m in grid.competitors]
    means = [found.mean for found in best if found is not None]
    if isinstance(n_test, int) and n_test > 0 and means:
        low, high = wilson(max(means), n_test)
        yield (
            "Test samples",
            f"One accuracy of {percent(max(means))} on {number(n_test)} test samples is known to ±{SPACE}"
            f"{50 * (high - low):.1f} points (95{SPACE}%). All methods answer the same samples, so "
            "differences are known better than that; but the intervals here span seeds, not other test sets.",
        )


def _intervals(grid: Grid) -> Iterator[tuple[str, str]]:
    n_seeds = len(grid.seeds)
    if n_seeds > 1:
        yield (
            "Intervals",
            f"They are Student's t over {count(n_seeds, 'seed')} ({n_seeds - 1} degrees of freedom) and take "
            "differences to be roughly normal, which so few cannot show. Each stands for itself and is not "
            "widened for how many there are: about one in twenty excludes 0 by chance alone. Where every "
            "seed gives the same difference there is no interval.",
        )
    dense = {c["accuracy"]["dense"] for c in grid.cells if c["accuracy"]["dense"] is not None}
    if len(dense) == 1:
        yield (
            "Seeds",
            "Every cell starts from networks of one dense accuracy, so a seed varies the data that is scored "
            "and trained on, not the networks. Another trained network may behave otherwise.",
        )


def _budget(grid: Grid) -> Iterator[tuple[str, str]]:
    recovery: Mapping[str, Any] | None = grid.suite["recovery"]
    if recovery is None or recovery.get("epochs") == 0:
        yield (
            "Budget",
            "Nothing was trained after the cut. Which method is best may change once networks recover.",
        )
        return
    others = other_recoveries(grid)
    whose = f"all but {listing(others, most=9)}" if others else "all"
    yield (
        "Budget",
        f"One recovery for {whose}: {value('recovery', recovery)}. It was not tuned for each method, and a "
        "longer or shorter one may change the order.",
    )


def _machines(grid: Grid) -> Iterator[tuple[str, str]]:
    missing = {
        sparsity: [m.label for m in grid.competitors if not grid.accuracies(m.key, grid.final, sparsity)]
        for sparsity in grid.sparsities
    }
    gaps = [f"{at([sparsity])}: {listing(names, most=9)}" for sparsity, names in missing.items() if names]
    if gaps:
        yield "Not run", f"{'; '.join(gaps)}."
    if len(grid.common("hardware")) > 1:
        yield "Machines", "Cells were run on different machines, so their seconds do not compare; epochs do."
    changed = [value("commit", commit) for commit in grid.common("commit")]
    if len(changed) > 1:
        yield "Code", f"Cells were run at {len(changed)} different commits: {listing(changed, most=4)}."
