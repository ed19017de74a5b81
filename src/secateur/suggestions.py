"""What to do after a run, a sweep or a suite: commands that name its data, its networks and its options."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from secateur.allocate import SCOPES
from secateur.building import wants_teacher
from secateur.config import RunConfig, Setup, SweepConfig, build_scope
from secateur.errors import InvalidArgument
from secateur.report.page import Command
from secateur.report.run import looks
from secateur.scores import CRITERIA
from secateur.values import plain


def after_run(config: RunConfig, result: Mapping[str, Any], folder: Path) -> tuple[Command, ...]:
    """Look into what a run saved; then the sweep around its cut, if one makes such cuts, and a plan.

    Args:
        config: The run.
        result: What it found, as in ``result.json``.
        folder: Where it lies, from where the commands are to be run.
    """
    where = shlex.quote(str(folder))
    sweep = _sweep(config, result, folder)
    return (
        *looks(where),
        *([sweep] if sweep else []),
        Command(f"secateur compile {where}", "the student as a plan, which runs fast and without torch"),
    )


def after_comparison(folder: Path) -> tuple[Command, ...]:
    """Look into a run of those that were compared.

    Args:
        folder: Where it lies, from where the commands are to be run.
    """
    where = shlex.quote(str(folder))
    report = Command(f"secateur report {where}", "one run in full: layers, scores, stability, curves")
    return report, *looks(where)


def after_sweep(config: SweepConfig, content: Mapping[str, Any], folder: Path) -> tuple[Command, ...]:
    """The run of one of the cuts: the most accurate one at the middle sparsity.

    Args:
        config: The sweep.
        content: What it found, as in ``sweep.json``.
        folder: As for `after_run`.
    """
    sparsities = sorted({row["sparsity"] for row in content["rows"]})
    sparsity, setup = sparsities[len(sparsities) // 2], config.setup
    rows = [row for row in content["rows"] if row["sparsity"] == sparsity]
    best = max(rows, key=lambda row: row["batchnorm"] or row["cut"] or 0.0)  # null where it was not measured
    more = ["--sparsity", repr(sparsity)]
    if best["alpha"] is not None:
        more += ["--alpha", repr(best["alpha"])]
        setup = _with_alpha(setup, None)
    taught = content["models"]["teacher"] is not None
    if not taught:
        more += ["--recover", "plain"]
    words = ["secateur", "prune", *_flags(_with_networks(setup, folder, taught=taught)), *more]
    return (
        Command(
            shlex.join([*words, "--out", "runs/chosen"]),
            "one of these cuts in full: recovered, saved and reported",
        ),
    )


def after_suite(content: Mapping[str, Any], folder: Path) -> tuple[Command, ...]:
    """Run what is missing, if anything, by the suite as the folder keeps it; and draw the page again.

    Args:
        content: What was found, as in ``suite.json``.
        folder: As for `after_run`.
    """
    where, n_missing = shlex.quote(str(folder)), content["n_planned"] - len(content["cells"])
    kept = shlex.quote(str(folder / "suite.yaml"))
    again = Command(f"secateur report {where}", "draw this page again")
    if not n_missing:
        return (again,)
    cells = "cell that is" if n_missing == 1 else "cells that are"
    missing = f"run the {n_missing} {cells} missing; finished ones are kept"
    return Command(f"secateur bench accuracy --suite {kept} --out {where}", missing), again


def _sweep(config: RunConfig, result: Mapping[str, Any], folder: Path) -> Command | None:
    """The sweep around the cut of a run; None where it would make others, since it knows plain cuts only."""
    setup, criterion = config.setup, result["criterion"]
    one_cut = config.pattern == "unstructured" and config.stages == 1 and not config.calibration.runs
    if not one_cut or criterion.get("update_weights"):
        return None
    sparsities = _nearby(config, result["layers"])
    more, over = ["--sparsity", ",".join(map(repr, sparsities))], "sparsity"
    two_terms = criterion["name"] == "teacher-guided" and criterion.get("form") == "separate"
    if two_terms and not setup.own_teacher:
        more, over = ["--alpha", "0:1:0.1", *more], "alpha and sparsity"
    elif len(sparsities) == 1:
        return None
    elif config.alpha is not None:
        setup = _with_alpha(setup, config.alpha)
    # What a class of the user's own wants cannot be told where it cannot be imported.
    wanted = setup.score.criterion not in CRITERIA or wants_teacher(setup.score.criterion)
    taught = wanted and result["models"]["teacher"] is not None
    words = ["secateur", "sweep", *_flags(_with_networks(setup, folder, taught=taught)), *more]
    return Command(shlex.join(words), f"how the accuracy after the cut depends on {over}")


def _nearby(config: RunConfig, layers: Sequence[Mapping[str, Any]]) -> list[float]:
    """The sparsity of a run, and those that keep twice and half as much where its scope can meet them."""
    asked = config.resolved().sparsity
    assert asked is not None, "a resolved run has a sparsity"
    if config.setup.scope not in SCOPES:  # a class of the user's own, which may not be here
        return [asked]
    scope, density = build_scope(config.setup), 1 - asked
    scores = {row["name"]: torch.zeros(()).expand(row["shape"]) for row in layers}
    found = [asked]
    for sparsity in (round(1 - factor * density, 10) for factor in (2, 0.5) if factor * density < 1):
        with suppress(InvalidArgument):
            scope(scores, sparsity)
            found.append(sparsity)
    return sorted(found)


def _with_networks(setup: Setup, folder: Path, *, taught: bool) -> Setup:
    """`setup` with its trained networks: those it was given, and from `folder` those that were trained."""
    student = setup.student_weights or str(folder / "dense.safetensors")
    setup = replace(setup, student_weights=student, pretrain=Setup().pretrain)
    if not taught:
        return replace(setup, teacher=None, teacher_weights=None)
    if setup.own_teacher:
        return setup
    return replace(setup, teacher_weights=setup.teacher_weights or str(folder / "teacher.safetensors"))


def _with_alpha(setup: Setup, alpha: float | None) -> Setup:
    """`setup` with alpha as an option of its criterion, or without it."""
    options = {name: value for name, value in setup.score.criterion_options.items() if name != "alpha"}
    if alpha is not None:
        options["alpha"] = alpha
    return replace(setup, score=replace(setup.score, criterion_options=options))


def _flags(setup: Setup) -> list[str]:
    """The flags that make `setup`, whose networks are trained: the data, and what is not as by default."""
    usual = _flat(Setup())
    return [
        word
        for name, value in _flat(setup).items()
        if name == "data" or value != usual[name]
        for word in _flag(name.replace("_", "-"), value, usual[name])
    ]


def _flat(setup: Setup) -> dict[str, object]:
    """The options of `setup` by the names of their flags, as plain values."""
    options = plain(setup)
    dataset, score = options.pop("dataset"), options.pop("score")
    return {**dataset, **options, **score}


def _flag(name: str, value: object, usual: object) -> list[str]:
    if isinstance(value, bool) and isinstance(usual, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, dict):
        items = cast("dict[str, object]", value).items()
        return [f"--{name}", *(f"{option}={json.dumps(item)}" for option, item in items)]
    return [f"--{name}", *map(str, cast("list[object]", value) if isinstance(value, list) else [value])]
