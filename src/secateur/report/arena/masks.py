"""What the methods keep: densities layer by layer, and how alike their masks are."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from secateur.report.arena.axes import name_rows, rows_by_family
from secateur.report.arena.grid import Grid, Method
from secateur.report.arena.words import at
from secateur.report.canvas import ACCENT, BLUE, FONT, INK, MUTED, ORANGE, WARN, WIDE, draw
from secateur.report.page import Panel, Table
from secateur.report.words import ABSENT, layer_labels, listing, percent, shorten

_STRONGEST = 3.0
"""log₂ of the ratio to the whole network's density from which a colour grows no fuller: 8 times."""
_ALIKE = 0.03
"""log₂ of the ratio below which a layer keeps what the whole network does, but for rounding."""
_MOST_LABELLED = 26
_LABEL_LENGTH = 22


def density_panel(grid: Grid) -> Panel:
    """Density of each layer under each method at the spotlight, as a map of ratios to the whole network's."""
    title = "What each layer keeps"
    profiles, names = _profiles(grid)
    if not profiles:
        return Panel("densities", title, absent="no cell names its layers")
    overall = 1 - grid.spotlight
    emptied = [m.label for m, profile in profiles.items() if 0 in profile]
    rows, labels = rows_by_family(list(profiles)), layer_labels(names)
    finding = f"At {at([grid.spotlight])}. " + (
        f"{listing(emptied, most=9)} left a layer without a single weight (×)."
        if emptied
        else "No method emptied a layer."
    )

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for y, row in enumerate(rows):
            for x, density in enumerate(profiles[row] if isinstance(row, Method) else ()):
                _ratio_cell(axes, x, y, density, overall)
        _matrix_axes(axes, rows, labels)

    return Panel(
        "densities",
        title,
        finding,
        f"Blue layers keep more than the whole network ({percent(overall, 0)}), orange ones less, pale ones "
        "about as much; the fullest colours stand for eight times more or less.",
        draw("densities", f"{title}. {finding}", 15.0 * len(rows) + 80, paint, width=WIDE),
        table=Table(
            f"Density in % at {at([grid.spotlight])}, mean over seeds",
            ("layer", *(m.label for m in profiles)),
            tuple(
                (name, *(f"{100 * profile[index]:.1f}" for profile in profiles.values()))
                for index, name in enumerate(names)
            ),
        ),
        wide=True,
    )


def _profiles(grid: Grid) -> tuple[dict[Method, list[float]], list[str]]:
    """Mean densities by method, and the layers they are of: those that most cells have."""
    by_method = {
        m: [cell["layers"] for cell in grid.cells_of(m.key, grid.spotlight) if cell["layers"]]
        for m in grid.methods
    }
    found = [tuple(layer["name"] for layer in layers) for cells in by_method.values() for layers in cells]
    if not found:
        return {}, []
    names = Counter(found).most_common(1)[0][0]
    profiles: dict[Method, list[float]] = {}
    for method, cells in by_method.items():
        own = [
            [layer["density"] for layer in layers]
            for layers in cells
            if tuple(layer["name"] for layer in layers) == names
        ]
        if own:
            profiles[method] = [sum(column) / len(own) for column in zip(*own, strict=True)]
    return profiles, list(names)


def _ratio_cell(axes: Axes, x: int, y: int, density: float, overall: float) -> None:
    if density == 0:
        axes.text(x, y, "×", ha="center", va="center", color=WARN, fontweight="bold")
        return
    ratio = math.log2(density / overall)
    colour = MUTED if abs(ratio) < _ALIKE else BLUE if ratio > 0 else ORANGE
    _tile(axes, x, y, colour, min(abs(ratio) / _STRONGEST, 1.0))


def _tile(axes: Axes, x: int, y: int, colour: str, share: float) -> None:
    axes.add_patch(
        Rectangle((x - 0.47, y - 0.45), 0.94, 0.9, color=colour, alpha=0.04 + 0.8 * share, linewidth=0)
    )


def _matrix_axes(axes: Axes, rows: Sequence[Method | str], columns: Sequence[str]) -> None:
    """Names along the left and, standing, along the bottom; too many columns go by number."""
    name_rows(axes, rows)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    if len(columns) <= _MOST_LABELLED:
        names = [shorten(name, _LABEL_LENGTH) for name in columns]
        axes.set_xticks(range(len(columns)), names, rotation=90, fontsize=FONT - 2)
    else:
        axes.set_xlabel(f"{len(columns)} layers, from input to output")
        axes.set_xticks([0, len(columns) - 1], ["1", str(len(columns))])
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(length=0)


def overlap_panel(grid: Grid) -> Panel:
    """Jaccard index of the masks of every two methods at the sparsity next to the spotlight that has any."""
    title = "How alike the masks are"
    measured = {overlap["sparsity"] for overlap in grid.content["overlaps"]}
    if not measured:
        return Panel("overlap", title, absent="the masks were not compared")
    sparsity = min(sorted(measured), key=lambda s: abs(s - grid.spotlight))
    pairs, chance, over = _overlaps(grid, sparsity)
    rows = [m for m in grid.methods if any(m.key in pair for pair in pairs)]
    finding = _overlap_finding(grid, pairs, chance, sparsity)

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for y, row in enumerate(rows):
            for x, column in enumerate(rows[:y]):
                share = pairs.get(frozenset((row.key, column.key)))
                if share is None:
                    continue
                _tile(axes, x, y, ACCENT, max(0.0, (share - chance) / (1 - chance)) if chance < 1 else 1.0)
                colour = INK if share > chance + 0.01 else MUTED
                axes.text(
                    x, y, f"{100 * share:.0f}", ha="center", va="center", fontsize=FONT - 2, color=colour
                )
        _matrix_axes(axes, rows, [m.label for m in rows])

    return Panel(
        "overlap",
        title,
        finding,
        "Of the weights that either of two masks keeps, the share in percent that both keep (Jaccard index), "
        f"{over}; the fuller the colour, the further above chance. 100 is the same mask.",
        draw("overlap", f"{title}. {finding}", 15.0 * len(rows) + 110, paint, width=WIDE),
        table=Table(
            f"Jaccard index of two masks in % at {at([sparsity])}, {over}",
            ("", *(m.label for m in rows)),
            tuple((a.label, *(_shown(pairs.get(frozenset((a.key, b.key)))) for b in rows)) for a in rows),
        ),
        wide=True,
    )


def _shown(share: float | None) -> str:
    return ABSENT if share is None else f"{100 * share:.1f}"


def _overlaps(grid: Grid, sparsity: float) -> tuple[dict[frozenset[str], float], float, str]:
    """Mean overlap by pair, what two random masks would have, and which seeds that is over."""
    rows = [row for row in grid.content["overlaps"] if row["sparsity"] == sparsity and row["a"] != row["b"]]
    found: dict[frozenset[str], list[float]] = {}
    for row in rows:
        found.setdefault(frozenset((row["a"], row["b"])), []).append(row["jaccard"])
    means = {pair: sum(shares) / len(shares) for pair, shares in found.items()}
    chance = sum(row["expected_random"] for row in rows) / len(rows) if rows else 0.0
    seeds = sorted({row["seed"] for row in rows})
    return means, chance, f"mean over {len(seeds)} seeds" if len(seeds) > 1 else "one seed"


def _overlap_finding(grid: Grid, pairs: dict[frozenset[str], float], chance: float, sparsity: float) -> str:
    names = {m.key: m.label for m in grid.methods}
    order = [m.key for m in grid.methods]

    def called(pair: frozenset[str]) -> str:
        return " and ".join(names[key] for key in sorted(pair, key=order.index))

    ranked = sorted(pairs, key=lambda pair: -pairs[pair])
    if not ranked:
        return ""
    text = (
        f"At {at([sparsity])} two random masks would share {percent(chance)}. Most alike are "
        f"{called(ranked[0])} ({percent(pairs[ranked[0]])})"
    )
    return (
        f"{text}, least {called(ranked[-1])} ({percent(pairs[ranked[-1]])})."
        if len(ranked) > 1
        else f"{text}."
    )
