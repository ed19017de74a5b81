"""The page that sets several runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from secateur.report.canvas import SERIES
from secateur.report.comparison_words import contest, disagreements, lede
from secateur.report.facts import shared
from secateur.report.grouping import Cell, grouped, labels
from secateur.report.outcome_panels import final_stage
from secateur.report.page import Command, Page, Panel, Section, Stat, Table
from secateur.report.plots import Bar, Line, Mark, bars, lines
from secateur.report.words import ABSENT, duration, percent, shorten, times, value

Run = Mapping[str, Any]
Groups = Mapping[str, Sequence[Cell]]

_TITLES = {
    "recovered_kd": "Recovered, with KD",
    "recovered": "Recovered, without KD",
    "batchnorm": "After BatchNorm re-estimation",
    "cut": "Right after the cut",
}


def comparison_page(runs: Sequence[Run]) -> Page:
    """What the report over several runs says.

    Args:
        runs: At least one, as `secateur.report.schema.read_run` returns them.
    """
    groups = grouped(runs)
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
        kicker=f"comparison on {runs[0]['data']['name']}",
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
        notices=disagreements(runs),
        sections=(
            Section(
                "Accuracy against sparsity",
                "The further right, the more weights are gone. A curve that stays up longer chooses better. "
                "Where several seeds were run, a point is their mean and a line through it their range.",
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
        commands=(
            Command("secateur report RUN", "one run in full: layers, scores, stability, curves"),
            Command(
                "secateur verify RUN/student.safetensors",
                "that a file is whole and its zeros are where the masks say",
            ),
        ),
    )


def _stage_panel(groups: Groups, stage: str, runs: Sequence[Run]) -> Panel:
    key, title = stage.replace("_", "-"), _TITLES[stage]
    measured = {
        label: [cell for cell in cells if cell.accuracies(stage)]
        for label, cells in groups.items()
        if any(cell.accuracies(stage) for cell in cells)
    }
    if not measured:
        return Panel(key, title, absent="none of the runs has this stage")
    finding = contest(measured, stage, runs)
    dense = [run["accuracy"]["dense"] for run in runs if run["accuracy"]["dense"] is not None]
    marks = [Mark(mean(dense), f"dense student {percent(mean(dense))}")] if dense else []
    if len({round(cell.sparsity, 4) for cells in measured.values() for cell in cells}) == 1:
        svg = bars(
            key,
            finding,
            _stage_bars(measured, stage),
            limits=(0, 1),
            marks=marks,
            fraction=True,
            axis="test accuracy",
        )
        return Panel(key, title, finding, "Longer is better; whiskers are the range over seeds.", svg)
    svg = lines(
        key,
        finding,
        [_stage_line(index, label, cells, stage) for index, (label, cells) in enumerate(measured.items())],
        x_label="zeros among prunable weights",
        y_label="test accuracy",
        fraction=True,
        x_fraction=True,
        mark=marks[0] if marks else None,
    )
    return Panel(key, title, finding, "Higher is better; the dashed line is the network before the cut.", svg)


def _stage_line(index: int, label: str, cells: Sequence[Cell], stage: str) -> Line:
    found = [cell.accuracies(stage) for cell in cells]
    return Line(
        shorten(label, 44),
        [cell.sparsity for cell in cells],
        [mean(accuracies) for accuracies in found],
        SERIES[index % len(SERIES)],
        index,
        spread=[(min(accuracies), max(accuracies)) for accuracies in found],
    )


def _stage_bars(groups: Groups, stage: str) -> list[Bar]:
    rows: list[Bar] = []
    for index, (label, cells) in enumerate(groups.items()):
        found = [accuracy for cell in cells for accuracy in cell.accuracies(stage)]
        ends = (min(found), max(found)) if len(found) > 1 else None
        rows.append(Bar(shorten(label), mean(found), percent(mean(found)), SERIES[index % len(SERIES)], ends))
    return rows


def _size_panel(groups: Groups) -> Panel:
    curves: list[Line] = []
    for index, (label, cells) in enumerate(groups.items()):
        points = sorted(
            (run["size_bytes"]["dense"] / run["size_bytes"]["sparse"], run["accuracy"][stage])
            for cell in cells
            for run in cell.runs
            if run["size_bytes"]["dense"] and run["size_bytes"]["sparse"] and (stage := final_stage(run))
        )
        if points:
            x, y = zip(*points, strict=True)
            curves.append(Line(shorten(label, 44), x, y, SERIES[index % len(SERIES)], index))
    if not curves:
        return Panel("file-size", "Accuracy against file size", absent="no sparse files were written")
    most = max(x for curve in curves for x in curve.x)
    finding = f"The smallest file is {times(most)} smaller than the dense one."
    return Panel(
        "file-size",
        "Accuracy against file size",
        finding,
        "Up and to the right is better; each point is the accuracy at the end of one run.",
        lines(
            "file-size",
            finding,
            curves,
            x_label="times smaller on disk",
            y_label="test accuracy",
            fraction=True,
        ),
    )


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
        ("criterion", "zeros", "seeds", *(title.lower() for title in _TITLES.values())),
        tuple(
            (
                label,
                percent(cell.sparsity),
                str(len(cell.runs)),
                *(cell.described(stage) for stage in _TITLES),
            )
            for label, cells in groups.items()
            for cell in cells
        ),
    )


def _runs_table(runs: Sequence[Run]) -> Table:
    head = (
        "run",
        "criterion",
        "zeros",
        "dense",
        "cut",
        "BatchNorm",
        "without KD",
        "with KD",
        "smaller",
        "time",
        "seed",
    )
    rows: list[tuple[str, ...]] = []
    for label, run in zip(labels(runs), runs, strict=True):
        accuracy, n_bytes = run["accuracy"], run["size_bytes"]
        ratio = (
            times(n_bytes["dense"] / n_bytes["sparse"]) if n_bytes["dense"] and n_bytes["sparse"] else ABSENT
        )
        shown = (
            percent(accuracy[stage]) for stage in ("dense", "cut", "batchnorm", "recovered", "recovered_kd")
        )
        zeros, total = percent(run["sparsity"]["prunable"]), duration(run["seconds"]["total"])
        rows.append((run["run_id"], label, zeros, *shown, ratio, total, value("seed", run["seed"])))
    return Table("All runs: test accuracy at each stage", head, tuple(rows))
