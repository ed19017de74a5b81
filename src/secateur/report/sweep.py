"""The page of a sweep: one scoring pass, many cuts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from secateur.report.canvas import SERIES
from secateur.report.facts import provenance
from secateur.report.outcome_panels import wilson
from secateur.report.page import Command, Notice, Page, Panel, Section, Stat, Table
from secateur.report.plots import Line, Mark, heat, lines
from secateur.report.words import ABSENT, duration, percent

Sweep = Mapping[str, Any]
Grid = Mapping[tuple[float | None, float], Mapping[str, Any]]

_STAGES = {"cut": "Right after the cut", "batchnorm": "After BatchNorm re-estimation"}


def sweep_page(sweep: Sweep, commands: Sequence[Command] = ()) -> Page:
    """What the report of a sweep says.

    Args:
        sweep: As `secateur.report.schema.read_sweep` returns it.
        commands: What to do next with what it found.
    """
    grid: Grid = {(row["alpha"], row["sparsity"]): row for row in sweep["rows"]}
    alphas = sorted({alpha for alpha, _ in grid if alpha is not None})
    sparsities = sorted({sparsity for _, sparsity in grid})
    panels: list[Panel] = []
    for stage in _STAGES:
        panels += (
            _alpha_panels(sweep, grid, stage) if len(alphas) > 1 else [_sparsity_panel(sweep, grid, stage)]
        )
    stats = [Stat(str(len(grid)), "cuts from one scoring pass" if len(grid) > 1 else "cut")]
    if (total := sweep["seconds"]["total"]) is not None:
        stats.append(Stat(duration(total), "in all"))
    stats.append(
        Stat(f"{percent(sparsities[0]).split()[0]}–{percent(sparsities[-1])}", "zeros among prunable weights")
    )
    return Page(
        title=f"secateur: sweep of {sweep['criterion']['name']} on {sweep['data']['name']}",
        kicker=f"sweep {sweep['run_id']}",
        headline=tuple(stats),
        lede=_lede(sweep, grid, len(alphas) > 1),
        density=None,
        notices=_notices(len(alphas) > 1),
        sections=(
            Section(
                "Accuracy of every cut",
                "On the validation split; none of these networks was trained after the cut.",
                tuple(panels),
            ),
            Section("All cuts", "On the validation split, without any recovery.", (), (_table(sweep),)),
        ),
        facts=provenance(sweep),
        commands=(
            *commands,
            Command("secateur report RUN RUN", "set the runs that you made side by side"),
        ),
    )


def _alpha_panels(sweep: Sweep, grid: Grid, stage: str) -> list[Panel]:
    """A heat map over alpha and sparsity, and the same as one curve over alpha for each sparsity."""
    alphas = sorted({alpha for alpha, _ in grid if alpha is not None})
    sparsities = sorted({sparsity for _, sparsity in grid})
    title = _STAGES[stage]
    if all(row[stage] is None for row in grid.values()):
        return [Panel(f"heat-{stage}", title, absent="this stage was not run")]
    values = [[grid.get((alpha, sparsity), {}).get(stage) for sparsity in sparsities] for alpha in alphas]
    finding = _alpha_sentence(grid, stage, sparsities, sweep["data"].get("n_val"))
    curves = [
        Line(f"{percent(sparsity)} zeros", alphas, column, SERIES[index % len(SERIES)], index)
        for index, (sparsity, column) in enumerate(zip(sparsities, zip(*values, strict=True), strict=True))
        if any(accuracy is not None for accuracy in column)
    ]
    dense = sweep["dense_accuracy"]
    return [
        Panel(
            f"heat-{stage}",
            title,
            finding,
            "A cell is the validation accuracy in percent of one cut; fuller colour is better, "
            "a frame marks the best alpha of each column.",
            heat(
                f"heat-{stage}",
                f"{title}. {finding}",
                [percent(sparsity) for sparsity in sparsities],
                [f"{alpha:g}" for alpha in alphas],
                values,
                column_label="zeros among prunable weights",
                row_label="alpha",
            ),
        ),
        Panel(
            f"alpha-{stage}",
            f"{title}, over alpha",
            "",
            "At alpha 0 the teacher alone decides, at 1 the labels alone; "
            "a flat curve means that alpha hardly matters.",
            lines(
                f"alpha-{stage}",
                f"{title}, over alpha. {finding}",
                curves,
                x_label="alpha: weight of the task term in the score",
                y_label="validation accuracy",
                fraction=True,
                x_axis="number",
                mark=None if dense is None else Mark(dense, f"dense student {percent(dense)}"),
            ),
        ),
    ]


def _sparsity_panel(sweep: Sweep, grid: Grid, stage: str) -> Panel:
    title, dense = _STAGES[stage], sweep["dense_accuracy"]
    found = sorted((sparsity, row[stage]) for (_, sparsity), row in grid.items() if row[stage] is not None)
    if not found:
        return Panel(f"sparsity-{stage}", title, absent="this stage was not run")
    x, y = zip(*found, strict=True)
    finding = f"{percent(y[0])} at {percent(x[0])} zeros, {percent(y[-1])} at {percent(x[-1])}."
    return Panel(
        f"sparsity-{stage}",
        title,
        finding,
        "Higher is better; where the curve falls off, recovery has much to win back.",
        lines(
            f"sparsity-{stage}",
            f"{title}. {finding}",
            [Line(sweep["criterion"]["name"], x, y, SERIES[0])],
            x_label="zeros among prunable weights",
            y_label="validation accuracy",
            fraction=True,
            x_axis="percent",
            mark=None if dense is None else Mark(dense, f"dense student {percent(dense)}"),
        ),
    )


def _best(grid: Grid, stage: str, sparsity: float) -> list[tuple[float, float | None]]:
    """Accuracy and alpha of each cut at `sparsity`, the best first."""
    found = [
        (row[stage], alpha) for (alpha, at), row in grid.items() if at == sparsity and row[stage] is not None
    ]
    return sorted(found, key=lambda pair: (-pair[0], pair[1] or 0.0))


def _alpha_sentence(grid: Grid, stage: str, sparsities: Sequence[float], n_val: int | None) -> str:
    """What alpha is good for where it makes the largest difference."""
    ranked = {sparsity: found for sparsity in sparsities if (found := _best(grid, stage, sparsity))}
    sparsity = max(ranked, key=lambda at: ranked[at][0][0] - ranked[at][-1][0])
    (best, alpha), (worst, other) = ranked[sparsity][0], ranked[sparsity][-1]
    if best == worst:
        return "Alpha makes no difference here."
    text = (
        f"Alpha matters most at {percent(sparsity)} zeros: {percent(best)} with alpha {alpha:g}, "
        f"{percent(worst)} with alpha {other:g}."
    )
    low, high = wilson(best, n_val) if n_val else (best, best)
    return f"{text} {n_val} validation samples cannot tell so little apart." if worst > low < high else text


def _lede(sweep: Sweep, grid: Grid, has_alpha: bool) -> str:
    models, data = sweep["models"], sweep["data"]
    teacher = f", with {models['teacher'].get('name', 'a teacher')} as teacher" if models["teacher"] else ""
    over = "alpha and sparsity" if has_alpha else "sparsity"
    scored = sweep["seconds"].get("score")
    took = f" Scoring took {duration(scored)}, and no cut needs another pass." if scored is not None else ""
    return (
        f"{models['student'].get('name', 'The student')} on {data['name']}{teacher}, scored once by "
        f"{sweep['criterion']['name']}, then cut at every {over}.{took}"
    )


def _notices(has_alpha: bool) -> tuple[Notice, ...]:
    if not has_alpha:
        return ()
    return (
        Notice(
            "note",
            "Choosing alpha here flatters the result",
            "The best of many numbers is partly luck. Choose alpha here, then quote the test accuracy of a "
            "fresh run, and recover it before you judge: the order may change.",
        ),
    )


def _table(sweep: Sweep) -> Table:
    rows = sorted(sweep["rows"], key=lambda row: (row["sparsity"], row["alpha"] or 0.0))
    return Table(
        "Validation accuracy of every cut",
        ("zeros", "alpha", "after the cut", "BatchNorm re-estimated", "mask digest"),
        tuple(
            (
                percent(row["sparsity"]),
                ABSENT if row["alpha"] is None else f"{row['alpha']:g}",
                percent(row["cut"]),
                percent(row["batchnorm"]),
                str(row.get("mask_digest", ABSENT)).removeprefix("sha256:")[:12],
            )
            for row in rows
        ),
    )
