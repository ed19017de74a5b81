"""Where the numbers of a report come from: settings, data, models, versions, machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

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
        Facts("Criterion", pairs(source["criterion"])),
        Facts("Data", pairs(source["data"])),
        Facts("Models", tuple(_models(source["models"]))),
        Facts("Versions", pairs(source["versions"])),
        Facts("Hardware", pairs(source["hardware"])),
    ]
    if "scope" in source:
        groups.insert(2, Facts("Scope: where weights compete", pairs(source["scope"])))
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
    if "stages" in source:
        n, regrow = source["stages"]["n"], source["stages"]["regrow"]
        yield "stages of the cut", f"{n}, removed weights may return" if regrow else str(n)


def _models(models: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    for role, model in models.items():
        yield role, value(role, model if model is None or "name" not in model else _described(model))


def _described(model: Mapping[str, Any]) -> str:
    others = [f"{value(key, part)} {_NAMES.get(key, key)}" for key, part in model.items() if key != "name"]
    return ", ".join([str(model["name"]), *others])


def pairs(group: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Names and values of a group, as a reader likes to see them."""
    return tuple((_NAMES.get(key, key.replace("_", " ")), value(key, part)) for key, part in group.items())


def shared(runs: Sequence[Mapping[str, Any]]) -> tuple[Facts, ...]:
    """What several runs have in common, and what differs between them.

    Args:
        runs: At least one, as `read_run` returns them.
    """
    together, apart = alike(runs, ("data", "models", "versions", "hardware", "commit"))
    digests = tuple((run["run_id"], run["mask_digest"]) for run in runs)
    groups = (Facts("The same in all runs", together), Facts("Not the same", apart))
    return tuple(group for group in (*groups, Facts("Mask digests", digests)) if group.items)


def alike(
    sources: Sequence[Mapping[str, Any]], groups: Sequence[str]
) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]:
    """Names and values in some groups of keys: those that all sources share, and those that differ.

    Args:
        sources: At least one.
        groups: Keys that all have; what is under one is an object or a single value.
    """
    together: list[tuple[str, str]] = []
    apart: list[tuple[str, str]] = []
    for group in groups:
        found = [dict(_group(group, source[group])) for source in sources]
        for name in dict.fromkeys(name for items in found for name in items):
            texts = list(dict.fromkeys(items.get(name, ABSENT) for items in found))
            (together if len(texts) == 1 else apart).append((name, "; ".join(texts)))
    return tuple(together), tuple(apart)


def _group(name: str, part: object) -> Iterable[tuple[str, str]]:
    if not isinstance(part, Mapping):
        return ((name, value(name, part)),)
    group = cast("Mapping[str, Any]", part)
    return _models(group) if name == "models" else pairs(group)
