"""What the tables that are written from results files share."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean, stdev

RESULTS = Path(__file__).parent / "results"
SPREAD = "test accuracy in %, mean ± standard deviation over seeds (how many where not 3)"
"""What `spread` shows."""


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; all columns but the first are right-aligned."""
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spread(found: list[float]) -> str:
    """Mean and standard deviation over seeds, and how many where they are not 3."""
    if not found:
        return "–"
    if len(found) == 1:
        return f"{found[0]:.2f} (1)"
    number = "" if len(found) == 3 else f" ({len(found)})"
    return f"{fmean(found):.2f} ± {stdev(found):.2f}{number}"
