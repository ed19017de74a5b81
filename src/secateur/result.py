"""What a run found, as a value and as ``result.json``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from torch import nn

from secateur.masks import Masks

ACCURACIES = ("teacher", "dense", "cut", "batchnorm", "recovered", "recovered_kd")
"""Where accuracy is measured, on the test split: the teacher, the dense student, the student right
after the cut, after BatchNorm re-estimation, after recovery on labels, after recovery with the teacher."""

STAGES = ("teacher", "dense", "score", "allocate", "batchnorm", "recovery", "total")
"""What is timed."""


@dataclass
class Result:
    """What a run found. Accuracies are fractions on the test split; null where they were not measured.

    Attributes:
        masks: What stays.
        accuracy: By stage, see `ACCURACIES`.
        sparsity: ``asked``, achieved over the ``prunable`` weights, and over ``all`` parameters.
        stages: Into how many stages the cut was split, what each did, and what one cut would have given.
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
    stages: dict[str, Any] = field(default_factory=dict[str, Any])
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
            "stages": self.stages,
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


def describe(value: object, registry: Mapping[str, Any]) -> dict[str, Any]:
    """A criterion or scope as its name and its plain hyper-parameters.

    The name is its key in `registry`, or ``pkg.mod:Class``. Networks among its fields are left out.
    """
    names = {kind: name for name, kind in registry.items()}
    kind = type(value)
    about: dict[str, Any] = {"name": names.get(kind, f"{kind.__module__}:{kind.__qualname__}")}
    if dataclasses.is_dataclass(value):
        items = {entry.name: getattr(value, entry.name) for entry in dataclasses.fields(value)}
        about |= {
            name: _described(item, registry)
            for name, item in items.items()
            if not isinstance(item, nn.Module)
        }
    return about


def _described(item: object, registry: Mapping[str, Any]) -> Any:  # noqa: ANN401 - JSON
    if isinstance(item, (int, float, str, bool)) or item is None:
        return item
    if isinstance(item, Mapping):
        return {str(key): _described(part, registry) for key, part in cast("Mapping[Any, Any]", item).items()}
    if isinstance(item, (list, tuple)):
        return [_described(part, registry) for part in cast("list[Any]", item)]
    if dataclasses.is_dataclass(item):  # a criterion inside a criterion
        return describe(item, registry)
    return getattr(item, "__qualname__", type(item).__qualname__)


def describe_network(network: nn.Module) -> dict[str, Any]:
    """A network's class name and number of parameters."""
    return {"name": type(network).__name__, "n_parameters": sum(p.numel() for p in network.parameters())}
