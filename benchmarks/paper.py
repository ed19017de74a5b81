"""What came out of each claim in docs/paper.md: phrases from results files, or what is not measured yet."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from statistics import fmean
from typing import Any

from tables import RESULTS

ONE_SHOT, PAPER = "one-shot", "paper"
TRAINED = next(
    (
        name
        for name in ("cifar10-resnet20", "cifar10-resnet20-short")
        if (RESULTS / f"arena_{name}.json").is_file()
    ),
    "cifar10-resnet20",
)
"""The suite with recovery: the whole one where it has been run, else the one of a single epoch."""
DENSE = "dense"
"""In place of another method: the network before the cut."""


def found(name: str) -> dict[str, Any] | None:
    """A results file, or None where there is none yet."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def missing(suite: str, *methods: str) -> str:
    """What stands where a suite has not been run, or not that far: without some methods."""
    names = " and ".join(f"`{method}`" for method in methods)
    return f"not measured yet: {names} of `{suite}`" if names else f"not measured yet: `{suite}`"


def points(difference: float) -> str:
    """A difference of two fractions in points, with its sign."""
    return f"{100 * difference:+.2f}".replace("-", "−")


def first_run(stage: str, method: str, other: str) -> str:
    """Accuracies of two criteria in the first CIFAR-10 run, in %."""
    result = found("cifar10_resnet20")
    if result is None:
        return missing("cifar10_resnet20")
    cells = {(cell["criterion"], cell["sparsity"]["asked"]): cell["accuracy"] for cell in result["cells"]}
    phrases = []
    for sparsity in sorted({sparsity for _, sparsity in cells}):
        ours = cells[method, sparsity]
        theirs = ours[DENSE] if other == DENSE else cells[other, sparsity][stage]
        phrases.append(f"{sparsity:.0%}: {100 * ours[stage]:.2f} against {100 * theirs:.2f}")
    how = {"recovered_kd": "with the teacher", "recovered": "on labels"}[stage]
    epochs = result["recipe"]["--recovery.epochs"]
    return (
        f"{method} against {other}, {epochs} epochs {how}, one seed: {'; '.join(phrases)} "
        "(`cifar10_resnet20.json`)"
    )


def cells_of(result: Mapping[str, Any], method: str, stage: str) -> dict[float, dict[int, float]]:
    """Accuracy of a method at a stage, by sparsity and seed."""
    from secateur.report.arena.grid import accuracy_at

    by: dict[float, dict[int, float]] = {}
    for cell in result["cells"]:
        if cell["method"] == method and (accuracy := accuracy_at(cell, stage)) is not None:
            by.setdefault(cell["sparsity"]["asked"], {})[cell["seed"]] = accuracy
    return by


def difference(suite: str, method: str, other: str) -> str:
    """How far `method` is above `other` in a suite, paired by seed, at each sparsity."""
    result = found(f"arena_{suite}")
    if result is None:
        return missing(suite)
    from secateur.statistics import paired_difference

    stage = "pruned" if result["suite"]["recovery"] is None else "recovered"
    ours = cells_of(result, method, stage)
    theirs = cells_of(result, method, DENSE) if other == DENSE else cells_of(result, other, stage)
    phrases: list[str] = []
    seeds: set[int] = set()
    for sparsity in sorted(ours.keys() & theirs.keys()):
        estimate = paired_difference(ours[sparsity], theirs[sparsity])
        if estimate is not None:
            spread = "" if estimate.std is None else f" ± {100 * estimate.std:.2f}"
            phrases.append(f"{100 * sparsity:g}%: {points(estimate.mean)}{spread}")
            seeds.add(estimate.n)
    if not phrases:
        lacking = [name for name, cells in ((method, ours), (other, theirs)) if not cells]
        return missing(suite, *lacking)
    recovery = result["suite"]["recovery"]
    trained = "" if recovery is None else f"recovery of {recovery['epochs']} ep., "
    counted = "one seed" if seeds == {1} else f"{'–'.join(map(str, sorted(seeds)))} seeds"
    return (
        f"`{method}` less `{other}`, points, {trained}{counted}: "
        f"{'; '.join(phrases)} (`arena_{suite}.json`, {len(result['cells'])} of {result['n_planned']} cells)"
    )


def cost(suite: str, *methods: str) -> str:
    """Mean training of each method's cells, and processor time where all of its cells have recorded it."""
    result = found(f"arena_{suite}")
    phrases: list[str] = []
    for method in methods:
        costs = [cell["cost"] for cell in (result or {"cells": []})["cells"] if cell["method"] == method]
        if costs:
            timed = all("cpu_s" in c for c in costs)
            seconds = f"{fmean(c['cpu_s'] for c in costs):.0f} s of processor time, " if timed else ""
            phrases.append(f"`{method}` {seconds}{fmean(c['epochs'] for c in costs):g} ep. of training")
    return f"per cell: {'; '.join(phrases)} (`arena_{suite}.json`)" if phrases else missing(suite, *methods)


def ratio(name: str, key: str, text: str) -> str:
    """One number of a benchmark in a phrase."""
    result = found(name)
    return missing(name) if result is None else f"{text.format(result[key])} (`{name}.json`)"


def batchnorm() -> str:
    """What the choice of images does to re-estimated BatchNorm statistics."""
    result = found("batchnorm")
    if result is None:
        return missing("batchnorm")
    rows = {(r["criterion"], r["sparsity"], r["kind"]): r["test"]["mean"] for r in result["rows"]}
    phrases = []
    for sparsity in (0.5, 0.8):
        cut, plain, augmented = (
            100 * rows["magnitude", sparsity, kind] for kind in ("cut", "plain", "augmented")
        )
        phrases.append(f"{sparsity:.0%}: {cut:.2f} cut, {plain:.2f} plain, {augmented:.2f} augmented")
    return (
        f"images for BatchNorm after a cut by magnitude, {len(result['seeds'])} seeds: {'; '.join(phrases)} "
        "(`batchnorm.json`)"
    )


def speed() -> str:
    """How much longer ONNX Runtime takes than the engine at 90 % zeros."""
    result = found("runtime")
    if result is None:
        return missing("runtime")
    phrases: list[str] = []
    for cell in sorted(result["cells"], key=lambda c: (c["model"], c["batch"])):
        times = {timing["name"]: timing["median_s"] for timing in cell["timings"]}
        if cell["sparsity"] == 0.9 and cell["masks"] == "random" and "onnxruntime" in times:
            ours, theirs = times["secateur"], times["onnxruntime"]
            phrases.append(f"{cell['model']}, batch {cell['batch']}: {theirs / ours:.1f}×")
    return f"times faster than ONNX Runtime at 90 % zeros: {'; '.join(phrases)} (`runtime.json`)"


def lines(*parts: Callable[[], str]) -> Callable[[], str]:
    """Several outcomes in one cell of a table."""
    return lambda: "<br>".join(dict.fromkeys(part() for part in parts)).replace("|", "\\|")


guided = partial(partial, difference, TRAINED, "teacher-guided")

OUTCOMES: dict[str, Callable[[], str]] = {
    "paper-teacher-in-the-score": lines(
        partial(first_run, "recovered_kd", "teacher-guided", "task-gradient"),
        partial(first_run, "recovered", "teacher-guided", "task-gradient"),
        guided("task-gradient"),
        partial(difference, TRAINED, "teacher-guided-labels", "task-gradient-labels"),
    ),
    "paper-published-formula": lines(
        partial(difference, TRAINED, "teacher-guided-printed", "teacher-guided"),
        partial(difference, TRAINED, "teacher-guided-joint", "teacher-guided"),
        partial(difference, ONE_SHOT, "teacher-guided-printed", "random"),
    ),
    "paper-ca-kld": lines(
        partial(difference, TRAINED, "teacher-guided-ca-kld", "teacher-guided"),
        partial(difference, TRAINED, "magnitude-ca-kld", "magnitude"),
        partial(difference, ONE_SHOT, "ca-kld", "teacher-guided"),
    ),
    "paper-selection": lines(
        partial(ratio, "selection", "times_faster", "{:.0f}× faster than `torch.nn.utils.prune`, exact count")
    ),
    "paper-ranking-matters": lines(
        partial(difference, TRAINED, "shuffled-guided", "teacher-guided"),
        partial(difference, TRAINED, "inverted", "teacher-guided"),
        partial(difference, ONE_SHOT, "shuffled-guided", "teacher-guided"),
    ),
    "paper-retraining": lines(
        partial(ratio, "masked_step", "masked_over_unmasked", "a masked step costs {:.3f}× an unmasked one"),
        partial(difference, TRAINED, "teacher-guided", "teacher-guided-labels"),
        partial(difference, TRAINED, "magnitude", "magnitude-labels"),
    ),
    "paper-small-loss": lines(
        partial(first_run, "recovered_kd", "teacher-guided", DENSE),
        guided(DENSE),
        partial(difference, PAPER, "teacher-guided", DENSE),
    ),
    "paper-magnitude": lines(
        partial(first_run, "recovered_kd", "teacher-guided", "magnitude"),
        guided("magnitude"),
        partial(difference, ONE_SHOT, "teacher-guided", "magnitude"),
        partial(difference, PAPER, "teacher-guided", "magnitude"),
    ),
    "paper-epg-epsd": lines(guided("egp"), guided("epsd"), guided("epsd-init")),
    "paper-colt": lines(
        guided("colt"),
        guided("imp-lr"),
        partial(cost, TRAINED, "teacher-guided", "colt", "imp-lr", "magnitude"),
    ),
    "paper-cost": lines(
        partial(
            ratio,
            "scoring",
            "score_over_plain_plus_teacher",
            "scoring costs {:.2f}× a forward and backward pass plus the teacher's forward pass",
        ),
        partial(cost, TRAINED, "teacher-guided", "magnitude"),
    ),
    "paper-deployment": lines(
        partial(
            ratio,
            "checkpoint_size",
            "times_smaller_at_90",
            "ResNet-20 with 90 % zeros: a file {:.1f}× smaller",
        )
    ),
    "paper-data-sets": lines(
        partial(difference, "cifar10-resnet18", "teacher-guided", "magnitude"),
        partial(difference, "cifar100-resnet18", "teacher-guided", "magnitude"),
    ),
    "paper-dependence-on-teacher": lines(
        partial(difference, TRAINED, "untrained-teacher", "teacher-guided"),
        partial(difference, TRAINED, "random-label-teacher", "teacher-guided"),
        partial(difference, TRAINED, "self-teacher", "teacher-guided"),
        partial(difference, ONE_SHOT, "untrained-teacher", "teacher-guided"),
        partial(difference, ONE_SHOT, "random-label-teacher", "teacher-guided"),
        partial(difference, ONE_SHOT, "self-teacher", "teacher-guided"),
    ),
    "paper-alpha": lines(
        partial(difference, ONE_SHOT, "teacher-gradient", "teacher-guided"),
        partial(difference, ONE_SHOT, "task-gradient", "teacher-guided"),
        partial(difference, ONE_SHOT, "temperature-1", "teacher-gradient"),
        partial(difference, ONE_SHOT, "temperature-2", "teacher-gradient"),
        partial(difference, ONE_SHOT, "temperature-8", "teacher-gradient"),
    ),
    "paper-irregular": lines(speed),
    "paper-calibration": lines(
        batchnorm,
        partial(difference, ONE_SHOT, "calibration-1", "teacher-guided"),
        partial(difference, ONE_SHOT, "calibration-8", "teacher-guided"),
    ),
    "paper-one-or-many": lines(
        partial(difference, ONE_SHOT, "teacher-guided-staged", "teacher-guided"),
        partial(difference, ONE_SHOT, "force", "snip"),
        partial(difference, TRAINED, "imp-lr", "magnitude"),
        partial(difference, TRAINED, "gradual", "magnitude"),
    ),
    "paper-budget": lines(
        partial(difference, TRAINED, "dense-longer", DENSE),
        partial(difference, TRAINED, "small-dense", "magnitude"),
    ),
}
"""The outcome cell of each claim, by its name in docs/paper.md."""
