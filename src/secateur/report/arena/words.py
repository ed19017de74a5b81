"""Accuracies, differences and settings of a suite as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from secateur.recovery import Recovery
from secateur.report.arena.grid import Grid
from secateur.report.words import ABSENT, SPACE, commits, listing, points
from secateur.statistics import Estimate

SIGNS = {1: "▲", 0: "", -1: "▼"}
"""What stands beside a difference whose interval excludes 0, by the sign of the difference."""


def spread(found: Estimate | None) -> str:
    """Mean ± standard deviation in percent, ``88.21 ± 0.24``; the mean alone for one seed."""
    if found is None:
        return ABSENT
    return f"{100 * found.mean:.2f}" + ("" if found.std is None else f" ± {100 * found.std:.2f}")


def signed(difference: float, places: int = 2) -> str:
    """A difference of two fractions in percentage points with its sign, ``+0.42``."""
    return f"{100 * difference:+.{places}f}".replace("-", "−")


def interval(found: Estimate | None) -> str:
    """A difference with its interval in points and its mark, ``+0.42 [+0.10, +0.74] ▲``."""
    if found is None:
        return ABSENT
    if found.interval is None:
        why = "one seed" if found.n == 1 else "no spread"
        return f"{signed(found.mean)} ({why})"
    low, high = map(signed, found.interval)
    return f"{signed(found.mean)} [{low}, {high}]{SPACE}{SIGNS[found.sign]}".rstrip()


def zeros(sparsity: float) -> str:
    """A sparsity that was asked for: ``90 %``."""
    return f"{100 * sparsity:.4g}{SPACE}%"


def at(sparsities: Sequence[float]) -> str:
    """Where something holds: ``80 % and 90 % zeros``."""
    return f"{listing([zeros(sparsity) for sparsity in sparsities], most=9)} zeros"


def count(n: float, word: str) -> str:
    """A number of things: ``1 seed``, ``3 seeds``, ``1.5 epochs``."""
    return f"{n:g} {word}" + ("" if n == 1 else "s")


def budget(grid: Grid) -> str:
    """The recovery that a suite gives its methods, in a few words, and how many have another."""
    recovery: Mapping[str, Any] | None = grid.suite["recovery"]
    if recovery is None or recovery.get("epochs") == 0:
        return "without any recovery"
    epochs, kd_weight = recovery.get("epochs"), recovery.get("kd_weight")
    parts = [] if epochs is None else [count(epochs, "epoch")]
    if kd_weight is not None:
        parts.append(f"KD weight {kd_weight:g}" if kd_weight else "labels alone")
    others = other_recoveries(grid)
    whose = f"all but {count(len(others), 'method')}" if others else "all"
    return f"with one recovery for {whose}" + (f" ({', '.join(parts)})" if parts else "")


def other_recoveries(grid: Grid) -> list[str]:
    """Labels of the methods that are recovered otherwise than the suite says."""
    return [m.label for m in grid.methods if grid.cells_of(m.key) and unusual_recovery(grid, m.key)]


def unusual_recovery(grid: Grid, key: str) -> dict[str, Any]:
    """What the recovery of a method has otherwise than that of the suite; nothing if either has none."""
    own, shared = grid.cells_of(key)[0]["about"].get("recovery"), grid.suite["recovery"]
    if not (own and shared):
        return {}
    # a cell run before an option was added does not name it
    usual = asdict(Recovery()) | shared
    return {name: item for name, item in own.items() if usual.get(name, item) != item}


def machine(hardware: Mapping[str, Any]) -> str:
    """What cells were run on: ``NVIDIA H100``, or the processor and its threads."""
    device = str(hardware.get("device", "an unnamed machine"))
    if device != "cpu" or "cpu" not in hardware:
        return device
    threads = hardware.get("threads")
    return f"{hardware['cpu']} ({count(threads, 'thread')})" if threads else str(hardware["cpu"])


def origin(grid: Grid) -> str:
    """Machines, torch and commits that the cells come from, in a line."""
    machines = dict.fromkeys(map(machine, grid.common("hardware")))
    torches = dict.fromkeys(f"torch {versions.get('torch', '?')}" for versions in grid.common("versions"))
    return ", ".join((*machines, *torches, commits(grid.common("commit"))))


def verdict(grid: Grid) -> str:
    """Who leads, and whether any method is above the reference clearly, said of the final stage."""
    return " ".join(filter(None, (_leader(grid), _certain(grid), _holds(grid))))


def _leader(grid: Grid) -> str:
    sparsity, reference = grid.spotlight, grid.reference
    found = {m.key: grid.accuracy(m.key, grid.final, sparsity) for m in grid.competitors}
    known = {key: accuracy for key, accuracy in found.items() if accuracy is not None}
    if len(known) < 2:
        return "Too few cells are finished for a comparison."
    best = max(known, key=lambda key: known[key].mean)
    text = (
        f"At {at([sparsity])} {grid.method(best).label} has the highest mean: {spread(known[best])}{SPACE}%"
    )
    if best == reference.key:
        return f"{text}. It is what all others are held against."
    gap = grid.difference(best, reference.key, grid.final, sparsity)
    if gap is None:
        return f"{text}; there is no finished pair with {reference.label} to hold it against."
    side = "above" if gap.mean > 0 else "below"
    text = f"{text}, {points(gap.mean)} {side} {reference.label}"
    if gap.interval is None:
        return f"{text}{', from a single seed' if gap.n == 1 else ''}."
    low, high = (signed(end, 1) for end in gap.interval)
    open_ = "" if gap.sign else ", so the lead may be chance"
    return f"{text} (95 % interval {low} to {high}{open_})."


def _certain(grid: Grid) -> str:
    reference, above, open_ = grid.reference, list[float](), list[float]()
    for sparsity in grid.sparsities:
        gaps = [
            grid.difference(m.key, reference.key, grid.final, sparsity)
            for m in grid.competitors
            if m != reference
        ]
        known = [gap.sign for gap in gaps if gap is not None and gap.interval is not None]
        if known:
            (above if max(known) > 0 else open_).append(sparsity)
    if not above and not open_:
        return (
            "No difference has an interval yet: that takes at least two seeds, and some spread between them."
        )
    if not above:
        return f"No method is clearly above {reference.label} at {at(open_)}."
    text = f"Some method is clearly above {reference.label} (its 95 % interval excludes 0) at {at(above)}"
    return f"{text}; none is at {at(open_)}." if open_ else f"{text}."


def _holds(grid: Grid) -> str:
    """Where the reference itself has the highest mean, which the spotlight may not show."""
    held: list[float] = []
    for sparsity in grid.sparsities:
        means = {
            m: found.mean for m in grid.competitors if (found := grid.accuracy(m.key, grid.final, sparsity))
        }
        own = means.get(grid.reference)
        if own is not None and len(means) > 1 and own == max(means.values()):
            held.append(sparsity)
    return f"{grid.reference.label} has the highest mean at {at(held)}." if held else ""
