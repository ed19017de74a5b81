"""Sanity controls: what each should show, and what it showed."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.report.arena.differences import HOW, Differences, forest
from secateur.report.arena.grid import Grid, Method
from secateur.report.arena.schema import STAGES
from secateur.report.arena.tables import accuracy_table
from secateur.report.arena.words import at, interval, zeros
from secateur.report.page import Panel, Section, Table
from secateur.report.words import listing
from secateur.statistics import Estimate

_BY_TEACHER = {
    "untrained": (
        "below",
        "A teacher that knows nothing; if it is level with the real one, the teacher was no help.",
    ),
    "random-labels": (
        "below",
        "A teacher that was taught nonsense; if it is level with the real one, the teacher was no help.",
    ),
    "student": (
        "below",
        "The network as its own teacher; if it is level with the real one, a better teacher was no help.",
    ),
}
_BY_CONTROL = {
    "shuffled": (
        "below",
        "As many weights in each layer, but which ones is drawn at random; "
        "if it is level, the score only sets the budgets of the layers.",
    ),
    "inverted": (
        "below",
        "The weights of the highest scores go first; if that does no harm, the scores mean nothing.",
    ),
}
_BY_START = {
    "small": (
        "below",
        "A narrow network with as many parameters as the others keep, trained from the start; "
        "if it is level, there is no need to prune.",
    ),
    "trained": (
        "above",
        "The network before any cut, trained on for as long as the others; "
        "what it gains is the training's and not the pruning's.",
    ),
}
"""For networks that are not pruned at all."""
_SAYINGS = {1: "above", 0: "not told apart", -1: "below"}
_LEVEL = _SAYINGS[0]
_UNDECIDED = "without an interval"


def controls_section(grid: Grid) -> Section | None:
    """The controls of the suite, apart from what competes; None if none has a finished cell."""
    controls = [m for m in grid.methods if m.family == "control" and grid.cells_of(m.key)]
    if not controls:
        return None
    return Section(
        "Sanity controls",
        "These are not meant to be used. Each breaks one thing on purpose: where nothing changes, that "
        "thing did not matter.",
        (_panel(grid, controls),),
        (accuracy_table(grid, grid.final, controls),),
        tuple(_point(grid, control) for control in controls),
    )


def held_against(grid: Grid, control: Method) -> Method:
    """What a control is a control of: the method that it names, else the reference."""
    return grid.method(control.of) if control.of else grid.reference


def promise(grid: Grid, control: Method) -> tuple[str | None, str]:
    """Where a control should come out, and what that shows: by the suite, else by what it breaks."""
    cell = grid.cells_of(control.key)[0]
    about = cell["about"]
    known = _BY_TEACHER.get(about.get("teacher")) or _BY_CONTROL.get(about.get("control"))
    if known is None and not cell["layers"]:
        known = _BY_START.get(about.get("start"))
    expect, shows = known or (None, "")
    return control.expect or expect, control.shows or shows


def _panel(grid: Grid, controls: Sequence[Method]) -> Panel:
    title = f"Controls against what they control, {STAGES[grid.final]}"
    paired = [s for s in grid.sparsities if any(_difference(grid, control, s) for control in controls)]
    if not paired:
        return Panel("controls", title, absent="no control has a finished pair yet")
    rows = [
        Differences(control, tuple(_difference(grid, control, sparsity) for sparsity in paired))
        for control in controls
    ]
    finding = _finding(grid, controls)
    columns = [*map(zeros, paired)]
    return Panel(
        "controls",
        title,
        finding,
        HOW.format(reference="what it controls"),
        forest("controls", f"{title}. {finding}", rows, columns),
        table=Table(
            "Paired differences in points: mean [95 % interval]",
            ("control − what it controls", *columns),
            tuple(
                (f"{control.label} − {held_against(grid, control).label}", *map(interval, row.values))
                for control, row in zip(controls, rows, strict=True)
            ),
        ),
        wide=True,
    )


def _difference(grid: Grid, control: Method, sparsity: float) -> Estimate | None:
    return grid.difference(control.key, held_against(grid, control).key, grid.final, sparsity)


def _finding(grid: Grid, controls: Sequence[Method]) -> str:
    failed = [control.label for control in controls if contradicts(grid, control)]
    if failed:
        return f"Not what should be seen: {listing(failed, most=9)}."
    if not any(_seen(grid, control).keys() - {_UNDECIDED} for control in controls):
        return "No difference has an interval yet, so nothing is decided."
    return "No control contradicts what should be seen."


def _seen(grid: Grid, control: Method) -> dict[str, list[float]]:
    """Where a control came out, with the sparsities at which it did."""
    seen: dict[str, list[float]] = {}
    for sparsity in grid.sparsities:
        found = _difference(grid, control, sparsity)
        if found is not None:
            saying = _SAYINGS[found.sign] if found.interval is not None else _UNDECIDED
            seen.setdefault(saying, []).append(sparsity)
    return seen


def contradicts(grid: Grid, control: Method) -> bool:
    """Whether a control came out otherwise than it should.

    A control that should be below (above) must be so at one sparsity at least, since mild cuts harm
    nobody, and above (below) at none; one that should be level must be so at all. Differences without
    an interval decide nothing.
    """
    expected, _ = promise(grid, control)
    seen = _seen(grid, control).keys() - {_UNDECIDED}
    if expected is None or not seen:
        return False
    if expected == "level":
        return seen != {_LEVEL}
    return expected not in seen or not seen <= {expected, _LEVEL}


def _point(grid: Grid, control: Method) -> tuple[str, str]:
    expected, shows = promise(grid, control)
    should = f"should be {expected}. " if expected else "the suite does not say where it should be. "
    places = "; ".join(f"{saying} at {at(found)}" for saying, found in _seen(grid, control).items())
    verdict = " This is not what should be seen." if contradicts(grid, control) else ""
    return (
        f"{control.label}, against {held_against(grid, control).label}:",
        f"{should}{shows} It was {places or 'not finished in any pair'}.{verdict}",
    )
