"""The figure of a cut that moves the kept weights: what each stage was to cost, cost, and won back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from secateur.report.canvas import ACCENT, GREY, ORANGE
from secateur.report.page import Panel, Table
from secateur.report.plots import Line, lines
from secateur.report.words import ABSENT, duration

Run = Mapping[str, Any]


def stage_losses_panels(run: Run) -> tuple[Panel, ...]:
    """The teacher's loss stage by stage; nothing where no stage measured it, as in older results."""
    rows: Sequence[Run] = [row for row in run.get("stages", {}).get("rows", ()) if row.get("loss")]
    if not rows:
        return ()
    finding = _finding(rows)
    title = "What each stage did to the teacher's loss"
    return (
        Panel(
            "stage-losses",
            title,
            finding,
            "Lower is better; at 0 the student answers as its teacher does. Measured on calibration inputs, "
            "the very ones that a stage learns from, so it flatters: the test accuracy is what counts.",
            lines("stage-losses", f"{title}. {finding}", _curves(rows), x_label="stage", y_label="loss"),
            table=_table(rows),
        ),
    )


def _curves(rows: Sequence[Run]) -> list[Line]:
    places = list(range(1, len(rows) + 1))
    found = [Line("after the cut", places, [row["loss"]["cut"] for row in rows], ORANGE, 0)]
    if any(row["n_steps"] for row in rows):
        after = [rows[0]["loss"]["before"], *(row["loss"]["recovered"] for row in rows)]
        found.append(Line("after its steps", [0, *places], after, ACCENT, 1))
    if any(row["predicted"] is not None for row in rows):
        expected = [_sum(row["loss"]["before"], row["predicted"]) for row in rows]
        found.append(Line("predicted for the cut", places, expected, GREY, 2))
    return found


def _finding(rows: Sequence[Run]) -> str:
    parts: list[str] = []
    n_steps, last = sum(row["n_steps"] for row in rows), rows[-1]["loss"]
    if n_steps:
        took = duration(sum(row["recovery_s"] for row in rows))
        parts.append(
            f"{n_steps} distillation steps in {took}, without labels: the loss is {_loss(last['cut'])} after "
            f"the last cut and {_loss(last['recovered'])} after the steps that follow it."
        )
    predicted = [row["predicted"] for row in rows if row["predicted"] is not None]
    measured = [change for row in rows if (change := _change(row)) is not None]
    if len(predicted) == len(measured) == len(rows):
        parts.append(
            f"The criterion expected its cuts to change the loss by {_signed(sum(predicted))} in all, "
            f"and they changed it by {_signed(sum(measured))}."
        )
    return " ".join(parts)


def _table(rows: Sequence[Run]) -> Table:
    return Table(
        "Change of the loss by the cut; the loss after the cut, and at the end of the stage",
        ("stage", "predicted", "measured", "cut", "steps", "end"),
        tuple(
            (
                str(place),
                _signed(row["predicted"]),
                _signed(_change(row)),
                _loss(row["loss"]["cut"]),
                f"{row['n_steps']} in {duration(row['recovery_s'])}" if row["n_steps"] else ABSENT,
                _loss(row["loss"]["recovered"]) if row["n_steps"] else ABSENT,
            )
            for place, row in enumerate(rows, start=1)
        ),
    )


def _change(row: Run) -> float | None:
    """What the cut of a stage, and its solve, really changed the loss by."""
    before = row["loss"]["before"]
    return _sum(row["loss"]["cut"], None if before is None else -before)


def _sum(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a + b


def _loss(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.2g}"


def _signed(value: float | None) -> str:
    return ABSENT if value is None else f"{value:+.2g}".replace("-", "−")
