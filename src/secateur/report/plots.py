"""The shapes that every figure is made of: bars, lines, a histogram, a heat map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from secateur.report.canvas import ACCENT, FONT, GRID, INK, MUTED, SURFACE, WARN, draw
from secateur.report.words import compact, percent

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_MARKERS = "osD^vP"
_DASHES = ("-", (0, (4, 2)), (0, (1, 1.6)), (0, (6, 2, 1, 2)))
_MARK_LINE = 14.0
"""Height of the text of a mark, in points."""
_MARK_REACH = 0.35
"""How much of the axis the text of a mark may take."""
_MAX_MARKED_POINTS = 15
_MAX_LABELLED_COLUMNS = 12


@dataclass(frozen=True)
class Bar:
    """One row of a bar chart.

    Args:
        name: Left of the bar.
        value: Where the bar ends; None draws none.
        text: Right of the bar, usually the value.
        colour: One of the stand-ins of `secateur.report.canvas`.
        interval: Ends of a whisker.
        faint: Draw a pale bar, for what is only a step on the way.
        warn: Write the text in the colour of warnings.
    """

    name: str
    value: float | None
    text: str
    colour: str = ACCENT
    interval: tuple[float, float] | None = None
    faint: bool = False
    warn: bool = False


@dataclass(frozen=True)
class Mark:
    """A reference: a dashed line at `value` with `text` at its end."""

    value: float
    text: str


@dataclass(frozen=True)
class Line:
    """One curve.

    Args:
        name: In the legend.
        x: Places along the horizontal axis.
        y: Values; None leaves a gap.
        colour: One of the stand-ins of `secateur.report.canvas`.
        index: Position in the legend; tells marker and dashes.
        highlight: Index of a point to ring.
        spread: A (low, high) pair for each point.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    colour: str
    index: int = 0
    highlight: int | None = None
    spread: Sequence[tuple[float, float]] = field(default=())


def bars(
    key: str,
    label: str,
    rows: Sequence[Bar],
    *,
    limits: tuple[float, float],
    axis: str = "",
    marks: Sequence[Mark] = (),
    fraction: bool = False,
    pitch: float = 21.0,
) -> Markup:
    """Horizontal bars from zero, names to the left and values in a column to the right.

    Args:
        key: As in `draw`.
        label: As in `draw`.
        rows: From top to bottom.
        limits: Ends of the value axis.
        axis: What the value axis counts; empty hides the axis.
        marks: Reference lines.
        fraction: The value axis shows percent.
        pitch: Height of a row in points.
    """
    lines = _lines_of_text(marks, limits)

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for y, row in enumerate(rows):
            _bar(axes, y, row, limits)
        axes.set_yticks(range(len(rows)), [row.name for row in rows])
        axes.tick_params("y", length=0, labelcolor=INK)
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.set_xlim(*limits)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        for mark, text_line in zip(marks, lines, strict=True):
            axes.axvline(mark.value, color=INK, linewidth=1, linestyle=(0, (4, 3)))
            axes.annotate(
                mark.text,
                (mark.value, 1),
                xycoords=axes.get_xaxis_transform(),
                xytext=(0, 3 + _MARK_LINE * text_line),
                textcoords="offset points",
                ha=_towards_middle(mark.value, limits),
                color=MUTED,
                fontsize=FONT - 1.5,
            )
        if axis:
            axes.set_xlabel(axis)
            axes.tick_params("x", length=0)
            if fraction:
                axes.xaxis.set_major_formatter(whole_percent)
        else:
            axes.set_xticks([])

    above = _MARK_LINE * (max(lines, default=-1) + 1)
    return draw(key, label, pitch * len(rows) + (32 if axis else 8) + above, paint)


def _lines_of_text(marks: Sequence[Mark], limits: tuple[float, float]) -> list[int]:
    """Which line above the bars the text of each mark stands in: of those close together each has its own."""
    lines = dict[Mark, int]()
    before: Mark | None = None
    for mark in sorted(marks, key=lambda m: m.value):
        is_close = before is not None and mark.value - before.value < _MARK_REACH * (limits[1] - limits[0])
        lines[mark] = lines[before] + 1 if before is not None and is_close else 0
        before = mark
    return [lines[mark] for mark in marks]


def _bar(axes: Axes, y: int, row: Bar, limits: tuple[float, float]) -> None:
    low, high = limits
    axes.barh(y, high - low, left=low, height=0.66, color=GRID, alpha=0.45)
    if row.value is not None:
        axes.barh(y, row.value, height=0.66, color=row.colour, alpha=0.5 if row.faint else 1)
    if row.interval is not None:
        for colour, width in ((SURFACE, 3.0), (INK, 1.2)):  # the rim keeps it visible on any bar
            axes.plot(row.interval, (y, y), "-|", color=colour, linewidth=width, markersize=5, mew=width)
    axes.text(
        1.02,
        y,
        row.text,
        transform=axes.get_yaxis_transform(),
        va="center",
        fontsize=FONT - 0.5,
        color=WARN if row.warn else INK if row.value is not None else MUTED,
        fontweight="bold" if row.warn else "normal",
    )


def _towards_middle(value: float, limits: tuple[float, float]) -> str:
    """Text that starts near the middle may be centred; near an end it must grow inwards."""
    place = (value - limits[0]) / (limits[1] - limits[0])
    return "left" if place < 0.2 else "right" if place > 0.8 else "center"


def whole_percent(value: float, _position: float) -> str:
    """A tick at a fraction, as percent."""
    return f"{100 * value:.4g}%"


def lines(
    key: str,
    label: str,
    curves: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    fraction: bool = False,
    x_axis: Literal["whole", "number", "percent"] = "whole",
    mark: Mark | None = None,
) -> Markup:
    """Curves over a shared axis; colour, marker and dashes tell them apart.

    Args:
        key: As in `draw`.
        label: As in `draw`.
        curves: In the order of the legend.
        x_label: What the horizontal axis counts.
        y_label: What the vertical axis counts.
        fraction: The vertical axis shows percent.
        x_axis: The horizontal axis has ticks at whole numbers, or at every x that occurs (as percent).
        mark: A horizontal reference line.
    """

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for curve in curves:
            _line(axes, curve, marked=max(len(curve.y) for curve in curves) <= _MAX_MARKED_POINTS)
        axes.grid(axis="y")
        axes.tick_params(length=0)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.spines["left"].set_visible(False)
        axes.margins(x=0.04, y=0.08)
        if fraction:
            axes.yaxis.set_major_formatter(whole_percent)
        if x_axis == "whole":
            axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        else:
            places = sorted({x for curve in curves for x in curve.x})
            shown = [f"{x:g}" if x_axis == "number" else f"{round(100 * x, 1):g}%" for x in places]
            axes.set_xticks(places, shown)
        if mark is not None:
            axes.axhline(mark.value, color=INK, linewidth=1, linestyle=(0, (4, 3)))
            axes.annotate(
                mark.text,
                (1, mark.value),
                xycoords=axes.get_yaxis_transform(),
                xytext=(0, 3),
                textcoords="offset points",
                ha="right",
                color=MUTED,
                fontsize=FONT - 1.5,
            )
        if fraction:
            low, high = axes.get_ylim()
            axes.set_ylim(low, min(high, 1 + 0.1 * (1 - low)))  # room for a marker at 100 %, and no more
            axes.set_yticks([tick for tick in axes.get_yticks() if low <= tick <= min(high, 1.0)])
        if len(curves) > 1:
            figure.legend(loc="outside upper left", ncols=columns, handlelength=2.2, columnspacing=1.2)

    longest = max(len(curve.name) for curve in curves)
    columns = min(len(curves), 1 if longest > 19 else 2 if longest > 11 else 3)
    n_rows = math.ceil(len(curves) / columns)
    return draw(key, label, 200.0 + 14.0 * n_rows, paint)  # in points: the axes, and the rows of the legend


def _line(axes: Axes, curve: Line, *, marked: bool) -> None:
    y = [math.nan if value is None else value for value in curve.y]
    marker = _MARKERS[curve.index % len(_MARKERS)] if marked else ""
    style = _DASHES[(curve.index // len(_MARKERS) if marked else curve.index) % len(_DASHES)]
    axes.plot(curve.x, y, color=curve.colour, linestyle=style, marker=marker, label=curve.name)
    for x, (low, high) in zip(curve.x, curve.spread, strict=False):
        axes.vlines(x, low, high, color=curve.colour, linewidth=1.2)
    if curve.highlight is not None:
        axes.plot(
            [curve.x[curve.highlight]],
            [y[curve.highlight]],
            "o",
            markersize=10,
            markerfacecolor="none",
            markeredgecolor=curve.colour,
            markeredgewidth=1.6,
        )


def histogram(
    key: str,
    label: str,
    edges: Sequence[float],
    counts: Sequence[int],
    *,
    outlines: Sequence[tuple[str, Sequence[int], str]] = (),
    threshold: float | None = None,
) -> Markup:
    """Counts over log10 bins as an area, others as outlines, with the removed side of `threshold` paled.

    Args:
        key: As in `draw`.
        label: As in `draw`.
        edges: Bin edges as log10, k + 1 of them.
        counts: k counts, drawn as the area.
        outlines: ``(name, k counts, colour)`` for each further distribution.
        threshold: log10 of the score below which weights were removed.
    """

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.stairs(counts, edges, fill=True, color=ACCENT, alpha=0.8, label="the score that decides")
        if threshold is not None:
            axes.axvspan(edges[0], threshold, color=SURFACE, alpha=0.65, linewidth=0)
            axes.axvline(threshold, color=INK, linewidth=1.4)
            for text, place, side in (("removed ←", -4, "right"), ("→ kept", 4, "left")):
                axes.annotate(
                    text,
                    (threshold, 1),
                    xycoords=axes.get_xaxis_transform(),
                    xytext=(place, 3),
                    textcoords="offset points",
                    ha=side,
                    fontsize=FONT - 1,
                )
        for (name, values, colour), style in zip(outlines, ("-", (0, (4, 2))), strict=False):
            axes.stairs(values, edges, color=colour, linewidth=1.5, linestyle=style, label=name)
        axes.set_xlim(edges[0], edges[-1])
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
        axes.xaxis.set_major_formatter(_power_of_ten)
        axes.yaxis.set_major_formatter(lambda value, _: compact(value))
        axes.tick_params(length=0)
        axes.grid(axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("score (logarithmic)")
        axes.set_ylabel("number of weights")
        if outlines:
            figure.legend(loc="outside upper left", ncols=3, handlelength=1.8, columnspacing=1.2)

    return draw(key, label, 225, paint)


def _power_of_ten(value: float, _position: float) -> str:
    return "10" + f"{value:.0f}".translate(_SUPERSCRIPT)


def heat(
    key: str,
    label: str,
    columns: Sequence[str],
    rows: Sequence[str],
    values: Sequence[Sequence[float | None]],
    *,
    column_label: str,
    row_label: str,
) -> Markup:
    """A grid of fractions: the fuller the colour, the higher; the best of each column is framed.

    Args:
        key: As in `draw`.
        label: As in `draw`.
        columns: Names along the bottom.
        rows: Names along the left, from top to bottom.
        values: One sequence a row, in [0, 1]; None leaves the cell empty.
        column_label: What the columns are.
        row_label: What the rows are.
    """
    known = [value for line in values for value in line if value is not None]
    low, high = min(known, default=0.0), max(known, default=1.0)

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for x in range(len(columns)):
            column = [value for line in values if (value := line[x]) is not None]
            best = max(column) if len(set(column)) > 1 else None
            for y, line in enumerate(values):
                _cell(axes, x, y, line[x], (low, high), framed=line[x] == best)
                if line[x] is not None and len(columns) <= _MAX_LABELLED_COLUMNS:
                    text = percent(line[x]).split()[0]
                    axes.text(x, y, text, ha="center", va="center", fontsize=FONT - 1)
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.tick_params(length=0)
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.set_xlabel(column_label)
        axes.set_ylabel(row_label)

    return draw(key, label, 50 + 21 * len(rows), paint)


def _cell(
    axes: Axes, x: int, y: int, value: float | None, ends: tuple[float, float], *, framed: bool
) -> None:
    if value is None:
        return
    low, high = ends
    share = (value - low) / (high - low) if high > low else 1.0
    corner = (x - 0.47, y - 0.45)
    axes.add_patch(Rectangle(corner, 0.94, 0.9, color=ACCENT, alpha=0.06 + 0.5 * share, linewidth=0))
    if framed:
        axes.add_patch(Rectangle(corner, 0.94, 0.9, fill=False, edgecolor=INK, linewidth=1.2))
