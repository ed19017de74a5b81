"""Prune a trained PyTorch network in one cut, guided by a teacher.

The path, each step of which is one function::

    scores = score(student, batches, TeacherGuided(teacher))     # how much each weight is needed
    masks  = allocate(scores, sparsity=0.9)                      # exactly what stays
    apply_masks(student, masks)                                  # or cut(...): all three in one
    reestimate_batchnorm(student, batches)
    with keep_masks(student, optimizer, masks): ...              # train; no pruned weight comes back
    save_sparse(student, "student.safetensors", masks=masks)

or `prune` for all of it.
"""

# ruff: noqa: F403, F405  type checkers find the names of __all__ in secateur.api

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from secateur import runtime as runtime
    from secateur.api import *

__version__ = "0.1.0"

__all__ = [
    "ERK",
    "NM",
    "AbstractCriterion",
    "AbstractPattern",
    "AbstractScope",
    "Arguments",
    "CalibrationRecovery",
    "CheckpointError",
    "CompileError",
    "Data",
    "DataError",
    "DataOptions",
    "EmptiedLayerWarning",
    "Epoch",
    "Epsd",
    "Fisher",
    "FlipShift",
    "Global",
    "GraSP",
    "GuidedScores",
    "InvalidArgument",
    "Inverted",
    "Lamp",
    "LayerReconstruction",
    "Layerwise",
    "LeftDenseWarning",
    "Magnitude",
    "MaskError",
    "Masks",
    "Metrics",
    "MissingExtra",
    "ModelError",
    "PerTensor",
    "PlanError",
    "Platon",
    "ProsPr",
    "Random",
    "Recovery",
    "Result",
    "RunError",
    "ScoreError",
    "ScoreInputs",
    "SecateurError",
    "SecateurWarning",
    "Shuffled",
    "SlowEngineWarning",
    "SmartRatios",
    "Snip",
    "SolvingScores",
    "Stage",
    "SuiteError",
    "SynFlow",
    "TargetError",
    "TaskGradient",
    "Taylor",
    "TeacherCurvature",
    "TeacherFisher",
    "TeacherGuided",
    "TrainState",
    "TrainingError",
    "UniformPlus",
    "Unstructured",
    "Wanda",
    "__version__",
    "allocate",
    "apply_masks",
    "build_model",
    "cut",
    "evaluate",
    "fit",
    "inspect_checkpoint",
    "kd_loss",
    "keep_masks",
    "load_data",
    "load_sparse",
    "load_weights",
    "mask_overlap",
    "mix",
    "prune",
    "reestimate_batchnorm",
    "runtime",
    "save_sparse",
    "score",
    "select_targets",
    "split_half_overlap",
    "staged_masks",
    "verify_checkpoint",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401  whatever the name stands for
    """Import a public name or a module of the package when it is first asked for.

    Not sooner, because all but `secateur.runtime` needs torch, and a plan is to run without.
    """
    if name in __all__ and name != "runtime":
        return getattr(importlib.import_module("secateur.api"), name)
    if not name.startswith("_") and importlib.util.find_spec(f"secateur.{name}"):
        return importlib.import_module(f"secateur.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """A package in which a function wins over the module of the same name that it comes from."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in ("allocate", "evaluate") and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
