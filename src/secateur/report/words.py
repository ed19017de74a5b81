"""Numbers as a reader likes to see them: percent, points, bytes, durations, counts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

_HASH = re.compile(r"\b[0-9a-f]{40}\b")
ABSENT = "–"
SPACE = "\u00a0"  # keeps a number and its unit on one line

STAGES: Mapping[str, str] = {
    "teacher": "teacher",
    "dense": "dense student",
    "cut": "after the cut",
    "batchnorm": "BatchNorm re-estimated",
    "recovered": "recovered, without KD",
    "recovered_kd": "recovered, with KD",
}
"""The stages of a run in order, under the names that a reader sees."""

FINAL_STAGES = ("recovered_kd", "recovered", "batchnorm", "cut")
"""Where the accuracy of the finished network is read: the first of these that was run."""


def percent(fraction: float | None, places: int = 1) -> str:
    """A fraction as percent; more decimals where fewer would show a false 0 or 100.

    Args:
        fraction: Usually in [0, 1]; None gives a dash.
        places: Decimals to start from.
    """
    if fraction is None:
        return ABSENT
    shown = f"{100 * fraction:.{places}f}"
    while float(shown) in (0.0, 100.0) and fraction not in (0, 1) and places < 6:
        places += 1
        shown = f"{100 * fraction:.{places}f}"
    return f"{shown}{SPACE}%"


def points(difference: float) -> str:
    """A difference of two fractions in percentage points, without its sign: ``0.3 points``."""
    shown = f"{abs(100 * difference):.1f}"
    return f"{shown}{SPACE}point" + ("" if shown == "1.0" else "s")


def times(ratio: float) -> str:
    """A ratio such as ``7.1×``; whole numbers from 100 on."""
    return f"{ratio:.0f}×" if ratio >= 100 else f"{ratio:.1f}×"


def compared(size: float, other: float) -> tuple[str, str]:
    """How `size` compares with `other`, both above 0: ``("7.1×", "smaller")``."""
    return (times(size / other), "larger") if size > other else (times(other / size), "smaller")


def number(n: int | None) -> str:
    """A whole number with thousands set apart: ``64,500``."""
    return ABSENT if n is None else f"{n:,}"


def compact(n: float) -> str:
    """A number in few characters, for axes: ``64k``, ``2.5M``."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(n) >= limit:
            return f"{n / limit:.3g}{unit}"
    return f"{n:.3g}"


def size(n_bytes: float | None) -> str:
    """Bytes in decimal units: ``37.0 kB``."""
    if n_bytes is None:
        return ABSENT
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if n_bytes >= limit:
            return f"{n_bytes / limit:.3g}{SPACE}{unit}"
    return f"{n_bytes:.0f}{SPACE}bytes"


def duration(seconds: float | None) -> str:
    """Seconds as ``8 ms``, ``0.8 s``, ``1 min 6 s`` or ``2 h 3 min``."""
    if seconds is None:
        return ABSENT
    if seconds < 0.1:
        return f"{1000 * seconds:.0f}{SPACE}ms"
    if seconds < 9.95:
        return f"{seconds:.1f}{SPACE}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}{SPACE}s"
    if whole < 3600:
        return f"{whole // 60}{SPACE}min{SPACE}{whole % 60}{SPACE}s"
    return f"{whole // 3600}{SPACE}h{SPACE}{whole % 3600 // 60}{SPACE}min"


def listing(names: Sequence[str], most: int = 4) -> str:
    """Names in a sentence, by semicolons if they hold commas; past `most` the rest is only counted."""
    shown = [*names[:most], *([f"{len(names) - most} more"] if len(names) > most else [])]
    if len(shown) == 1:
        return shown[0]
    if any("," in name for name in shown):
        return "; ".join(shown)
    return f"{', '.join(shown[:-1])} and {shown[-1]}"


def commits(found: Iterable[object]) -> str:
    """Commits, each once: three by their beginnings, the rest counted; + marks a checkout with changes."""
    names = dict.fromkeys(_HASH.sub(lambda hit: hit[0][:10], value("commit", commit)) for commit in found)
    return f"commit {listing([*names], most=3)}"


def shorten(name: str, most: int = 26) -> str:
    """A name of at most `most` characters, cut in the middle where both ends still tell it apart.

    Words stay whole where that leaves more than half of an end.
    """
    if len(name) <= most:
        return name
    tail = (most - 1) * 3 // 5
    head, end = name[: most - 1 - tail], name[-tail:]
    words, last_words = name[: len(head) + 1].rpartition(" ")[0], name[-tail - 1 :].partition(" ")[2]
    return (
        f"{words if 2 * len(words) > len(head) else head}…{last_words if 2 * len(last_words) > tail else end}"
    )


def layer_labels(names: Sequence[str]) -> list[str]:
    """Short labels of layers: without the ``.weight`` that they all end in, never too long to draw."""
    common = ".weight" if all(name.endswith(".weight") for name in names) else ""
    return [shorten(name.removesuffix(common)) for name in names]


def value(name: str, item: object) -> str:
    """Any JSON value as text, with its unit where the key `name` tells it."""
    if item is None:
        return ABSENT
    if isinstance(item, bool):
        return "yes" if item else "no"
    if isinstance(item, int):
        return size(item) if name.endswith("bytes") else number(item) if name.startswith("n_") else str(item)
    if isinstance(item, float):
        return f"{item:g}"
    if isinstance(item, Mapping):
        pairs = cast("Mapping[str, Any]", item).items()
        return ", ".join(f"{key} {value(key, part)}" for key, part in pairs)
    if isinstance(item, (list, tuple)):
        joint = " × " if name.endswith("shape") else ", "
        return joint.join(value(name, part) for part in cast("list[object]", item))
    return str(item)
