"""Figures of what a run achieved: accuracy, size, time, learning curves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from secateur.report.canvas import ACCENT, BLUE, GREEN, GREY, ORANGE
from secateur.report.page import Panel, Table
from secateur.report.plots import Bar, Line, Mark, bars, lines
from secateur.report.words import (
    FINAL_STAGES,
    STAGES,
    compared,
    duration,
    number,
    percent,
    points,
    size,
)

Run = Mapping[str, Any]

_STAGE_COLOURS = {"teacher": ORANGE, "dense": GREY, "recovered": BLUE}
_CURVES = (
    ("teacher", "teacher", ORANGE),
    ("dense", "dense student", GREY),
    ("recovered", "recovery without KD", BLUE),
    ("recovered_kd", "recovery with KD", GREEN),
)
_REACHED = {
    "batchnorm": "with BatchNorm re-estimated",
    "recovered": "recovered without KD",
    "recovered_kd": "recovered with KD",
}
_SECONDS = {
    "teacher": "train the teacher",
    "dense": "train the student",
    "score": "score the weights",
    "allocate": "choose what to cut",
    "calibration": "distil on calibration inputs",
    "batchnorm": "re-estimate BatchNorm",
    "recovery": "recover",
}


def final_stage(run: Run) -> str | None:
    """The stage whose accuracy stands for the finished network; None where none was measured."""
    return next((stage for stage in FINAL_STAGES if run["accuracy"][stage] is not None), None)


def wilson(fraction: float, n: int) -> tuple[float, float]:
    """The 95 % Wilson interval of a fraction seen in `n` samples.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", 1927.

    Args:
        fraction: In [0, 1].
        n: Number of samples, ≥ 1.

    Returns:
        Both ends, in [0, 1].
    """
    z = 1.96
    centre = fraction + z * z / (2 * n)
    spread = z * math.sqrt(fraction * (1 - fraction) / n + z * z / (4 * n * n))
    return (centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n)


def accuracy_panel(run: Run) -> Panel:
    """Test accuracy at each stage, as a ladder from the teacher down and up again."""
    accuracy, n_test, n_classes = run["accuracy"], run["data"]["n_test"], run["data"]["n_classes"]
    if all(value is None for value in accuracy.values()):
        return Panel("accuracy", "Accuracy, step by step", absent="no accuracy was measured")
    rows = [
        Bar(
            name,
            accuracy[stage],
            "not run" if accuracy[stage] is None else percent(accuracy[stage]),
            colour=_STAGE_COLOURS.get(stage, ACCENT),
            interval=wilson(accuracy[stage], n_test) if n_test and accuracy[stage] is not None else None,
            faint=stage in ("cut", "batchnorm"),
        )
        for stage, name in STAGES.items()
    ]
    marks = [Mark(1 / n_classes, f"guessing {percent(1 / n_classes, 0)}")] if n_classes else []
    if accuracy["dense"] is not None:
        marks.append(Mark(accuracy["dense"], "dense student"))
    finding = _accuracy_finding(run)
    whisker = f"; whiskers are the 95 % range that {number(n_test)} test samples allow" if n_test else ""
    return Panel(
        "accuracy",
        "Accuracy, step by step",
        finding,
        f"Longer is better: a bar is the share of test samples answered rightly{whisker}.",
        bars("accuracy", finding, rows, limits=(0, 1), marks=marks, fraction=True, axis="test accuracy"),
        table=Table(
            "Test accuracy",
            ("stage", "accuracy", "95 % range"),
            tuple(
                (
                    row.name,
                    row.text,
                    " to ".join(percent(end) for end in row.interval) if row.interval else "",
                )
                for row in rows
            ),
        ),
    )


def _accuracy_finding(run: Run) -> str:
    accuracy, stage = run["accuracy"], final_stage(run)
    if stage is None:
        return "Only the networks before the cut were measured."
    cut = "The cut with its distillation steps" if run.get("calibration_recovery") else "The cut alone"
    parts = [f"{cut} leaves {percent(accuracy['cut'])}"] if accuracy["cut"] is not None else []
    if stage != "cut":
        parts.append(f"{_REACHED[stage]} it reaches {percent(accuracy[stage])}")
    text = "; ".join(parts)
    text = text[0].upper() + text[1:]
    if accuracy["dense"] is None:
        return f"{text}."
    gap = accuracy[stage] - accuracy["dense"]
    if abs(gap) < 0.0005:
        return f"{text}, level with the dense student."
    return f"{text}, {points(gap)} {'above' if gap > 0 else 'below'} the dense student."


def size_panel(run: Run) -> Panel:
    """Bytes on disk, dense against sparse."""
    dense, sparse = run["size_bytes"]["dense"], run["size_bytes"]["sparse"]
    if not dense or not sparse:
        return Panel("size", "Size on disk", absent="no sparse file was written")
    ratio, word = compared(sparse, dense)
    finding = f"The sparse file takes {size(sparse)} instead of {size(dense)}: {ratio} {word}."
    rows = [Bar("dense file", dense, size(dense), colour=GREY), Bar("sparse file", sparse, size(sparse))]
    return Panel(
        "size",
        "Size on disk",
        finding,
        "Shorter is better: each bar is the size of a file with all parameters of the student.",
        bars("size", finding, rows, limits=(0, max(dense, sparse))),
        table=Table("Size on disk", ("file", "size"), tuple((row.name, row.text) for row in rows)),
    )


def seconds_by_step(run: Run) -> dict[str, float]:
    """The known times of a run, without the whole."""
    return {key: spent for key, spent in run["seconds"].items() if key != "total" and spent is not None}


def was_resumed(run: Run) -> bool:
    """Whether the steps took longer than the whole, which counts from where a run was taken up again."""
    total = run["seconds"]["total"]
    return total is not None and sum(seconds_by_step(run).values()) > total


def whole_seconds(run: Run) -> float | None:
    """What a run took in all; of one that was taken up again the sum of its steps."""
    return sum(seconds_by_step(run).values()) if was_resumed(run) else run["seconds"]["total"]


def seconds_panel(run: Run) -> Panel:
    """Where the time went."""
    spent = seconds_by_step(run)
    if not spent:
        return Panel("seconds", "Time spent", absent="no times were recorded")
    rows = [
        Bar(str(_SECONDS.get(key, key)), value, duration(value), ACCENT if key in _PRUNING else GREY)
        for key, value in spent.items()
    ]
    cut = sum(spent.get(key, 0.0) for key in _PRUNING[:2])
    total = whole_seconds(run)
    whole = f" of {duration(total)} in all" if total is not None else ""
    finding = f"Scoring and choosing took {duration(cut)}{whole}."
    if was_resumed(run):
        finding += (
            " The run was stopped and taken up again: what it took in all is the sum of the bars, as the "
            f"total of {duration(run['seconds']['total'])} in its result counts from there."
        )
    return Panel(
        "seconds",
        "Time spent",
        finding,
        "Each bar is one step; green steps belong to pruning, grey ones only prepare the networks.",
        bars("seconds", finding, rows, limits=(0, max(*spent.values(), 1e-9))),
        table=Table("Time spent", ("step", "time"), tuple((row.name, row.text) for row in rows)),
    )


_PRUNING = ("score", "allocate", "calibration", "batchnorm", "recovery")


def curve_panels(run: Run) -> tuple[Panel, Panel]:
    """Training loss and validation accuracy over the epochs."""
    return (
        _curves(
            run,
            "loss",
            "Training loss",
            "Lower is better. A loss with KD counts something else than one "
            "without, so compare shapes, not heights.",
        ),
        _curves(
            run,
            "val_accuracy",
            "Validation accuracy",
            "Higher is better; a ring marks the epoch whose weights "
            "were kept, chosen on validation samples and never on the test set.",
        ),
    )


def _curves(run: Run, field: str, title: str, how: str) -> Panel:
    key = field.replace("_", "-")
    drawn = [
        Line(
            name,
            [entry["epoch"] for entry in run["curves"][curve]],
            [entry[field] for entry in run["curves"][curve]],
            colour,
            index,
            highlight=_selected(run, curve) if field == "val_accuracy" else None,
        )
        for index, (curve, name, colour) in enumerate(_CURVES)
        if run["curves"][curve] and any(entry[field] is not None for entry in run["curves"][curve])
    ]
    if not drawn:
        return Panel(key, title, absent="there were no epochs of training")
    fraction = field == "val_accuracy"
    ends = [(line, next(value for value in reversed(line.y) if value is not None)) for line in drawn]
    shown = [f"{line.name} {percent(end) if fraction else f'{end:.3g}'}" for line, end in ends]
    finding = f"At the last epoch: {', '.join(shown)}."
    return Panel(
        key,
        title,
        finding,
        how,
        lines(key, f"{title}. {finding}", drawn, x_label="epoch", y_label=title.lower(), fraction=fraction),
    )


def _selected(run: Run, curve: str) -> int | None:
    chosen = run["selected_epoch"].get(curve)
    epochs = [entry["epoch"] for entry in run["curves"][curve]]
    return epochs.index(chosen) if chosen in epochs else None
