"""What each method cost beside what it reached."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from secateur.report.arena.axes import (
    COLOURS,
    MARKERS,
    Tag,
    axes_with_tags,
    height_for,
    make_room,
    name_rows,
    row_lines,
    rows_by_family,
    write_tags,
)
from secateur.report.arena.grid import Cell, Grid, Method
from secateur.report.arena.schema import FAMILIES, STAGES
from secateur.report.arena.words import at, count, spread
from secateur.report.canvas import BLUE, FONT, INK, MUTED, WIDE, draw
from secateur.report.page import Panel, Table
from secateur.report.plots import whole_percent
from secateur.report.words import ABSENT, duration, listing
from secateur.statistics import Estimate, estimate

_COSTS = {
    "score_s": "time to score",
    "train_s": "time to train",
    "total_s": "time in all",
    "epochs": "epochs",
}
_SHORTEST = 1e-3
"""Seconds under which times are drawn alike: a logarithmic axis has no 0."""
_ROUND_TIMES = [
    *(base * 10.0**power for power in range(-3, 1) for base in (1, 2, 5)),
    *(10, 20, 30, 60, 120, 180, 300, 600, 1200, 1800),
    *(3600.0 * base * 10**power for power in range(4) for base in (1, 2, 5)),
]
_BETTER = "Up and to the left is better; named marks are those whose means no other beats in both."
_IN_ALL = (
    f"{_BETTER} Times are of scoring, cutting and training, not of making the networks that all start from."
)
_TO_SCORE = f"{_BETTER} Where training is the same for all, this is what sets the methods apart."


def cost(grid: Grid, method: Method, key: str) -> Estimate | None:
    """Mean cost of a cell of a method at the spotlight; None where none was recorded."""
    cells = grid.cells_of(method.key, grid.spotlight)
    costs = [epochs_of(cell) if key == "epochs" else cell["cost"][key] for cell in cells]
    found = [cost for cost in costs if cost is not None]
    return estimate(found) if found else None


def epochs_of(cell: Cell) -> float | None:
    """Images that a cell trained on, in epochs: of its training, and of the distillation steps of its cut."""
    trained = cell["cost"]["epochs"]
    strategy = cell["about"].get("strategy") or {}
    recipe, n_train = strategy.get("recovery"), cell["data"].get("n_train")
    if trained is None or not recipe or not n_train:
        return trained
    # Null in files of earlier versions: as many as in the other stages.
    final = recipe["steps"] if recipe["final_steps"] is None else recipe["final_steps"]
    steps = (strategy["stages"] - 1) * recipe["steps"] + final
    return trained + steps * recipe["batch_size"] / n_train


def cost_panels(grid: Grid) -> tuple[Panel, ...]:
    """Accuracy against time, and every cost of every method."""
    reached = {
        method: accuracy
        for method in grid.competitors
        if (accuracy := grid.accuracy(method.key, grid.final, grid.spotlight)) is not None
    }
    return (
        _trade(grid, reached, "total_s", "Accuracy against time in all", _IN_ALL),
        _trade(grid, reached, "score_s", "Accuracy against time to score", _TO_SCORE),
        _costs(grid, reached),
    )


def frontier(places: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of (cost, accuracy) that no other beats in both, by rising cost."""
    kept: list[int] = []
    for index in sorted(range(len(places)), key=lambda i: (places[i][0], -places[i][1])):
        if not kept or places[index][1] > places[kept[-1]][1]:
            kept.append(index)
    return kept


def _trade(grid: Grid, reached: dict[Method, Estimate], key: str, title: str, how: str) -> Panel:
    fig = f"trade-{key.removesuffix('_s')}"
    timed = [(m, seconds) for m in reached if (seconds := cost(grid, m, key)) is not None]
    if not timed:
        return Panel(fig, title, absent="no such times were recorded")
    places = [(max(seconds.mean, _SHORTEST), reached[m].mean) for m, seconds in timed]
    front = frontier(places)
    names = [timed[index][0].label for index in front]
    finding = f"At {at([grid.spotlight])} nothing is both faster and better than {listing(names, 9)}."
    families = list(dict.fromkeys(m.family for m, _ in timed))
    legend = 14.0 * math.ceil(len(families) / 2) if len(families) > 1 else 0.0
    height = height_for(names) + legend

    def paint(figure: Figure) -> None:
        axes = axes_with_tags(figure, height, above=legend)
        for index, family in enumerate(families):
            own = [place for (m, _), place in zip(timed, places, strict=True) if m.family == family]
            x, y = zip(*own, strict=True)
            axes.plot(x, y, MARKERS[index], color=COLOURS[index], markersize=5.5, label=FAMILIES[family])
        axes.set_xscale("log")
        axes.margins(0.08)
        _seconds_axis(axes, most=4)
        axes.grid(axis="y")
        axes.yaxis.set_major_formatter(whole_percent)
        make_room(axes, [method.label for method in reached])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("time for one cell (logarithmic)")
        write_tags(axes, [Tag(timed[i][0].label, *places[i], MUTED) for i in front], height)
        if legend:
            figure.legend(loc="upper left", ncols=2, handlelength=1, columnspacing=1.2, borderaxespad=0)

    return Panel(fig, title, finding, how, draw(fig, f"{title}. {finding}", height, paint))


def _seconds_axis(axes: Axes, most: int) -> None:
    """Round times as ticks, at most so many; where no two lie on the axis, its ends."""
    low, high = axes.get_xlim()
    ticks = [tick for tick in _ROUND_TIMES if low <= tick <= high]
    ticks = ticks[:: math.ceil(len(ticks) / most)] if len(ticks) > 1 else [low, high]
    axes.set_xticks(ticks, [_shown_time(tick) for tick in ticks])
    axes.minorticks_off()
    axes.tick_params(length=0)


def _shown_time(seconds: float) -> str:
    for size, unit in ((3600, "h"), (60, "min"), (1, "s")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{1000 * seconds:.3g} ms"


def _costs(grid: Grid, reached: dict[Method, Estimate]) -> Panel:
    title = "What each method cost"
    measured: dict[str, Callable[[Method], Estimate | None]] = {
        name: lambda method, key=key: cost(grid, method, key)
        for key, name in _COSTS.items()
        if any(found.mean > 0 for method in reached if (found := cost(grid, method, key)) is not None)
    }
    if not measured:
        return Panel("cost", title, absent="no cost was recorded")
    rows = rows_by_family(list(reached))
    accuracy = f"accuracy, {at([grid.spotlight])}"
    columns = {accuracy: reached.get, **measured}

    def paint(figure: Figure) -> None:
        panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
        for axes, (name, read) in zip(panels, columns.items(), strict=True):
            found = [(y, read(row)) for y, row in enumerate(rows) if isinstance(row, Method)]
            _dots(axes, [(y, value) for y, value in found if value is not None])
            axes.set_title(name, fontsize=FONT - 0.5, color=INK)
            axes.spines[["left", "bottom"]].set_visible(False)
            if name == accuracy:
                axes.xaxis.set_major_formatter(whole_percent)
            elif name != "epochs":
                axes.set_xscale("log")
                axes.margins(x=0.12)
                _seconds_axis(axes, most=3)
            axes.tick_params("both", length=0)
            axes.tick_params("x", labelsize=FONT - 2)
        name_rows(panels[0], rows)

    finding = _finding(grid, list(reached))
    return Panel(
        "cost",
        title,
        finding,
        f"Means over seeds at {at([grid.spotlight])}, {STAGES[grid.final]}; thin bars are ± one standard "
        "deviation. Times are logarithmic and depend on the machine; epochs count all images that a method "
        "trained on, those of partners and of distillation steps included.",
        draw("cost", f"{title}. {finding}", 15.0 * len(rows) + 40, paint, width=WIDE),
        table=_table(grid, reached),
        wide=True,
    )


def _dots(axes: Axes, values: Sequence[tuple[int, Estimate]]) -> None:
    row_lines(axes, [y for y, _ in values])
    for y, found in values:
        mean, std = max(found.mean, _SHORTEST), found.std or 0.0
        axes.plot((max(mean - std, _SHORTEST), mean + std), (y, y), color=BLUE, linewidth=1.2)
        axes.plot([mean], [y], "o", color=BLUE, markersize=4.6)


def _finding(grid: Grid, methods: Sequence[Method]) -> str:
    trained = [found.mean for m in methods if (found := cost(grid, m, "epochs")) is not None]
    if not trained:
        return "Epochs were not recorded."
    low, high = min(trained), max(trained)
    if high - low < 0.005:
        return f"Every method trained for {count(low, 'epoch')}." if high else "Nothing was trained."
    return f"Methods trained for {low:.3g} to {count(round(high, 2), 'epoch')}: not the same budget."


def _table(grid: Grid, reached: dict[Method, Estimate]) -> Table:
    def shown(method: Method, key: str) -> str:
        found = cost(grid, method, key)
        if found is None:
            return ABSENT
        return f"{found.mean:.3g}" if key == "epochs" else duration(found.mean)

    return Table(
        f"Means over seeds at {at([grid.spotlight])}",
        ("method", "accuracy, %", *_COSTS.values()),
        tuple(
            (m.label, spread(accuracy), *(shown(m, key) for key in _COSTS)) for m, accuracy in reached.items()
        ),
    )
