"""The page that sets several runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from statistics import mean
from typing import Any

from secateur.report.canvas import SERIES
from secateur.report.comparison_words import common_stage, comparable, contest, disagreements, lede
from secateur.report.facts import shared
from secateur.report.grouping import Cell, grouped, labels
from secateur.report.outcome_panels import whole_seconds
from secateur.report.page import Command, Page, Panel, Section, Stat, Table
from secateur.report.plots import Bar, Line, Mark, bars, lines
from secateur.report.words import ABSENT, STAGES, compared, duration, listing, percent, shorten, times, value

Run = Mapping[str, Any]
Groups = Mapping[str, Sequence[Cell]]

_TITLES = {
    "recovered_kd": "Recovered, with KD",
    "recovered": "Recovered, without KD",
    "batchnorm": "After BatchNorm re-estimation",
    "cut": "Right after the cut",
}
_ONE = "All runs are cut to the same sparsity, so the longer bar chose better."
_SEVERAL = "The further right, the more weights are gone. A curve that stays up longer chooses better."
_SEEDS = "Where several seeds were run, their mean is drawn, and a thin line for their range."
_COLUMNS = ("cut", "batchnorm", "recovered", "recovered_kd")


def comparison_page(runs: Sequence[Run], commands: tuple[Command, ...] = ()) -> Page:
    """What the report over several runs says.

    Args:
        runs: At least one, as `secateur.report.schema.read_run` returns them.
        commands: What to do next.
    """
    groups = grouped(runs)
    data = listing(list(dict.fromkeys(run["data"]["name"] for run in runs)))
    sparsities = sorted(run["sparsity"]["prunable"] for run in runs)
    ends = [percent(sparsity) for sparsity in (sparsities[0], sparsities[-1])]
    span = ends[0] if ends[0] == ends[1] else f"{ends[0].split()[0]} to {ends[1]}"
    tables = (
        [_seeds_table(groups)]
        if any(len(cell.runs) > 1 for cells in groups.values() for cell in cells)
        else []
    )
    return Page(
        title=f"secateur: comparison of {len(runs)} runs",
        kicker=f"comparison on {data}",
        headline=(
            Stat(str(len(runs)), "run" if len(runs) == 1 else "runs"),
            Stat(
                str(len(groups)),
                "way of choosing weights" if len(groups) == 1 else "ways of choosing weights",
            ),
            Stat(span, "zeros among prunable weights"),
        ),
        lede=lede(groups, runs),
        density=None,
        notices=tuple(disagreements(runs)),
        sections=(
            Section(
                "Accuracy against sparsity",
                f"{_ONE if _at_one_sparsity(groups) else _SEVERAL} {_SEEDS if tables else ''}",
                tuple(_stage_panel(groups, stage, runs) for stage in _TITLES),
                tuple(tables),
            ),
            Section(
                "What it saves, what it costs",
                "A choice that is a little better may not be worth many times the time.",
                (
                    _size_panel(groups),
                    _cost_panel(groups, "score", "Time to score and choose", ("score", "allocate")),
                    _cost_panel(groups, "recovery", "Time to recover", ("recovery",)),
                ),
            ),
            Section("All runs", "One row a run, in the order given.", (), (_runs_table(runs),)),
        ),
        facts=shared(runs),
        commands=commands,
    )


def _stage_panel(groups: Groups, stage: str, runs: Sequence[Run]) -> Panel:
    key, title = stage.replace("_", "-"), _TITLES[stage]
    measured = {label: [cell for cell in cells if cell.accuracies(stage)] for label, cells in groups.items()}
    if not any(measured.values()):
        return Panel(key, title, absent="none of the runs has this stage")
    finding = contest(measured, stage, runs)
    label = f"{title}. {finding}".strip()
    mark = _dense_mark(runs)
    dashed = "; the dashed line is the network before the cut" if mark else ""
    if _at_one_sparsity(groups):
        rows = [
            _stage_bar(name, cells[0], stage, colour)
            for (name, cells), colour in zip(measured.items(), cycle(SERIES), strict=False)
            if cells
        ]
        marks = [mark] if mark else []
        svg = bars(key, label, rows, limits=(0, 1), marks=marks, fraction=True, axis="test accuracy")
        return Panel(key, title, finding, f"Longer is better{dashed}.", svg)
    curves = [_stage_line(index, *item, stage) for index, item in enumerate(measured.items()) if item[1]]
    svg = lines(
        key,
        label,
        curves,
        x_label="zeros among prunable weights",
        y_label="test accuracy",
        fraction=True,
        x_axis="percent",
        mark=mark,
    )
    return Panel(key, title, finding, f"Higher is better{dashed}.", svg)


def _dense_mark(runs: Sequence[Run]) -> Mark | None:
    dense = [run["accuracy"]["dense"] for run in runs if run["accuracy"]["dense"] is not None]
    if not dense or not comparable(runs):
        return None
    return Mark(mean(dense), f"dense student {percent(mean(dense))}")


def _at_one_sparsity(groups: Groups) -> bool:
    return len({round(cell.sparsity, 4) for cells in groups.values() for cell in cells}) == 1


def _stage_line(index: int, label: str, cells: Sequence[Cell], stage: str) -> Line:
    found = [cell.accuracies(stage) for cell in cells]
    return Line(
        shorten(label, 44),
        [round(cell.sparsity, 4) for cell in cells],
        [mean(accuracies) for accuracies in found],
        SERIES[index % len(SERIES)],
        index,
        spread=[(min(accuracies), max(accuracies)) for accuracies in found],
    )


def _stage_bar(label: str, cell: Cell, stage: str, colour: str) -> Bar:
    found = cell.accuracies(stage)
    ends = (min(found), max(found)) if len(found) > 1 else None
    return Bar(shorten(label), mean(found), percent(mean(found)), colour, ends)


def _size_panel(groups: Groups) -> Panel:
    key, title = "file-size", "Accuracy against file size"
    stage = common_stage(groups)
    if stage is None:
        return Panel(key, title, absent="no stage was measured for every way of choosing weights")
    curves: list[Line] = []
    for index, (label, cells) in enumerate(groups.items()):
        if places := [place for cell in cells if (place := _size_and_accuracy(cell, stage))]:
            x, y = zip(*sorted(places), strict=True)
            curves.append(Line(shorten(label, 44), x, y, SERIES[index % len(SERIES)], index))
    ratios = [x for curve in curves for x in curve.x]
    if len({round(x, 1) for x in ratios}) < 2:
        return Panel(key, title, absent="the files are of one size" if ratios else "no file was written")
    finding = f"The smallest file is {' '.join(compared(1, max(ratios)))} than the dense one."
    how = f"Up and to the right is better; accuracy is that of the stage “{STAGES[stage]}”."
    svg = lines(key, finding, curves, x_label="times smaller on disk", y_label="test accuracy", fraction=True)
    return Panel(key, title, finding, how, svg)


def _size_and_accuracy(cell: Cell, stage: str) -> tuple[float, float] | None:
    known = [
        (run["size_bytes"]["dense"] / run["size_bytes"]["sparse"], run["accuracy"][stage])
        for run in cell.runs
        if run["size_bytes"]["dense"] and run["size_bytes"]["sparse"] and run["accuracy"][stage] is not None
    ]
    return (mean(x for x, _ in known), mean(y for _, y in known)) if known else None


def _cost_panel(groups: Groups, key: str, title: str, parts: Sequence[str]) -> Panel:
    rows: list[Bar] = []
    for index, (label, cells) in enumerate(groups.items()):
        spent = [_spent(run, parts) for cell in cells for run in cell.runs]
        known = [seconds for seconds in spent if seconds is not None]
        if known:
            rows.append(Bar(shorten(label), mean(known), duration(mean(known)), SERIES[index % len(SERIES)]))
    if not rows:
        return Panel(f"cost-{key}", title, absent="no such times were recorded")
    costs = [row.value or 0.0 for row in rows]
    finding = f"On average {duration(mean(costs))} a run, {duration(max(costs))} for the slowest way."
    return Panel(
        f"cost-{key}",
        title,
        finding,
        "Shorter is better: mean over the runs of each way of choosing.",
        bars(f"cost-{key}", finding, rows, limits=(0, max(*costs, 1e-9))),
    )


def _spent(run: Run, parts: Sequence[str]) -> float | None:
    known = [run["seconds"][part] for part in parts if run["seconds"].get(part) is not None]
    return sum(known) if known else None


def _seeds_table(groups: Groups) -> Table:
    return Table(
        "Test accuracy in percent, mean ± standard deviation over seeds",
        ("criterion", "zeros", "seeds", "cut", "BatchNorm", "without KD", "with KD"),
        tuple(
            (label, percent(cell.sparsity), str(len(cell.runs)), *map(cell.described, _COLUMNS))
            for label, cells in groups.items()
            for cell in cells
        ),
    )


def _runs_table(runs: Sequence[Run]) -> Table:
    stages = ("dense", "cut", "BatchNorm", "without KD", "with KD")
    head = ("criterion", "zeros", *stages, "smaller", "time", "seed", "run")
    rows: list[tuple[str, ...]] = []
    for label, run in zip(labels(runs), runs, strict=True):
        dense, sparse = run["size_bytes"]["dense"], run["size_bytes"]["sparse"]
        ratio = times(dense / sparse) if dense and sparse else ABSENT
        shown = (percent(run["accuracy"][stage]) for stage in ("dense", *_COLUMNS))
        zeros, total = percent(run["sparsity"]["prunable"]), duration(whole_seconds(run))
        rows.append((label, zeros, *shown, ratio, total, value("seed", run["seed"]), run["run_id"]))
    return Table("Test accuracy of each run, stage by stage", head, tuple(rows))
