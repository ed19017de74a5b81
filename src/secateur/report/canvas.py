"""Figures that take their colours from the page: matplotlib drawings as inline SVG with CSS variables.

Drawings use stand-in colours such as `ACCENT`. They are replaced by CSS variables in the SVG, so one
drawing suits a light page, a dark one and paper.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from secateur.errors import InvalidArgument

_VARIABLES = ("ink", "muted", "grid", "surface", "warn", "c1", "c2", "c3", "c4", "c5", "c6")
_STAND_INS = {f"#0000{index:02x}": name for index, name in enumerate(_VARIABLES, start=1)}
INK, MUTED, GRID, SURFACE, WARN, GREEN, ORANGE, BLUE, PURPLE, RED, GREY = _STAND_INS
ACCENT = GREEN
SERIES = (GREEN, BLUE, ORANGE, PURPLE, RED, GREY)

WIDTH = 310.0
"""Width of a figure in points: narrow, so that text stays readable when a phone shrinks it."""
WIDE = 655.0
"""Width of a figure that takes both columns; a phone scrolls it instead of shrinking it."""
FONT = 9.5

_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": FONT,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.labelcolor": MUTED,
    "axes.labelsize": FONT - 0.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "hatch.color": MUTED,
    "legend.frameon": False,
    "legend.fontsize": FONT - 0.5,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "lines.solid_capstyle": "round",
    "savefig.facecolor": "none",
    "text.color": INK,
    "text.parse_math": False,  # a layer may have a $ in its name
    "xtick.color": GRID,
    "xtick.labelcolor": MUTED,
    "xtick.labelsize": FONT - 1,
    "ytick.color": GRID,
    "ytick.labelcolor": MUTED,
    "ytick.labelsize": FONT - 1,
    "svg.fonttype": "none",
    "path.simplify": False,
}
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def draw(
    key: str, label: str, height: float, paint: Callable[[Figure], None], *, width: float = WIDTH
) -> Markup:
    """One figure as an ``<svg>`` element to put into a page.

    The same input gives the same bytes. The user's matplotlib settings play no part and come back
    afterwards.

    Args:
        key: Unique in the page, ``[a-z0-9-]+``; starts every id inside the SVG.
        label: What the figure shows, for those who cannot see it.
        height: In points, > 0.
        paint: Draws on the empty figure that it is given, in the colours of this module.
        width: `WIDTH`, or `WIDE` for a panel that is wide.

    Raises:
        InvalidArgument: if `key` is not fit for an id.
    """
    if not re.fullmatch(r"[a-z0-9-]+", key):
        raise InvalidArgument(f"the key of a figure must match [a-z0-9-]+, got {key!r}.")
    buffer = io.StringIO()
    with matplotlib.rc_context(), warnings.catch_warnings():
        # The reader's browser has the glyphs that matplotlib's own font lacks.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        matplotlib.rcParams["svg.hashsalt"] = key
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        paint(figure)
        figure.savefig(buffer, format="svg", metadata=_NO_METADATA)
    return Markup(_inline(buffer.getvalue(), key, label))


def _inline(svg: str, key: str, label: str) -> str:
    """The bare ``<svg>``: no prolog, no foreign addresses, own ids, colours and font of the page."""
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    view_box = re.search(r'viewBox="[^"]*"', svg)
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.S)
    body = body.replace("xlink:href", "href").replace("'DejaVu Sans'", "var(--font)")
    used = set(re.findall(r'(?:url\(|href=")#([\w-]+)', body))
    body = re.sub(r' id="([^"]*)"', lambda hit: f' id="{key}-{hit[1]}"' if hit[1] in used else "", body)
    body = re.sub(r'(url\(|href=")#', rf"\1#{key}-", body)
    body = re.sub(r"#0000[01][0-9a-f]", _variable, body)
    body = re.sub(r"\n\s*", "\n", body)
    box = view_box[0] if view_box else ""
    return f'<svg role="img" aria-label="{escape(label)}" {box}>{body.strip()}'


def _variable(hit: re.Match[str]) -> str:
    return f"var(--{_STAND_INS.get(hit[0], 'ink')})"
