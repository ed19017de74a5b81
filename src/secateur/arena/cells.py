"""The cells of a suite, and their names, which follow from all that decides a result."""

from __future__ import annotations

import hashlib
import inspect
import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from secateur.arena.suite import Method, Suite, computed
from secateur.errors import InvalidArgument
from secateur.factories import load_object
from secateur.values import without_defaults

_VERSION = 1
_OF_PACKAGES = ("timm:", "hf:")
_OF_NETWORKS = ("dataset", "student", "student_weights", "teacher", "teacher_weights", "pretrain")


@dataclass(frozen=True)
class Cell:
    """One point of the grid.

    Attributes:
        method: Key of the method.
        sparsity: Fraction of the prunable weights to remove.
        seed: Of everything random.
        id: Twelve hex digits that follow from all that decides the result.
    """

    method: str
    sparsity: float
    seed: int
    id: str


def plan(suite: Suite) -> list[Cell]:
    """All cells of a suite: seed by seed, method by method, so that scores can be used again.

    Raises:
        InvalidArgument: if a weights file cannot be read.
        SecateurError: if code that the suite names as pkg.mod:attr cannot be imported.
    """
    shared = _shared(suite)
    decisive = {key: {**shared, **_decisive(method)} for key, method in suite.methods.items()}
    return [
        Cell(key, sparsity, seed, _digest({**decisive[key], "sparsity": sparsity, "seed": seed})[:12])
        for seed in suite.seeds
        for key, method in suite.methods.items()
        for sparsity in (suite.sparsities if method.sparsities is None else method.sparsities)
    ]


def networks_digest(suite: Suite) -> str:
    """Eight hex digits that follow from all that decides the networks which a suite trains itself."""
    shared = _shared(suite)
    wanted = (*_OF_NETWORKS, "random_label_epochs", "code")
    return _digest({key: shared[key] for key in wanted if key in shared})[:8]


def _shared(suite: Suite) -> dict[str, Any]:
    """What every cell of a suite depends on; where data and weights lie is no part of it."""
    weights = {"student_weights": suite.student_weights, "teacher_weights": suite.teacher_weights}
    bare = replace(
        suite,
        name="",
        description="",
        dataset=replace(suite.dataset, data_dir=None),
        sparsities=(),
        seeds=(),
        methods={},
        two_by_two=None,
        **{role: path and _file_digest(path) for role, path in weights.items()},
    )
    code = _code(model=suite.student) | _code(model=suite.teacher) | _code(data=suite.dataset.data)
    # Defaults are left out, so that an option added later does not orphan the cells of today.
    return {"version": _VERSION, **without_defaults(bare, Suite()), **({"code": code} if code else {})}


def _decisive(method: Method) -> dict[str, Any]:
    """What a cell depends on by its method."""
    code = _code(strategy=method.strategy) | _code(criterion=method.criterion) | _code(scope=method.scope)
    return {"method": computed(method), **({"method_code": code} if code else {})}


def _code(**spec: str | None) -> dict[str, str]:
    """Digest by name of the user's file that holds an object, where what is named is one."""
    return {
        name: _source_digest(name, kind)
        for kind, name in spec.items()
        if name and ":" in name and not name.startswith(_OF_PACKAGES)
    }


@cache  # what was imported first is what runs, whatever becomes of the file
def _source_digest(spec: str, kind: str) -> str:
    try:
        source = inspect.getsourcefile(load_object(spec, kind=kind))
    except (OSError, TypeError):  # built in, or typed into an interpreter
        source = None
    return _file_digest(source) if source else ""


def _digest(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _file_digest(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise InvalidArgument(f"cannot read {path!r}: {error}") from error
