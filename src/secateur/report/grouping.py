"""Which runs belong together, and what tells them apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from statistics import mean, stdev
from typing import Any

from secateur.calibration import CalibrationRecovery
from secateur.report.words import ABSENT, percent, value

Run = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """The runs of one label at one sparsity, usually one a seed.

    Args:
        sparsity: Mean over the runs of the fraction removed of prunable weights.
        runs: At least one.
    """

    sparsity: float
    runs: tuple[Run, ...]

    def accuracies(self, stage: str) -> list[float]:
        """Accuracy at `stage` of those runs that have it."""
        found = (run["accuracy"][stage] for run in self.runs)
        return [accuracy for accuracy in found if accuracy is not None]

    def described(self, stage: str) -> str:
        """Mean accuracy at `stage` as text, with the standard deviation where there are several runs."""
        found = self.accuracies(stage)
        if not found:
            return ABSENT
        spread = f" ± {100 * stdev(found):.1f}" if len(found) > 1 else ""
        return f"{percent(mean(found)).split()[0]}{spread}"


def labels(runs: Sequence[Run]) -> list[str]:
    """A short name for each run: its criterion, and what sets it apart from others of that name.

    Runs that differ in nothing but their seed and their sparsity get the same name.
    """
    named: list[str] = []
    for run in runs:
        name, settings = run["criterion"]["name"], _settings(run)
        peers = [_settings(other) for other in runs if other["criterion"]["name"] == name]
        differing = [key for key in settings if any(settings[key] != other.get(key) for other in peers)]
        parts = [f"{key} {settings[key]}" for key in differing]
        named.append(f"{name} ({', '.join(parts)})" if parts else name)
    return named


def _settings(run: Run) -> dict[str, str]:
    """All that may be varied on purpose, as text."""
    criterion, scope = run["criterion"], run["scope"]
    stages = run.get("stages", {"n": 1, "regrow": False})  # older results know of one cut only
    return {
        **{key: value(key, item) for key, item in criterion.items() if key not in ("name", "seed")},
        **{"scope" if key == "name" else key: value(key, item) for key, item in scope.items()},
        "stages": str(stages["n"]),
        "regrow": value("regrow", stages["regrow"]),
        "calibration": _calibration(run),
        "samples": value("n_calibration", run["data"].get("n_calibration")),
    }


def _calibration(run: Run) -> str:
    """The steps on calibration inputs in a few words: how many, and what is unusual about them."""
    recipe = run.get("calibration_recovery")
    if recipe is None:
        return "none"
    usual = {"steps": None, "final_steps": None, "seed": None, "teacher": "student"}
    usual = {f.name: f.default for f in fields(CalibrationRecovery)} | usual
    unusual = [
        f"{key} {value(key, item)}" for key, item in recipe.items() if usual.get(key) not in (None, item)
    ]
    each, final = recipe["steps"], recipe["final_steps"]
    same = final in (None, each)  # older results say None for as many as after the other stages
    return " ".join([f"{each} steps" if same else f"{each} steps, {final} at the end", *unusual])


def grouped(runs: Sequence[Run]) -> dict[str, list[Cell]]:
    """Runs by label, in the order of their first run, and within a label by rising sparsity."""
    table: dict[str, dict[float, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for label, run in zip(labels(runs), runs, strict=True):
        table[label][run["sparsity"]["asked"]].append(run)
    return {
        label: [
            Cell(mean(run["sparsity"]["prunable"] for run in found), tuple(found))
            for _, found in sorted(by_sparsity.items())
        ]
        for label, by_sparsity in table.items()
    }
