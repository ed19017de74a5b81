"""Where the numbers of a report come from: settings, data, models, versions, machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from secateur.report.page import Facts
from secateur.report.words import ABSENT, number, percent, value

_NAMES = {
    "n_train": "training samples",
    "n_val": "validation samples",
    "n_test": "test samples",
    "n_calibration": "calibration samples",
    "n_classes": "classes",
    "n_parameters": "parameters",
    "memory_bytes": "memory",
    "cpu": "CPU",
    "min_density": "minimum density of a layer",
}


def provenance(source: Mapping[str, Any]) -> tuple[Facts, ...]:
    """Everything that is needed to say how the numbers of a run or a sweep came about.

    Args:
        source: As `read_run` or `read_sweep` returns it.
    """
    groups = [
        Facts("Run", tuple(_run(source))),
        Facts("Criterion", _pairs(source["criterion"])),
        Facts("Data", _pairs(source["data"])),
        Facts("Models", tuple(_models(source["models"]))),
        Facts("Versions", _pairs(source["versions"])),
        Facts("Hardware", _pairs(source["hardware"])),
    ]
    if "scope" in source:
        groups.insert(2, Facts("Scope: where weights compete", _pairs(source["scope"])))
    return tuple(group for group in groups if group.items)


def _run(source: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    yield "run", source["run_id"]
    yield "seed", value("seed", source["seed"])
    if "commit" in source:
        yield "commit", value("commit", source["commit"])
    if "sparsity" in source:
        sparsity, n_prune = source["sparsity"], number(source["n_prune"])
        yield "sparsity asked for", percent(sparsity["asked"], 2)
        yield (
            "sparsity of prunable weights",
            f"{percent(sparsity['prunable'], 2)} ({n_prune} of {number(source['n_prunable'])})",
        )
        yield (
            "sparsity of all parameters",
            f"{percent(sparsity['all'], 2)} ({n_prune} of {number(source['n_parameters'])})",
        )
        yield "mask digest", source["mask_digest"]


def _models(models: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    for role, model in models.items():
        yield role, value(role, model if model is None or "name" not in model else _described(model))


def _described(model: Mapping[str, Any]) -> str:
    others = [f"{value(key, part)} {_NAMES.get(key, key)}" for key, part in model.items() if key != "name"]
    return ", ".join([str(model["name"]), *others])


def _pairs(group: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((_NAMES.get(key, key.replace("_", " ")), value(key, part)) for key, part in group.items())


def shared(runs: Sequence[Mapping[str, Any]]) -> tuple[Facts, ...]:
    """What several runs have in common, and what differs between them.

    Args:
        runs: At least one, as `read_run` returns them.
    """
    together: list[tuple[str, str]] = []
    apart: list[tuple[str, str]] = []
    for group in ("data", "models", "versions", "hardware"):
        found = [dict(_models(run[group]) if group == "models" else _pairs(run[group])) for run in runs]
        for name in dict.fromkeys(name for pairs in found for name in pairs):
            texts = list(dict.fromkeys(pairs.get(name, ABSENT) for pairs in found))
            (together if len(texts) == 1 else apart).append((name, "; ".join(texts)))
    commits = list(dict.fromkeys(value("commit", run["commit"]) for run in runs))
    (together if len(commits) == 1 else apart).append(("commit", "; ".join(commits)))
    digests = tuple((run["run_id"], run["mask_digest"]) for run in runs)
    groups = (Facts("The same in all runs", tuple(together)), Facts("Not the same", tuple(apart)))
    return tuple(group for group in (*groups, Facts("Mask digests", digests)) if group.items)
