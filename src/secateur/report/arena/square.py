"""Ablations: the 2×2 of the teacher in the score and KD in the recovery, and all others.

``two_by_two`` of the suite names four methods: ``[[A, B], [C, D]]``. The first row scores without the
teacher, the second with it; the first column recovers without KD, the second with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

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
    whole_points,
    write_tags,
)
from secateur.report.arena.curves import curve_of, draw_curve
from secateur.report.arena.grid import Grid
from secateur.report.arena.schema import STAGES
from secateur.report.arena.tables import accuracy_table
from secateur.report.arena.words import at, interval, spread, zeros
from secateur.report.canvas import INK, draw
from secateur.report.page import Notice, Panel, Section, Table
from secateur.report.plots import whole_percent
from secateur.report.words import listing
from secateur.statistics import Estimate, estimate

Four = tuple[float, float, float, float]
Keys = tuple[str, str, str, str]

_EFFECTS: Mapping[str, Callable[[Four], float]] = {
    "teacher in the score": lambda f: (f[2] - f[0] + f[3] - f[1]) / 2,
    "KD in recovery": lambda f: (f[1] - f[0] + f[3] - f[2]) / 2,
    "both, beyond that": lambda f: f[3] - f[2] - f[1] + f[0],
}
"""Main effects and interaction of a 2×2 design, from the accuracies A, B, C, D."""
_CORNERS = ("neither", "KD only", "teacher only", "teacher and KD")
"""Names of A, B, C and D for the reader."""


def square_section(grid: Grid) -> Section | None:
    """Accuracies and effects of the 2×2, and all other ablations; None if the suite has neither."""
    keys = four_methods(grid)
    others = [
        m
        for m in grid.methods
        if m.family == "ablation" and grid.cells_of(m.key) and m.key not in (keys or ())
    ]
    if keys is None and not others:
        return None
    table = (accuracy_table(grid, grid.final, others),) if others else ()
    if keys is None:
        return Section("Ablations", "Parts of a method left out or replaced, one at a time.", (), table)
    return Section(
        "The teacher in the score, and in the recovery",
        "A gain may come from the choice of weights or from the training after it. Here the two are apart.",
        (_accuracy_panel(grid, keys), _effects_panel(grid, keys)),
        table,
    )


def four_methods(grid: Grid) -> Keys | None:
    """Keys of A, B, C and D; None if the suite names no 2×2."""
    square = grid.suite.get("two_by_two")
    if square is None:
        return None
    (a, b), (c, d) = square
    return a, b, c, d


def square_notices(grid: Grid) -> tuple[Notice, ...]:
    """A warning for each column of the 2×2 that does not recover as it should."""
    keys = four_methods(grid)
    if keys is None:
        return ()
    wrong = [
        f"{grid.method(key).label} recovers with KD weight {weight:g}"
        for index, key in enumerate(keys)
        for weight in sorted({_kd_weight(cell) for cell in grid.cells_of(key)})
        if (weight > 0) != (index % 2 == 1)
    ]
    if not wrong:
        return ()
    text = f"{listing(wrong)}. The first column must recover without KD and the second with it."
    return (Notice("warning", "The 2×2 is not what it says", text),)


def _kd_weight(cell: Mapping[str, Any]) -> float:
    return (cell["about"].get("recovery") or {}).get("kd_weight") or 0.0


def effect(grid: Grid, keys: Keys, name: str, sparsity: float) -> Estimate | None:
    """An effect over the seeds that have all four cells at a sparsity; None if no seed has."""
    found = [grid.accuracies(key, grid.final, sparsity) for key in keys]
    fours = [
        (found[0][seed], found[1][seed], found[2][seed], found[3][seed])
        for seed in found[0]
        if all(seed in accuracies for accuracies in found)
    ]
    return estimate([_EFFECTS[name](four) for four in fours]) if fours else None


def _accuracy_panel(grid: Grid, keys: Keys) -> Panel:
    title = "With and without the teacher"
    curves = [curve_of(grid, grid.method(key), grid.final) for key in keys]
    if not all(curves):
        return Panel("square", title, absent="not all four methods have a finished cell")

    height = height_for(_CORNERS)

    def paint(figure: Figure) -> None:
        axes = axes_with_tags(figure, height)
        tags: list[Tag] = []
        for index, curve in enumerate(curves):
            colour = COLOURS[index // 2]
            draw_curve(axes, curve, colour, MARKERS[index // 2], dashed=index % 2 == 0)
            tags.append(Tag(_CORNERS[index], place(curve[-1][0]), curve[-1][1].mean, colour))
        axes.grid(axis="y")
        axes.yaxis.set_major_formatter(whole_percent)
        make_room(axes, _CORNERS)
        sparsity_axis(axes, grid.sparsities)
        write_tags(axes, tags, height)

    finding = "; ".join(
        f"{name} is {grid.method(key).label}" for name, key in zip(_CORNERS, keys, strict=True)
    )
    finding = finding[0].upper() + finding[1:]
    return Panel(
        "square",
        title,
        f"{finding}.",
        "Higher is better: colour tells the score, dashes a recovery without KD. Bands are ± one standard "
        "deviation over seeds.",
        draw("square", f"{title}, test accuracy {STAGES[grid.final]}. {finding}.", height, paint),
        table=Table(
            f"Test accuracy in %, {STAGES[grid.final]}: mean ± standard deviation",
            ("zeros", *_CORNERS),
            tuple(
                (zeros(s), *(spread(grid.accuracy(key, grid.final, s)) for key in keys))
                for s in grid.sparsities
            ),
        ),
    )


def _effects_panel(grid: Grid, keys: Keys) -> Panel:
    title = "What each brings"
    effects = {
        name: [(s, found) for s in grid.sparsities if (found := effect(grid, keys, name, s)) is not None]
        for name in _EFFECTS
    }
    if not all(effects.values()):
        return Panel("effects", title, absent="at no sparsity has a seed all four cells finished")
    finding = _finding(effects)

    height = height_for([*effects])

    def paint(figure: Figure) -> None:
        axes = axes_with_tags(figure, height)
        axes.axhline(0, color=INK, linewidth=0.9)
        tags: list[Tag] = []
        for index, (name, found) in enumerate(effects.items()):
            x = [place(sparsity) + 0.018 * (index - 1) for sparsity, _ in found]
            y = [100 * value.mean for _, value in found]
            colour = COLOURS[index]
            axes.plot(x, y, color=colour, marker=MARKERS[index], markersize=4, linewidth=1.6)
            for at_x, (_, value) in zip(x, found, strict=True):
                if value.interval is not None:
                    low, high = value.interval
                    axes.vlines(at_x, 100 * low, 100 * high, color=colour, linewidth=1.1)
            tags.append(Tag(name, x[-1], y[-1], colour))
        axes.grid(axis="y")
        axes.yaxis.set_major_formatter(whole_points)
        make_room(axes, [*effects])
        sparsity_axis(axes, grid.sparsities)
        write_tags(axes, tags, height)

    return Panel(
        "effects",
        title,
        finding,
        "In percentage points: above the line is a gain. An effect is the mean over both settings of the "
        "other; “beyond that” is what both bring together beyond their sum. Bars are 95 % intervals.",
        draw("effects", f"{title}. {finding}", height, paint),
        table=Table(
            "Effects in points: mean [95 % interval]",
            ("zeros", *_EFFECTS),
            tuple(
                (zeros(s), *(interval(effect(grid, keys, name, s)) for name in _EFFECTS))
                for s in grid.sparsities
            ),
        ),
    )


def _finding(effects: Mapping[str, list[tuple[float, Estimate]]]) -> str:
    parts: list[str] = []
    for name, found in list(effects.items())[:2]:
        gains = [sparsity for sparsity, value in found if value.sign > 0]
        harms = [sparsity for sparsity, value in found if value.sign < 0]
        said = [f"{verb} at {at(places)}" for verb, places in (("helps", gains), ("harms", harms)) if places]
        parts.append(f"{name} {' and '.join(said) or 'has no effect that its interval sets apart from 0'}.")
    return " ".join(part[0].upper() + part[1:] for part in parts)
