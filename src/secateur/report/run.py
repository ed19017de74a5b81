"""The page of one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from secateur.report.facts import provenance
from secateur.report.mask_panels import agreement_panel, density_panel, scores_panel, split_half_panel
from secateur.report.notices import notices
from secateur.report.outcome_panels import (
    accuracy_panel,
    curve_panels,
    final_stage,
    seconds_panel,
    size_panel,
    was_resumed,
    whole_seconds,
)
from secateur.report.page import Command, Page, Section, Stat
from secateur.report.stage_losses_panel import stage_losses_panels
from secateur.report.stages_panel import stages_panels
from secateur.report.words import STAGES, compared, duration, percent

Run = Mapping[str, Any]


def run_page(run: Run, commands: Sequence[Command] = ()) -> Page:
    """What the report of one run says.

    Args:
        run: As `secateur.report.schema.read_run` returns it.
        commands: What to do next; by default what can be done with any run.
    """
    return Page(
        title=f"secateur: {run['criterion']['name']} on {run['data']['name']}, run {run['run_id']}",
        kicker=f"run {run['run_id']}",
        headline=_headline(run),
        lede=_lede(run),
        density=1 - run["sparsity"]["prunable"],
        notices=notices(run),
        sections=(
            Section(
                "What it costs, what it saves",
                "How accurate the network still is, how small its file became, and how long that took.",
                (accuracy_panel(run), size_panel(run), seconds_panel(run)),
            ),
            Section(
                "What was removed, and why",
                "Every weight gets a score, the highest scores stay. These figures show where the line fell "
                "and how far the score can be trusted.",
                (
                    density_panel(run),
                    scores_panel(run),
                    *stages_panels(run),
                    *stage_losses_panels(run),
                    split_half_panel(run),
                    agreement_panel(run),
                ),
            ),
            Section("How it learned", "Training before the cut, and recovery after it.", curve_panels(run)),
        ),
        facts=provenance(run),
        commands=tuple(commands) or looks("RUN"),
    )


def _headline(run: Run) -> tuple[Stat, ...]:
    stats = [Stat(percent(run["sparsity"]["prunable"]), "of the prunable weights removed")]
    stage, dense = final_stage(run), run["accuracy"]["dense"]
    if stage is not None:
        before = f"{percent(dense)} → " if dense is not None else ""
        stats.append(Stat(before + percent(run["accuracy"][stage]), "accuracy"))
    size = run["size_bytes"]
    if size["dense"] is not None and size["sparse"]:
        ratio, word = compared(size["sparse"], size["dense"])
        stats.append(Stat(ratio, f"{word} on disk"))
    return tuple(stats)


def _lede(run: Run) -> str:
    models, data = run["models"], run["data"]
    student = models["student"].get("name", "the student")
    teacher = f", with {models['teacher'].get('name', 'a teacher')} as teacher" if models["teacher"] else ""
    stage = final_stage(run)
    where = f" The last accuracy is that of the network {_PHRASES[stage]}." if stage is not None else ""
    return (
        f"{student} on {data['name']}{teacher}, "
        f"cut by {run['criterion']['name']} with {run['scope']['name']} scope. "
        "Sparsity over all parameters, biases and norms included, "
        f"is {percent(run['sparsity']['all'])}.{where}{_took(run)}"
    )


def _took(run: Run) -> str:
    total = whole_seconds(run)
    if total is None:
        return ""
    if was_resumed(run):
        return f" The run was stopped and taken up again; its steps took {duration(total)} together."
    return f" The whole run took {duration(total)}."


_PHRASES = {
    "cut": STAGES["cut"],
    "batchnorm": "after the cut, with BatchNorm statistics re-estimated",
    "recovered": "recovered without distillation (KD)",
    "recovered_kd": "recovered with distillation (KD)",
}


def looks(folder: str) -> tuple[Command, Command]:
    """The commands that look into what a run saved in `folder`, which a shell can read."""
    return (
        Command(f"secateur inspect {folder}", "what the sparse file holds, tensor by tensor"),
        Command(
            f"secateur verify {folder}", "that the file is whole, and exactly as much pruned as was asked for"
        ),
    )
