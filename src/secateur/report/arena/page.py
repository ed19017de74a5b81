"""The page of a suite: every method at every sparsity, held against one reference."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from secateur.report.arena.controls import controls_section
from secateur.report.arena.cost import cost_panels
from secateur.report.arena.curves import curve_panels
from secateur.report.arena.differences import difference_panel
from secateur.report.arena.grid import Grid
from secateur.report.arena.limits import limits, notices
from secateur.report.arena.masks import density_panel, overlap_panel
from secateur.report.arena.schema import STAGES
from secateur.report.arena.square import square_section
from secateur.report.arena.tables import accuracy_table
from secateur.report.arena.words import budget, machine, unusual_recovery, verdict
from secateur.report.facts import alike, pairs
from secateur.report.page import Command, Facts, Page, Section, Stat
from secateur.report.words import SPACE, listing, value

_WORDS = (
    ("cell", "one method at one sparsity with one seed"),
    ("seed", "the number that all chance in a cell comes from: the same number, the same cell"),
    ("paired difference", "between two methods with the same seed and sparsity; its mean is over the seeds"),
    (
        "95 % interval",
        "found anew from other seeds, 95 of 100 such intervals would hold the true mean difference",
    ),
    ("standard deviation", "how far seeds lie from their mean (divisor n − 1)"),
)
_BEFORE = {
    "cut": "Before anything is done about it: how much harm a cut does by itself.",
    "pruned": "BatchNorm statistics are measured again, unless the cut itself trained or solved for weights.",
}


def suite_page(content: Mapping[str, Any], commands: Sequence[Command] = ()) -> Page:
    """What the report of a suite says.

    Args:
        content: As `secateur.report.arena.schema.read_suite` returns it.
        commands: What to do next, if anything else than running a suite of this name.
    """
    grid = Grid(content)
    name = grid.suite["name"]
    return Page(
        title=f"secateur: suite {name}",
        kicker=f"suite {name}",
        headline=tuple(_headline(grid)),
        lede=f"{verdict(grid)}\n\n{_set_up(grid)}",
        density=None,
        notices=notices(grid),
        sections=tuple(_sections(grid)),
        facts=_facts(grid),
        commands=tuple(commands) or _commands(grid),
        words=_WORDS,
    )


def _headline(grid: Grid) -> Iterator[Stat]:
    n_methods = len(grid.competitors)
    yield Stat(str(n_methods), "method" if n_methods == 1 else "methods")
    ends = [f"{100 * sparsity:.4g}" for sparsity in (grid.sparsities[0], grid.sparsities[-1])]
    span = ends[0] if len(grid.sparsities) == 1 else "–".join(ends)
    yield Stat(f"{span}{SPACE}%", "zeros among prunable weights")
    yield Stat(str(len(grid.seeds)), "seed" if len(grid.seeds) == 1 else "seeds")
    yield Stat(f"{len(grid.cells)} of {grid.content['n_planned']}", "cells finished")


def _set_up(grid: Grid) -> str:
    described = (grid.suite["description"] or "").strip().rstrip(".")
    models, data = grid.cells[0]["models"], grid.cells[0]["data"]
    student, teacher = (_name(models.get(role)) for role in ("student", "teacher"))
    taught = f" with {teacher} as teacher" if teacher else ""
    subject = f"{student or 'one network'} on {data.get('name', 'one data set')}{taught}"
    machines = listing(list(dict.fromkeys(map(machine, grid.common("hardware")))), most=3)
    done = f"{len(grid.cells)} of {grid.content['n_planned']} cells"
    set_up = f"Measured in {done}: {subject}, {budget(grid)}, on {machines}."
    return f"{described}. {set_up}" if described else set_up


def _name(model: object) -> str | None:
    return str(model["name"]) if isinstance(model, Mapping) and "name" in model else None


def _sections(grid: Grid) -> Iterator[Section]:
    final = grid.final
    yield Section(
        f"Accuracy {STAGES[final]}",
        "The further right, the more weights are gone; equal steps leave an equal share of what was left. "
        "One figure a family, all on the same axes.",
        curve_panels(grid, final),
        (accuracy_table(grid, final, grid.competitors),),
    )
    yield Section(
        f"Who is better than {grid.reference.label}?",
        "Differences between cells of one sparsity and one seed, so that what a seed does to both drops out.",
        (difference_panel(grid),),
    )
    if (square := square_section(grid)) is not None:
        yield square
    if (controls := controls_section(grid)) is not None:
        yield controls
    for stage in grid.stages[1:]:
        yield Section(f"Accuracy {STAGES[stage]}", _BEFORE[stage], curve_panels(grid, stage))
    yield Section(
        "What it costs",
        "A method that is a little better may not be worth many times the time.",
        cost_panels(grid),
    )
    yield Section(
        "What is kept",
        "Two methods of one accuracy may keep quite different weights.",
        (density_panel(grid), overlap_panel(grid)),
    )
    yield Section(
        "How far to trust this", "What these numbers count, and what they cannot say.", points=limits(grid)
    )


def _facts(grid: Grid) -> tuple[Facts, ...]:
    suite = grid.suite
    together, apart = alike(grid.cells, ("data", "models", "versions", "hardware", "commit"))
    methods = tuple((m.label, _about(grid, m.key)) for m in grid.methods if grid.cells_of(m.key))
    groups = (
        Facts("Suite", tuple((key, value(key, suite[key])) for key in ("name", "sparsities", "seeds"))),
        Facts("Recovery", pairs(suite["recovery"] or {})),
        Facts("The same in all cells", together),
        Facts("Not the same in all cells", apart),
        Facts("Methods", methods),
    )
    return tuple(group for group in groups if group.items)


def _about(grid: Grid, key: str) -> str:
    """What a method is; whatever is usual is left out, and the recovery of the suite is told once."""
    about = grid.cells_of(key)[0]["about"]
    parts = [_named(about.get(part)) for part in ("strategy", "criterion", "scope")]
    usual = {"control": "none", "teacher": "trained", "start": "trained"}
    parts += [
        f"{name} {value(name, about[name])}" for name, most in usual.items() if about.get(name, most) != most
    ]
    recovery, shared = about.get("recovery"), grid.suite["recovery"]
    if bool(recovery) != bool(shared):
        parts.append(f"recovery: {value('recovery', recovery) if recovery else 'none'}")
    elif other := unusual_recovery(grid, key):
        parts.append(f"recovery: {value('recovery', other)}")
    return "; ".join(filter(None, parts))


def _named(part: Mapping[str, Any] | None) -> str:
    """A name with its options: ``lamp``, ``teacher-guided (alpha 0.5)``; seeds differ from cell to cell."""
    if part is None:
        return ""
    told = ("name", "criterion", "scope", "seed")
    options = value("options", {name: item for name, item in part.items() if name not in told})
    return f"{part.get('name', '')} ({options})" if options else str(part.get("name", ""))


def _commands(grid: Grid) -> tuple[Command, ...]:
    suite = shlex.quote(grid.suite["name"])
    return (
        Command(f"secateur bench accuracy --suite {suite}", "run this suite on your own machine"),
        Command("secateur report SUITE_DIR", "draw its page"),
    )
