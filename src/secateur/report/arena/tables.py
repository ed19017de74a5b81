"""Accuracies and paired differences of a suite as tables, for the page and as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from secateur.report.arena.axes import rows_by_family
from secateur.report.arena.grid import Grid, Method
from secateur.report.arena.schema import STAGES
from secateur.report.arena.words import SIGNS, budget, count, interval, origin, spread, zeros
from secateur.report.page import Table
from secateur.report.words import SPACE
from secateur.statistics import Estimate

Mark = Literal["best", "above", "below"]

LEGEND = (
    "▲ ▼: above or below {reference} with a 95 % interval of the paired difference that excludes 0; "
    "bold: the highest mean of all that compete, which ablations and controls do not"
)


def accuracy_table(grid: Grid, stage: str, methods: Sequence[Method]) -> Table:
    """Mean ± standard deviation by method and sparsity, and how each stands against the reference.

    Args:
        grid: The suite.
        stage: Where the accuracy is read.
        methods: One row each, in order of family.
    """
    sparsities = _with_cells(grid, stage, methods)
    best = {sparsity: _best(grid, stage, sparsity) for sparsity in sparsities}

    def cell(method: Method, sparsity: float) -> tuple[str, Mark | None]:
        found = grid.accuracy(method.key, stage, sparsity)
        against = grid.difference(method.key, grid.reference.key, stage, sparsity)
        sign = against.sign if against is not None else 0
        text = f"{spread(found)}{_short_of_seeds(grid, found)}{SPACE}{SIGNS[sign]}".rstrip()
        leads = found is not None and found.mean == best[sparsity] and method in grid.competitors
        mark = "best" if leads else _MARKS[sign]
        return text, mark

    n_seeds = len(grid.seeds)
    what = f"mean ± standard deviation over {n_seeds} seeds" if n_seeds > 1 else "a single seed"
    return _table(
        f"Test accuracy in %, {STAGES[stage]}: {what}. " + LEGEND.format(reference=grid.reference.label),
        methods,
        sparsities,
        cell,
    )


def difference_table(grid: Grid, methods: Sequence[Method]) -> Table:
    """Paired differences from the reference at the final stage with their intervals, and their sum of signs.

    Args:
        grid: The suite.
        methods: One row each, in order of family; the reference is left out.
    """
    stage, reference = grid.final, grid.reference
    others = [method for method in methods if method != reference]
    sparsities = _with_cells(grid, stage, others)

    def cell(method: Method, sparsity: float) -> tuple[str, Mark | None]:
        found = grid.difference(method.key, reference.key, stage, sparsity)
        return interval(found), _MARKS[found.sign if found is not None else 0]

    def overall(method: Method) -> str:
        return interval(grid.overall_difference(method.key, reference.key, stage))

    def tally(method: Method) -> str:
        found = [grid.difference(method.key, reference.key, stage, sparsity) for sparsity in sparsities]
        signs = [difference.sign for difference in found if difference is not None and difference.interval]
        return f"{signs.count(1)} / {signs.count(0)} / {signs.count(-1)}"

    return _table(
        f"Test accuracy {STAGES[stage]} less that of {reference.label}, in points, paired by seed: mean "
        "[95 % interval]. The last columns average the sparsities of a seed first, and count at how many a "
        "method is above / not told apart / below, where there are two seeds",
        others,
        sparsities,
        cell,
        (("all sparsities", overall), ("▲ / · / ▼", tally)),
    )


def accuracy_markdown(grid: Grid) -> str:
    """The accuracies of the final stage and the paired differences as Markdown, for a document.

    Controls and ablations stand below the methods.
    """
    methods = [method for method in grid.methods if grid.cells_of(method.key)]
    seeds = count(len(grid.seeds), "seed")
    done, planned = len(grid.cells), grid.content["n_planned"]
    cells = f"{done} cells" if done == planned else f"**{done} of {planned} cells**, the rest is not run yet"
    intro = (
        f"Suite `{grid.suite['name']}`, {budget(grid)}, {seeds}, {cells}. "
        f"Test accuracy in %, {STAGES[grid.final]}: mean ± standard deviation. "
        f"{LEGEND.format(reference=grid.reference.label)}."
    )
    parts = [intro, markdown(accuracy_table(grid, grid.final, methods))]
    differences = difference_table(grid, methods)
    if differences.rows:
        parts += [
            "<details><summary>Paired differences with their intervals</summary>",
            f"{differences.caption}.",
            markdown(differences),
            "</details>",
        ]
    return "\n\n".join([*parts, f"<sub>{origin(grid)}.</sub>"])


def markdown(table: Table) -> str:
    """A table as Markdown without its caption; all columns but the first are right-aligned."""
    width = len(table.head)
    lines = [table.head, ("---", *["--:"] * (width - 1))]
    for y, row in enumerate(table.rows):
        if len(row) == 1:
            lines.append((f"*{_escaped(row[0])}*", *[""] * (width - 1)))
        else:
            cells = [_escaped(text) for text in row]
            lines.append(
                tuple(
                    f"**{text}**" if table.marks.get((y, x)) == "best" else text
                    for x, text in enumerate(cells)
                )
            )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


_MARKS: dict[int, Mark | None] = {1: "above", 0: None, -1: "below"}


def _table(
    caption: str,
    methods: Sequence[Method],
    sparsities: Sequence[float],
    cell: Callable[[Method, float], tuple[str, Mark | None]],
    extra: Sequence[tuple[str, Callable[[Method], str]]] = (),
) -> Table:
    rows: list[tuple[str, ...]] = []
    marks: dict[tuple[int, int], Mark] = {}
    for y, row in enumerate(rows_by_family(methods)):
        if isinstance(row, str):
            rows.append((row,))
            continue
        cells = [cell(row, sparsity) for sparsity in sparsities]
        rows.append((row.label, *(text for text, _ in cells), *(write(row) for _, write in extra)))
        marks.update({(y, x): mark for x, (_, mark) in enumerate(cells, start=1) if mark is not None})
    head = ("zeros of prunable weights", *map(zeros, sparsities), *(name for name, _ in extra))
    return Table(caption, head, tuple(rows), marks)


def _with_cells(grid: Grid, stage: str, methods: Sequence[Method]) -> list[float]:
    """Sparsities at which one of the methods has a cell; a control may have its own."""
    asked = {cell["sparsity"]["asked"] for method in methods for cell in grid.cells_of(method.key)}
    return sorted(s for s in asked if any(grid.accuracies(m.key, stage, s) for m in methods))


def _best(grid: Grid, stage: str, sparsity: float) -> float | None:
    """The highest mean of all that compete, where there are several to choose from."""
    found = [grid.accuracy(m.key, stage, sparsity) for m in grid.competitors]
    means = [accuracy.mean for accuracy in found if accuracy is not None]
    return max(means) if len(means) > 1 else None


def _short_of_seeds(grid: Grid, found: Estimate | None) -> str:
    return f" (n = {found.n})" if found is not None and found.n < len(grid.seeds) else ""
