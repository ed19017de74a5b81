"""Paired differences with their intervals as a figure: one row a method, one column a sparsity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from secateur.report.arena.axes import name_rows, row_lines, rows_by_family, whole_points
from secateur.report.arena.grid import Grid, Method
from secateur.report.arena.schema import STAGES
from secateur.report.arena.tables import difference_table
from secateur.report.arena.words import count, zeros
from secateur.report.canvas import BLUE, FONT, GRID, INK, MUTED, ORANGE, WIDE, draw
from secateur.report.page import Panel
from secateur.statistics import Estimate

_COARSE = (-100, -10, -1, 0, 1, 10, 100)
_FINE = (-3, -1, 0, 1, 3)
_STYLES = {1: (BLUE, "^"), 0: (MUTED, "o"), -1: (ORANGE, "v")}
HOW = (
    "A mark right of the line is better than {reference}; its bar is the 95 % interval of the paired "
    "difference. Filled triangles have intervals that exclude 0; hollow rings do not, or have none. "
    "The axis is even between −1 and 1 point (shaded) and logarithmic beyond."
)


@dataclass(frozen=True)
class Differences:
    """What one row of the figure shows.

    Args:
        row: A method, or the title over some.
        values: A difference for each column, None where there is none; empty for a title.
    """

    row: Method | str
    values: tuple[Estimate | None, ...] = ()


def difference_panel(grid: Grid) -> Panel:
    """All methods against the reference, at every sparsity and over all of them."""
    reference, stage = grid.reference, grid.final
    title = f"Against {reference.label}, {STAGES[stage]}"
    others = [method for method in grid.competitors if method != reference]
    rows = [
        Differences(row)
        if isinstance(row, str)
        else Differences(
            row,
            (
                *(grid.difference(row.key, reference.key, stage, sparsity) for sparsity in grid.sparsities),
                grid.overall_difference(row.key, reference.key, stage),
            ),
        )
        for row in rows_by_family(others)
    ]
    if not any(value for row in rows for value in row.values):
        return Panel("differences", title, absent=f"there is no finished pair with {reference.label} yet")
    finding = _finding(rows, reference.label)
    columns = [*map(zeros, grid.sparsities), "all"]
    return Panel(
        "differences",
        title,
        finding,
        HOW.format(reference=reference.label),
        forest("differences", f"{title}. {finding}", rows, columns),
        table=difference_table(grid, grid.competitors),
        wide=True,
    )


def _finding(rows: Sequence[Differences], reference: str) -> str:
    found = [value for row in rows for value in row.values[:-1] if value is not None]
    signs = [value.sign for value in found if value.interval is not None]
    if not signs:
        return f"{count(len(found), 'difference')} and no interval: there are no repeats to judge by."
    rest = len(found) - len(signs)
    single = f" Of {rest} more, of a single seed each, none can be judged." if rest else ""
    return (
        f"Of {count(len(signs), 'difference')}, {signs.count(1)} are clearly above {reference}, "
        f"{signs.count(-1)} below, and {signs.count(0)} are not told apart. If no method differed at all, "
        f"about {round(0.05 * len(signs))} of {len(signs)} intervals would still exclude 0.{single}"
    )


def forest(key: str, label: str, rows: Sequence[Differences], columns: Sequence[str]) -> Markup:
    """Estimates with their intervals around a line at 0, columns side by side on the same axis.

    Args:
        key: As in `draw`.
        label: As in `draw`.
        rows: From top to bottom.
        columns: Their headings, as many as each row has values.
    """

    def paint(figure: Figure) -> None:
        panels = figure.subplots(1, len(columns), sharex=True, sharey=True, squeeze=False)[0]
        limits = _limits([value for row in rows for value in row.values if value is not None])
        for index, (axes, column) in enumerate(zip(panels, columns, strict=True)):
            _column(axes, [(y, row.values[index]) for y, row in enumerate(rows) if row.values])
            axes.set_title(column, fontsize=FONT - 0.5, color=INK)
            axes.spines[["left", "bottom"]].set_visible(False)
        panels[0].set_xscale("symlog", linthresh=1, linscale=0.75)
        panels[0].set_xlim(*limits)
        ticks = _FINE if max(-limits[0], limits[1]) < 10 else _COARSE
        if len(columns) > 4:  # no room
            ticks = [tick for tick in ticks if abs(tick) != 1]
        panels[0].set_xticks([tick for tick in ticks if limits[0] <= tick <= limits[1]])
        panels[0].xaxis.set_major_formatter(whole_points)
        panels[0].minorticks_off()
        name_rows(panels[0], [row.row for row in rows])
        for axes in panels:
            axes.tick_params("both", length=0)
            axes.tick_params("x", labelsize=FONT - 3)
        figure.supxlabel("difference in percentage points", fontsize=FONT - 1, color=MUTED)

    return draw(key, label, 15.0 * len(rows) + 52, paint, width=WIDE)


def _column(axes: Axes, values: Sequence[tuple[int, Estimate | None]]) -> None:
    axes.axvspan(-1, 1, color=GRID, alpha=0.35, linewidth=0)
    axes.axvline(0, color=INK, linewidth=0.9)
    row_lines(axes, [y for y, _ in values])
    for y, found in values:
        if found is None:
            continue
        colour, marker = _STYLES[found.sign]
        if found.interval is not None:
            axes.plot([100 * end for end in found.interval], (y, y), color=colour, linewidth=1.3)
        axes.plot(
            [100 * found.mean],
            [y],
            marker,
            markersize=4.6,
            color=colour,
            markerfacecolor=colour if found.sign else "none",
            markeredgewidth=1.1,
        )


def _limits(values: Sequence[Estimate]) -> tuple[float, float]:
    ends = [100 * end for value in values for end in (value.interval or (value.mean,))]
    return min(-1.6, 1.25 * min(ends)), max(1.6, 1.25 * max(ends))
