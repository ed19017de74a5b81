"""A suite that never ran but looks like one: drawn from a seed, so that every test sees the same."""

from __future__ import annotations

import hashlib
import json
import math
import random
from typing import Any

from integration.report_helpers import emptying
from secateur.statistics import random_jaccard

SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
SEEDS = (0, 1, 2)
N_PRUNABLE, N_PARAMETERS, DENSE = 268_336, 272_474, 0.9173
RECOVERY = {"epochs": 40, "kd_weight": 0.7, "temperature": 4.0, "lr": 0.1, "weight_decay": 5e-4}

METHODS: dict[str, tuple[str, str, float, float]] = {
    "random-erk": ("random (ERK)", "baseline", -2.5, 0.1),
    "random": ("random (uniform)", "baseline", -3.2, 0.1),
    "magnitude": ("magnitude", "baseline", 0.0, 0.2),
    "magnitude-layerwise": ("magnitude, layer-wise", "baseline", -1.2, 0.2),
    "lamp": ("LAMP", "baseline", 0.45, 0.3),
    "snip": ("SNIP", "one-shot", -0.6, 4),
    "force": ("FORCE", "one-shot", -0.2, 60),
    "grasp": ("GraSP", "one-shot", -2.2, 9),
    "synflow": ("SynFlow", "one-shot", -1.0, 20),
    "fisher": ("Fisher diagonal", "one-shot", -0.4, 5),
    "wanda": ("Wanda", "one-shot", -0.9, 2),
    "task-gradient": ("task |w·g|", "one-shot", 0.05, 4),
    "teacher-guided": ("teacher-guided |w·g|", "one-shot", 0.35, 9),
    "teacher-guided-grad": ("teacher-guided |g|", "one-shot", -1.8, 9),
    "teacher-guided-joint": ("teacher-guided, joint", "one-shot", 0.3, 9),
    "epsd": ("EPSD", "published", -0.7, 30),
    "egp": ("EGP", "published", -0.3, 12),
    "colt": ("COLT", "published", -0.5, 1),
    "imp": ("IMP, LR rewinding", "iterative", 0.9, 0.3),
    "gradual": ("gradual magnitude", "iterative", 0.6, 0.3),
    "teacher-guided-no-kd": ("teacher-guided, no KD", "ablation", -0.9, 9),
    "task-gradient-no-kd": ("task |w·g|, no KD", "ablation", -1.1, 4),
    "shuffled": ("shuffled masks", "control", -1.6, 9),
    "inverted": ("inverted score", "control", -30, 9),
    "untrained-teacher": ("untrained teacher", "control", 0.0, 9),
}
"""Label, family, points above magnitude at 95 % zeros after recovery, seconds to score."""
OF = dict.fromkeys(("shuffled", "inverted", "untrained-teacher"), "teacher-guided")
LAYERS = [f"layer{a}.{b}.conv{c}.weight" for a in (1, 2, 3) for b in (0, 1, 2) for c in (1, 2)]


def make_suite(
    methods: dict[str, tuple[str, str, float, float]] = METHODS,
    sparsities: tuple[float, ...] = SPARSITIES,
    seeds: tuple[int, ...] = SEEDS,
    *,
    recovered: bool = True,
) -> Any:
    """A whole suite with every cell finished, as the file would be read."""
    rng = random.Random(0)
    common = {seed: {s: rng.gauss(0, 0.0015) for s in sparsities} for seed in seeds}
    cells = [
        _cell(rng, key, sparsity, seed, common[seed][sparsity], recovered)
        for key in methods
        for sparsity in sparsities
        for seed in seeds
    ]
    suite = {
        "name": "cifar10-resnet20",
        "description": "All that the field compares with, under one budget",
        "sparsities": list(sparsities),
        "seeds": list(seeds),
        "methods": {
            key: {"label": label, "family": family, **({"of": OF[key]} if OF.get(key) in methods else {})}
            for key, (label, family, _, _) in methods.items()
        },
        "recovery": RECOVERY if recovered else None,
    }
    square = [["task-gradient-no-kd", "task-gradient"], ["teacher-guided-no-kd", "teacher-guided"]]
    if all(key in methods for row in square for key in row):
        suite["two_by_two"] = square
    content = {"format": "secateur-suite", "version": 1, "suite": suite, "n_planned": len(cells)}
    overlaps = [
        _overlap(rng, a, b, sparsity, seed, methods)
        for sparsity in sparsities
        for seed in seeds
        for i, a in enumerate(methods)
        for b in list(methods)[i + 1 :]
    ]
    return json.loads(json.dumps({**content, "cells": cells, "overlaps": overlaps}))


def _cell(rng: random.Random, key: str, sparsity: float, seed: int, shift: float, recovered: bool) -> Any:
    _, _, gain, score_s = METHODS[key]
    harm = 0.4 * (1 - sparsity) ** -0.62 / 100  # what magnitude loses, from nothing to a lot
    reach = (sparsity / 0.95) ** 8
    accuracy = DENSE - harm + gain / 100 * reach + shift + rng.gauss(0, 0.0012)
    after_cut = 0.1 + (DENSE - 0.1) / (1 + math.exp(9 * (sparsity - 0.72 - gain / 30)))
    batchnorm = 0.1 + (DENSE - 0.1) / (1 + math.exp(10 * (sparsity - 0.86 - gain / 40)))
    n_prune = round(N_PRUNABLE * sparsity)
    epochs = (120.0 if key == "imp" else 40.0) if recovered else 0.0
    kd_weight = 0.0 if key.endswith("no-kd") else 0.7
    digest = hashlib.sha256(f"{key} {sparsity} {seed}".encode()).hexdigest()
    flat = key in ("random", "magnitude-layerwise")
    densities = [
        (1 - sparsity) * (1 if flat else 2.2 ** (1 - 2 * i / 17 + rng.gauss(0, 0.25)))
        for i in range(len(LAYERS))
    ]
    if key == "synflow" and sparsity >= 0.9:
        densities[-1] = 0.0
    return {
        "format": "secateur-cell",
        "version": 1,
        "id": digest[:12],
        "suite": "cifar10-resnet20",
        "method": key,
        "about": {
            "strategy": {"name": "imp", "rounds": 4} if key == "imp" else {"name": "one-shot", "stages": 1},
            "criterion": {"name": key},
            "scope": {"name": "layerwise" if flat else "global"},
            "control": key if key in ("shuffled", "inverted") else "none",
            "teacher": "untrained" if key == "untrained-teacher" else "trained",
            "start": "trained",
            "recovery": {**RECOVERY, "kd_weight": kd_weight} if recovered else None,
        },
        "seed": seed,
        "sparsity": {
            "asked": sparsity,
            "prunable": n_prune / N_PRUNABLE,
            "all": n_prune / N_PARAMETERS,
        },
        "n_prune": n_prune,
        "accuracy": {
            "dense": DENSE,
            "cut": _kept(after_cut + rng.gauss(0, 0.01)),
            "batchnorm": _kept(batchnorm + rng.gauss(0, 0.008)),
            "recovered": _kept(accuracy) if recovered else None,
        },
        "layers": [
            {"name": name, "n_weights": 14_907, "density": min(1.0, density)}
            for name, density in zip(LAYERS, densities, strict=True)
        ],
        "cost": {
            "score_s": score_s * rng.uniform(0.9, 1.1),
            "train_s": epochs * 2.1 * rng.uniform(0.97, 1.03),
            "total_s": score_s + epochs * 2.1 + 3.0,
            "epochs": epochs,
        },
        "warnings": [emptying(LAYERS[-1], sparsity)] if 0.0 in densities else [],
        "versions": {"secateur": "0.1.0", "torch": "2.13.0", "python": "3.11.7"},
        "hardware": {"cpu": "AMD EPYC", "cores": 16, "threads": 16, "device": "NVIDIA H100"},
        "commit": "f444038efdc1b3594bcd605b21d115084a2b331c",
        "data": {"name": "cifar10", "n_train": 45_000, "n_val": 5_000, "n_test": 10_000},
        "models": {
            "teacher": {"name": "resnet56", "n_parameters": 855_770},
            "student": {"name": "resnet20", "n_parameters": N_PARAMETERS},
        },
    }


def _kept(accuracy: float) -> float:
    return round(min(0.93, max(0.1, accuracy)), 4)


def _overlap(rng: random.Random, a: str, b: str, sparsity: float, seed: int, methods: Any) -> Any:
    chance = random_jaccard(1 - sparsity, 1 - sparsity)
    alike = (
        0.0 if "random" in a + b else math.exp(-abs(methods[a][2] - methods[b][2])) * rng.uniform(0.4, 0.8)
    )
    return {
        "sparsity": sparsity,
        "seed": seed,
        "a": a,
        "b": b,
        "jaccard": chance + alike * (1 - chance),
        "expected_random": chance,
    }
