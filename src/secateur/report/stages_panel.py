"""The figure of a cut in stages: what they bought over one cut, and what each of them did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from secateur.report.canvas import ACCENT, GREY
from secateur.report.page import Panel, Table
from secateur.report.plots import Bar, bars
from secateur.report.words import number, percent, points

Run = Mapping[str, Any]


def stages_panels(run: Run) -> tuple[Panel, ...]:
    """What the stages bought; nothing for one cut, and for a result that does not know of stages."""
    stages: Run | None = run.get("stages")
    if stages is None or stages["one_cut"] is None:
        return ()
    one_cut, n = stages["one_cut"], stages["n"]
    rows: list[Bar] = []
    for stage, words in (("cut", ""), ("batchnorm", ", BatchNorm re-estimated")):
        for name, accuracy, colour in (
            ("one cut", one_cut[stage], GREY),
            (f"{n} stages", run["accuracy"][stage], ACCENT),
        ):
            if accuracy is not None:
                rows.append(Bar(f"{name}{words}", accuracy, percent(accuracy), colour=colour))
    finding = _finding(run, one_cut, n)
    moved = any(row.get("loss") for row in stages["rows"])
    also = ", changes to the kept weights included" if moved else ""
    back = "a removed weight could return" if stages["regrow"] else "no removed weight could return"
    return (
        Panel(
            "stages",
            "What the stages bought",
            finding,
            f"Test accuracy before recovery on training data{also}. "
            f"Each stage scored anew what the one before had left; {back}. "
            "One cut is what the scores of the first stage alone would have removed"
            f"{', all other weights as they were' if moved else ''}.",
            bars("stages", finding, rows, limits=(0, 1), fraction=True, axis="accuracy"),
            table=_table(stages["rows"]),
        ),
    )


def _finding(run: Run, one_cut: Run, n: int) -> str:
    gain = _best_known(run["accuracy"]) - _best_known(one_cut)
    verdict = f"{points(gain)} {'more' if gain > 0 else 'less'} accuracy than" if gain else "the accuracy of"
    n_steps = sum(row.get("n_steps", 0) for row in run["stages"]["rows"])
    steps = f" with {n_steps} distillation steps" if n_steps else ""
    return (
        f"{n} stages{steps} gave {verdict} one cut, and the two masks share "
        f"{percent(one_cut['mask_overlap'], 0)} of the weights that either keeps."
    )


def _best_known(accuracy: Run) -> float:
    """With BatchNorm re-estimated where it was; a cut that trained ends with statistics of its own."""
    return accuracy["cut"] if accuracy["batchnorm"] is None else accuracy["batchnorm"]


def _table(rows: Sequence[Run]) -> Table:
    return Table(
        "Stages",
        ("stage", "sparsity asked for", "removed", "returned"),
        tuple(
            (str(place), percent(row["sparsity"], 2), number(row["n_prune"]), number(row["n_returned"]))
            for place, row in enumerate(rows, start=1)
        ),
    )
