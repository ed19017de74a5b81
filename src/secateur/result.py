"""What a run found, as a value and as ``result.json``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from secateur.masks import Masks

ACCURACIES = ("teacher", "dense", "cut", "batchnorm", "recovered", "recovered_kd")
"""Where accuracy is measured, on the test split: the teacher, the dense student, the student right
after the cut, after BatchNorm re-estimation, after recovery on labels, after recovery with the teacher."""

STAGES = ("teacher", "dense", "score", "allocate", "batchnorm", "recovery", "total")
"""What is timed."""


@dataclass
class Result:
    """What a run found. Accuracies are fractions on the test split; null where a stage did not run.

    Attributes:
        masks: What stays.
        accuracy: By stage, see `ACCURACIES`.
        sparsity: ``asked``, achieved over the ``prunable`` weights, and over ``all`` parameters.
        n_parameters: Number of the student's parameters.
        size_bytes: Of the student's file, ``dense`` and ``sparse``.
        seconds: By stage, see `STAGES`.
        curves: Training curves by stage, one entry an epoch.
        selected_epoch: The epoch that a recovery ended with, chosen on the validation split.
        diagnostics: Score distributions, task-teacher agreement, split-half stability.
        about: Criterion, scope, data, models, seed, versions, hardware and commit.
        warnings: What went not quite as it should.
    """

    masks: Masks
    n_parameters: int
    sparsity: dict[str, float]
    about: dict[str, Any]
    accuracy: dict[str, float | None] = field(default_factory=lambda: dict.fromkeys(ACCURACIES))
    size_bytes: dict[str, int | None] = field(default_factory=lambda: {"dense": None, "sparse": None})
    seconds: dict[str, float | None] = field(default_factory=lambda: dict.fromkeys(STAGES))
    curves: dict[str, list[dict[str, Any]] | None] = field(
        default_factory=lambda: dict.fromkeys(("teacher", "dense", "recovered", "recovered_kd"))
    )
    selected_epoch: dict[str, int | None] = field(
        default_factory=lambda: dict.fromkeys(("recovered", "recovered_kd"))
    )
    diagnostics: dict[str, Any] = field(
        default_factory=lambda: dict.fromkeys(("score_histogram", "agreement", "split_half"))
    )
    warnings: list[str] = field(default_factory=list[str])

    @property
    def layers(self) -> list[dict[str, Any]]:
        """Name, shape, size and density of every pruned tensor."""
        return [
            {
                "name": name,
                "shape": list(mask.shape),
                "numel": mask.numel(),
                "n_keep": int(mask.sum()),
                "density": self.masks.density(name),
            }
            for name, mask in self.masks.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """The content of ``result.json``, see docs/result.md."""
        return {
            "format": "secateur-result",
            "version": 1,
            **self.about,
            "accuracy": self.accuracy,
            "sparsity": self.sparsity,
            "n_prune": self.masks.n_prune,
            "n_prunable": self.masks.numel,
            "n_parameters": self.n_parameters,
            "mask_digest": self.masks.digest,
            "size_bytes": self.size_bytes,
            "seconds": self.seconds,
            "layers": self.layers,
            "curves": self.curves,
            "selected_epoch": self.selected_epoch,
            "diagnostics": self.diagnostics,
            "warnings": self.warnings,
        }


def sparsities(student: nn.Module, masks: Masks, asked: float) -> dict[str, float]:
    """Asked sparsity, and what was achieved over the prunable weights and over all parameters."""
    n_parameters = sum(p.numel() for p in student.parameters())
    return {"asked": asked, "prunable": masks.sparsity, "all": masks.n_prune / n_parameters}


def describe(value: object, registry: dict[str, Any]) -> dict[str, Any]:
    """A criterion or scope as its registry name and its plain hyper-parameters."""
    names = {kind: name for name, kind in registry.items()}
    about: dict[str, Any] = {"name": names.get(type(value), type(value).__qualname__)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for entry in dataclasses.fields(value):
            item = getattr(value, entry.name)
            if isinstance(item, (int, float, str, bool)) or item is None:
                about[entry.name] = item
            elif not isinstance(item, nn.Module):
                about[entry.name] = getattr(item, "__qualname__", type(item).__qualname__)
    return about


def describe_network(network: nn.Module) -> dict[str, Any]:
    """A network's class name and number of parameters."""
    return {"name": type(network).__name__, "n_parameters": sum(p.numel() for p in network.parameters())}
