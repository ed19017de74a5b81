"""Accuracy against sparsity, one figure a family."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from secateur.report.arena.axes import (
    COLOURS,
    MARKERS,
    Tag,
    axes_with_tags,
    height_for,
    make_room,
    place,
    sparsity_axis,
    write_tags,
)
from secateur.report.arena.grid import Grid, Method
from secateur.report.arena.schema import FAMILIES, STAGES
from secateur.report.arena.tables import accuracy_table
from secateur.report.arena.words import at
from secateur.report.canvas import FONT, INK, MUTED, draw
from secateur.report.page import Panel
from secateur.report.plots import whole_percent
from secateur.report.words import percent
from secateur.statistics import Estimate

_MOST = 7
"""Most lines that one figure names."""

Curve = Sequence[tuple[float, Estimate]]


def curve_panels(grid: Grid, stage: str) -> tuple[Panel, ...]:
    """A panel for each family of methods that has cells at `stage`, all on the same axes.

    Numbers are folded below each, but for the final stage, whose table stands open on the page.
    """
    curves = {m: curve for m in grid.competitors if (curve := curve_of(grid, m, stage))}
    if not curves:
        return (
            Panel(f"{stage}-none", f"Accuracy {STAGES[stage]}", absent="no method was run to this stage"),
        )
    return tuple(
        _panel(grid, stage, title, members, curves, index)
        for index, (title, members) in enumerate(_groups(list(curves)))
    )


def curve_of(grid: Grid, method: Method, stage: str) -> Curve:
    """The accuracy of a method at each sparsity at which it has one."""
    found = ((sparsity, grid.accuracy(method.key, stage, sparsity)) for sparsity in grid.sparsities)
    return [(sparsity, accuracy) for sparsity, accuracy in found if accuracy is not None]


def _groups(methods: Sequence[Method]) -> Iterator[tuple[str, Sequence[Method]]]:
    """Families, and large ones in parts of nearly equal size."""
    for family, title in FAMILIES.items():
        members = [method for method in methods if method.family == family]
        n_parts = -(-len(members) // _MOST)
        for part in range(n_parts):
            start, end = (len(members) * k // n_parts for k in (part, part + 1))
            number = f" ({part + 1} of {n_parts})" if n_parts > 1 else ""
            yield f"{title}{number}", members[start:end]


def _panel(
    grid: Grid,
    stage: str,
    title: str,
    members: Sequence[Method],
    curves: dict[Method, Curve],
    index: int,
) -> Panel:
    finding = _finding(grid, stage, members)
    reference = grid.reference
    named = [*members, *([reference] if reference in curves and reference not in members else [])]
    height = height_for([method.label for method in named])

    def paint(figure: Figure) -> None:
        axes = axes_with_tags(figure, height)
        others = [m for m in curves if m not in members and m != reference]
        for method in others:
            axes.plot(*_line(curves[method]), color=MUTED, alpha=0.22, linewidth=0.9)
        tags: list[Tag] = []
        styles = zip(cycle(COLOURS), cycle(MARKERS), strict=False)
        for method in named:
            colour, marker = (INK, "") if method == reference else next(styles)
            draw_curve(axes, curves[method], colour, marker, dashed=method == reference)
            sparsity, end = curves[method][-1]
            tags.append(Tag(method.label, place(sparsity), end.mean, colour))
        axes.set_ylim(*_limits(grid, curves))
        _dense_line(axes, grid)
        axes.grid(axis="y")
        axes.yaxis.set_major_formatter(whole_percent)
        make_room(axes, [method.label for method in curves])
        sparsity_axis(axes, grid.sparsities)
        axes.margins(x=0.04)
        write_tags(axes, tags, height)

    key = f"{stage}-{index}"
    label = f"{title}: test accuracy {STAGES[stage]} against sparsity. {finding}"
    table = None if stage == grid.final else accuracy_table(grid, stage, members)
    return Panel(key, title, finding, _HOW, draw(key, label, height, paint), table=table)


_HOW = (
    "Higher is better. Bands are ± one standard deviation over seeds; the dashed line is the reference, "
    "pale lines are the methods of the other figures."
)


def _line(curve: Curve) -> tuple[list[float], list[float]]:
    return [place(sparsity) for sparsity, _ in curve], [accuracy.mean for _, accuracy in curve]


def draw_curve(axes: Axes, curve: Curve, colour: str, marker: str, *, dashed: bool) -> None:
    """A curve with its band of ± one standard deviation."""
    x, y = _line(curve)
    low = [accuracy.mean - (accuracy.std or 0.0) for _, accuracy in curve]
    high = [accuracy.mean + (accuracy.std or 0.0) for _, accuracy in curve]
    if len(curve) > 1:
        axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
    else:
        axes.vlines(x, low, high, color=colour, linewidth=1.2)
    style = (0, (4, 2)) if dashed else "-"
    width = 1.4 if dashed else 1.6
    axes.plot(x, y, color=colour, linestyle=style, linewidth=width, marker=marker or "o", markersize=4)


def _limits(grid: Grid, curves: dict[Method, Curve]) -> tuple[float, float]:
    """The same for every family, so that figures can be held beside each other."""
    points = [accuracy for curve in curves.values() for _, accuracy in curve]
    low = min(accuracy.mean - (accuracy.std or 0.0) for accuracy in points)
    high = max([accuracy.mean + (accuracy.std or 0.0) for accuracy in points] + list(grid.dense))
    margin = 0.06 * (high - low) or 0.01
    return low - margin, high + margin


def _dense_line(axes: Axes, grid: Grid) -> None:
    if not grid.dense:
        return
    mean = sum(grid.dense) / len(grid.dense)
    axes.axhline(mean, color=INK, linewidth=0.8, linestyle=(0, (1, 2)))
    axes.annotate(
        f"before the cut {percent(mean)}",
        (0, mean),
        xycoords=axes.get_yaxis_transform(),
        xytext=(2, 3),
        textcoords="offset points",
        color=MUTED,
        fontsize=FONT - 1.5,
    )


def _finding(grid: Grid, stage: str, members: Sequence[Method]) -> str:
    sparsity, reference = grid.spotlight, grid.reference
    found = [(grid.accuracy(m.key, stage, sparsity), m) for m in members]
    known = [(accuracy.mean, m) for accuracy, m in found if accuracy is not None]
    if not known:
        return f"None of these has a finished cell at {at([sparsity])}."
    mean, best = max(known, key=lambda pair: pair[0])
    leads = "is highest of these with" if len(known) > 1 else "has"
    text = f"At {at([sparsity])} {best.label} {leads} {percent(mean)}"
    base = grid.accuracy(reference.key, stage, sparsity)
    if best == reference or base is None:
        return f"{text}."
    return f"{text}; {reference.label} has {percent(base.mean)}."
