"""What the tables that are written from results files share."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from statistics import fmean, stdev

RESULTS = Path(__file__).parent / "results"

_MOST_COMMITS = 3
"""That are named; a file that grew over many says in each cell which one it is of."""

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


def commits(found: Iterable[str | None]) -> str:
    """Commits by their beginnings, each once, or how many they are; + says that the checkout had changes."""
    names = list(dict.fromkeys(map(_short, found)))
    if len(names) > _MOST_COMMITS:
        return f"{len(names)} commits, each cell's in the file"
    return f"commit {', '.join(names)}"


def _short(commit: str | None) -> str:
    """The beginning of a commit; + says that the checkout had changes."""
    return "unknown" if commit is None else commit[:10] + ("+" if commit.endswith("+") else "")
