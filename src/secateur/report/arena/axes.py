"""What the drawings of a suite share: the axis of sparsities, labels beside lines, rows of methods."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextToPath

from secateur.report.arena.grid import Method
from secateur.report.arena.schema import FAMILIES
from secateur.report.canvas import BLUE, FONT, GREEN, GREY, GRID, INK, MUTED, ORANGE, PURPLE, RED, WIDTH
from secateur.report.words import shorten

COLOURS = (BLUE, ORANGE, GREEN, PURPLE, RED, GREY)
MARKERS = "os^Dv<>P"
SPARSITY_LABEL = "zeros among prunable weights"
_LABEL_LENGTH = 38
_TAG_LENGTH = 21
_TICK_ROOM = 21.0
"""Points along the axis that the label of a sparsity takes."""
_LINE = FONT + 2.0
_LEAST_HEIGHT = 180.0
_BELOW = 34.0
"""Points under the axes, for ticks and their label."""
_ABOVE = 8.0
_LEFT, _RIGHT = 34.0, 198.0
"""Where the axes begin and end, in points, unless labels need more room."""
_TICK_GAP = 6.0
"""Points between the left edge and the axes that no label of a tick takes."""
_TAGS_AT = 1.06
"""Where names begin, in widths of the axes."""


def place(sparsity: float) -> float:
    """Where a sparsity stands on the axis: −log₁₀ of the density, so 0, 90 and 99 % are equally far apart."""
    return -math.log10(1 - sparsity)


def sparsity_axis(axes: Axes, sparsities: Sequence[float]) -> None:
    """Ticks at the sparsities of the suite, each at its `place`; where they crowd, some have no label.

    How many have room is told by the width of the axes, so after `make_room`.
    """
    share = _TICK_ROOM / (WIDTH * axes.get_position().width)
    axes.set_xticks([place(sparsity) for sparsity in sparsities], _spaced_labels(sparsities, share))
    axes.set_xlabel(SPARSITY_LABEL)
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)


def _spaced_labels(sparsities: Sequence[float], share: float) -> list[str]:
    """Labels of rising sparsities, empty where the next one to the right would be within that `share`."""
    room = share * (place(sparsities[-1]) - place(sparsities[0]))
    labels: list[str] = []
    taken = math.inf
    for sparsity in reversed(sparsities):
        free = place(sparsity) <= taken - room
        labels.append(f"{100 * sparsity:.4g}%" if free else "")
        taken = place(sparsity) if free else taken
    return labels[::-1]


def whole_points(value: float, _position: float) -> str:
    """A tick at a difference in points, with its sign."""
    return f"{value:+.3g}".replace("-", "−") if value else "0"


@dataclass(frozen=True)
class Tag:
    """The name of a line, to be written beside its end.

    Args:
        text: The name.
        x: Where the line ends, in data coordinates.
        y: Likewise.
        colour: Of the line.
    """

    text: str
    x: float
    y: float
    colour: str


def axes_with_tags(figure: Figure, height: float, above: float = 0.0) -> Axes:
    """Axes with room for names to the right of them; `make_room` sees to it that it is enough.

    Args:
        figure: Empty, `canvas.WIDTH` wide.
        height: Of the figure, in points.
        above: Room to leave free at the top, in points.
    """
    figure.set_layout_engine("none")
    heights = _BELOW / height, 1 - (_BELOW + _ABOVE + above) / height
    return figure.add_axes((_LEFT / WIDTH, heights[0], (_RIGHT - _LEFT) / WIDTH, heights[1]))


def make_room(axes: Axes, names: Sequence[str]) -> None:
    """Narrow the axes by what the longest label of a tick at the left and the longest name need.

    Args:
        axes: From `axes_with_tags`, with limits and labels of the vertical axis set.
        names: All that figures of one kind name, so that their axes are of one width.
    """
    left = max(_LEFT, _TICK_GAP + _widest([label.get_text() for label in axes.get_yticklabels()]))
    room = WIDTH - 1 - _widest([line for name in names for line in _wrapped(name)])
    width = min(_RIGHT - left, (room - left) / _TAGS_AT)
    box = axes.get_position()
    axes.set_position((left / WIDTH, box.y0, width / WIDTH, box.height))


def _widest(texts: Sequence[str]) -> float:
    """Points that the longest text beside the axes takes in matplotlib's font, which is a wide one."""
    font, measure = FontProperties(size=FONT - 1), TextToPath().get_text_width_height_descent
    return max((measure(text, font, ismath=False)[0] for text in texts), default=0.0)


def height_for(names: Sequence[str]) -> float:
    """Height in points of a figure that has room for all these names beside its axes."""
    n_lines = sum(len(_wrapped(name)) for name in names)
    return max(_LEAST_HEIGHT, _LINE * (n_lines + 0.5 * len(names)) + _BELOW + _ABOVE)


def write_tags(axes: Axes, tags: Sequence[Tag], height: float) -> None:
    """Names right of the axes, as near to their marks as they can stand without touching.

    Args:
        axes: From `axes_with_tags`, after `make_room`.
        tags: At least one.
        height: Of the figure, in points.
    """
    low, high = axes.get_ylim()
    ordered = sorted(tags, key=lambda tag: tag.y)
    wanted = [(tag.y - low) / (high - low) for tag in ordered]
    inside = height - _BELOW - _ABOVE
    sizes = [_LINE * len(_wrapped(tag.text)) / inside for tag in ordered]
    for tag, y in zip(ordered, spread_out(wanted, sizes), strict=True):
        axes.annotate(
            "\n".join(_wrapped(tag.text)),
            (tag.x, tag.y),
            xytext=(_TAGS_AT, y),
            textcoords="axes fraction",
            va="center",
            color=tag.colour,
            fontsize=FONT - 1,
            linespacing=1.05,
            arrowprops={
                "arrowstyle": "-",
                "color": tag.colour,
                "linewidth": 0.6,
                "relpos": (0, 0.5),
                "shrinkA": 0,
                "shrinkB": 3,
            },
            annotation_clip=False,
        )


def _wrapped(name: str) -> list[str]:
    """A name in one line, or in two where it is long."""
    lines = textwrap.wrap(name, _TAG_LENGTH) or [""]
    return [shorten(line, _TAG_LENGTH) for line in (lines[0], " ".join(lines[1:])) if line]


def spread_out(wanted: Sequence[float], sizes: Sequence[float]) -> list[float]:
    """Centres in [0, 1] of things that do not overlap, as near to the wanted ones as can be.

    The least sum of squared distances: isotonic regression of what is left of the wanted centres once all
    sizes before are taken off, by pooling adjacent violators. Without room enough, the last lie beyond 1.

    Args:
        wanted: Rising.
        sizes: Of each, > 0.
    """
    offsets = [0.0]
    for size, following in pairwise(sizes):
        offsets.append(offsets[-1] + (size + following) / 2)
    pools: list[tuple[float, int]] = []  # mean of a run of equal values, and its length
    for value, offset in zip(wanted, offsets, strict=True):
        mean, n = value - offset, 1
        while pools and pools[-1][0] >= mean:
            other, m = pools.pop()
            mean, n = (mean * n + other * m) / (n + m), n + m
        pools.append((mean, n))
    flat = [max(0.0, min(mean, 1 - offsets[-1])) for mean, n in pools for _ in range(n)]
    return [value + offset for value, offset in zip(flat, offsets, strict=True)]


def rows_by_family(methods: Sequence[Method]) -> list[Method | str]:
    """Methods with the title of their family before the first of each; no titles for a single family."""
    rows: list[Method | str] = []
    for index, method in enumerate(methods):
        starts = index == 0 or methods[index - 1].family != method.family
        if starts and methods[0].family != methods[-1].family:
            rows.append(FAMILIES[method.family])
        rows.append(method)
    return rows


def name_rows(axes: Axes, rows: Sequence[Method | str]) -> None:
    """Names of methods along the left, the first at the top; titles pale."""
    names = [row if isinstance(row, str) else shorten(row.label, _LABEL_LENGTH) for row in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(length=0)
    for row, text in zip(rows, axes.get_yticklabels(), strict=True):
        text.set_color(MUTED if isinstance(row, str) else INK)
        text.set_fontsize(FONT - (1.5 if isinstance(row, str) else 0.5))


def row_lines(axes: Axes, places: Sequence[int]) -> None:
    """Thin lines for the eye to follow a row by, across the whole width."""
    across = axes.get_yaxis_transform()
    axes.hlines(places, 0, 1, transform=across, color=GRID, linewidth=0.5, zorder=0.5)
