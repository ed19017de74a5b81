"""A run is its configuration: frozen dataclasses that are the flags, the YAML file and the run id."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import types
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import tyro
import yaml
from torch import nn

from secateur.allocate import AbstractScope, Global, Layerwise
from secateur.counts import check_fraction
from secateur.data import DataOptions
from secateur.errors import InvalidArgument
from secateur.recovery import Recovery
from secateur.scores import CRITERIA, AbstractCriterion

T = TypeVar("T")


@dataclass(frozen=True)
class ScoreOptions:
    """What the cut is guided by. An option left out takes the criterion's own default."""

    criterion: str = "teacher-guided"
    """teacher-guided, magnitude, task-gradient or random."""
    temperature: float | None = None
    """Temperature T > 0 of the teacher's loss in the score."""
    saliency: str | None = None
    """grad (the formula as printed), grad*weight or grad^2."""
    form: str | None = None
    """separate (published formula) or joint (what the authors ran)."""
    accumulate: str | None = None
    """Over batches: mean or ema."""
    momentum: float | None = None
    """Weight of the past in ema, in [0, 1)."""
    kd: str | None = None
    """Distance to the teacher: forward, reverse, ca-kld, mse or cosine."""
    beta: float | None = None
    """Weight of the reverse divergence in ca-kld, in [0, 1]."""
    standardize: bool | None = None
    """Standardise logits per sample before the softmax."""


@dataclass(frozen=True)
class Setup:
    """Data, networks and score: what a run and a sweep share."""

    dataset: Annotated[DataOptions, tyro.conf.arg(name="")] = field(default_factory=DataOptions)
    student: str | None = None
    """Built-in name, timm:NAME or pkg.mod:factory; by default what suits the data."""
    student_weights: str | None = None
    """Trained weights, .safetensors or .pt/.pth; trained here when left out."""
    teacher: str | None = None
    """Built-in name, timm:NAME or pkg.mod:factory; by default what suits the data."""
    teacher_weights: str | None = None
    """Trained weights, .safetensors or .pt/.pth; trained here when left out."""
    score: Annotated[ScoreOptions, tyro.conf.arg(name="")] = field(default_factory=ScoreOptions)
    scope: Literal["global", "layerwise"] = "global"
    """Where weights compete: all together, or within each tensor."""
    min_density: float = 0.0
    """Smallest fraction of each tensor that stays under the global scope, in [0, 1]."""
    include: tuple[str, ...] = ("*",)
    """Name patterns of weights to prune."""
    exclude: tuple[str, ...] = ()
    """Name patterns of weights to leave dense."""
    pretrain: Recovery = field(default_factory=lambda: Recovery(epochs=30, kd_weight=0.0))
    """How to train a teacher or student that comes without weights (kd_weight counts for the student)."""
    seed: int = 0
    """Seed of splits, initial weights, shuffling and augmentation."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        check_fraction("min_density", self.min_density)
        if self.scope != "global" and self.min_density:
            raise InvalidArgument(f"min_density applies to the global scope only, not to {self.scope!r}.")

    @property
    def wants_teacher(self) -> bool:
        """Whether the score or the training of the student has a teacher in it, or one was named."""
        kind = CRITERIA.get(self.score.criterion)
        scored = kind is not None and "teacher" in _field_names(kind)
        distilled = self.student_weights is None and self.pretrain.kd_weight > 0
        return scored or distilled or self.teacher is not None or self.teacher_weights is not None


@dataclass(frozen=True)
class RunConfig:
    """One run, from data to report."""

    setup: Annotated[Setup, tyro.conf.arg(name="")] = field(default_factory=Setup)
    sparsity: float = 0.9
    """Fraction of the prunable weights to remove, in [0, 1)."""
    alpha: float | None = None
    """Weight of the task term in the score, in [0, 1]: 0 = teacher alone, 1 = labels alone (default 0.5)."""
    batchnorm: Literal["augmented", "plain", "off"] = "augmented"
    """Data for BatchNorm re-estimation after the cut: augmented training images as in training (measured
    to be right), plain calibration images, or no re-estimation."""
    recover: Literal["kd", "plain", "both", "none"] = "kd"
    """Recovery to run: with the teacher, on labels alone, both (the one with the teacher is kept), none."""
    recovery: Recovery = field(default_factory=Recovery)
    """How to recover."""

    def __post_init__(self) -> None:
        check_fraction("sparsity", self.sparsity, below_one=True)
        if self.recover in ("kd", "both") and self.recovery.kd_weight == 0:
            raise InvalidArgument(
                f"recover={self.recover} with recovery.kd_weight=0 has no teacher in it. "
                "Raise kd_weight or choose recover=plain."
            )

    @property
    def wants_teacher(self) -> bool:
        """Whether any part of the run needs a teacher, or one was named."""
        return self.setup.wants_teacher or self.recover in ("kd", "both")

    @property
    def recoveries(self) -> tuple[Recovery, ...]:
        """The recoveries that `recover` names; the one with the teacher comes last, so it is kept."""
        plain, kd = replace(self.recovery, kd_weight=0.0), self.recovery
        return {"none": (), "plain": (plain,), "kd": (kd,), "both": (plain, kd)}[self.recover]


@dataclass(frozen=True)
class SweepConfig:
    """Many cuts from one scoring pass.

    Attributes:
        setup: Data, networks and score.
        alphas: Weights of the task term to try; empty for a criterion without alpha.
        sparsities: Fractions to remove.
    """

    setup: Setup = field(default_factory=Setup)
    alphas: tuple[float, ...] = ()
    sparsities: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95)

    def __post_init__(self) -> None:
        for alpha in self.alphas:
            check_fraction("alpha", alpha)
        for sparsity in self.sparsities:
            check_fraction("sparsity", sparsity, below_one=True)


def run_id(config: RunConfig | SweepConfig) -> str:
    """Twelve hex digits of the SHA-256 of the configuration, defaults left out.

    The same configuration has the same id; a new field whose default changes nothing keeps old ids.
    """
    canonical = json.dumps(_without_defaults(config), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def build_criterion(setup: Setup, *, alpha: float | None, teacher: nn.Module | None) -> AbstractCriterion:
    """The criterion that `setup` names, with its own defaults where the options say nothing.

    Raises:
        InvalidArgument: if it is unknown, an option does not apply to it, or the teacher is missing.
    """
    options = setup.score
    if options.criterion not in CRITERIA:
        raise InvalidArgument(unknown("criterion", options.criterion, CRITERIA))
    kind = CRITERIA[options.criterion]
    accepted = _field_names(kind)
    given = {name: getattr(options, name) for name in _field_names(ScoreOptions) - {"criterion"}}
    given["alpha"] = alpha
    given = {name: value for name, value in given.items() if value is not None}
    for name in given:
        if name not in accepted:
            takes = ", ".join(sorted(accepted - {"teacher", "seed"})) or "no options"
            raise InvalidArgument(
                f"--{name} does not apply to criterion {options.criterion!r}, which takes {takes}."
            )
    if "teacher" in accepted:
        if teacher is None:
            raise InvalidArgument(f"criterion {options.criterion!r} needs a teacher; pass one.")
        given["teacher"] = teacher
    if "seed" in accepted:
        given["seed"] = setup.seed
    return kind(**given)


def check_criterion(setup: Setup, *, alpha: float | None) -> None:
    """Refuse options that `build_criterion` would refuse, before there is a teacher.

    Raises:
        InvalidArgument: as `build_criterion` does.
    """
    build_criterion(setup, alpha=alpha, teacher=nn.Identity())


def build_scope(setup: Setup) -> AbstractScope:
    """The scope that `setup` names."""
    return Global(min_density=setup.min_density) if setup.scope == "global" else Layerwise()


def load_config(path: str | Path, kind: type[T]) -> T:
    """Read a YAML configuration such as the ``config.yaml`` of a run folder.

    Args:
        path: The file.
        kind: `RunConfig` or `SweepConfig`.

    Raises:
        InvalidArgument: if the file cannot be read, or holds an unknown key or a value of another type.
    """
    try:
        data = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidArgument(f"cannot read the configuration {str(path)!r}: {error}") from error
    return from_mapping(kind, {} if data is None else data, where=str(path))


def dump_config(config: RunConfig | SweepConfig) -> str:
    """The resolved configuration as YAML, every field written out."""
    return yaml.safe_dump(_plain(config), sort_keys=False)


def unknown(kind: str, name: str, allowed: Mapping[str, object]) -> str:
    """The message for a name that is not in a table, with the closest one that is."""
    close = difflib.get_close_matches(name, allowed, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"unknown {kind} {name!r}; known: {', '.join(allowed)}.{hint}"


def from_mapping(cls: type[T], data: object, *, where: str) -> T:
    """A dataclass from nested plain values, strictly: unknown keys and other types are refused.

    Args:
        cls: A dataclass.
        data: What YAML gave for it.
        where: Path of keys so far, for error messages.

    Raises:
        InvalidArgument: naming the key, the value and what is allowed.
    """
    if not isinstance(data, Mapping):
        raise InvalidArgument(f"{where} must be a mapping of options, got {data!r}.")
    hints = get_type_hints(cls, include_extras=False)
    table: dict[str, object] = {f.name: None for f in fields(cast("Any", cls))}
    values: dict[str, object] = {}
    for key, value in cast("Mapping[str, object]", data).items():
        if key not in table:
            raise InvalidArgument(f"{where}: {unknown('option', str(key), table)}")
        values[key] = _convert(hints[key], value, where=f"{where}: {key}")
    return cls(**values)


def _convert(hint: Any, value: object, *, where: str) -> object:  # noqa: ANN401 - a type annotation
    """`value` as the annotated type `hint`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_mapping(cast("type[Any]", hint), value, where=where)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        inner = [a for a in arguments if a is not type(None)]
        return _convert(inner[0], value, where=where)
    if origin is Literal:
        if value in arguments:
            return value
        raise InvalidArgument(f"{where} must be one of {', '.join(map(repr, arguments))}, got {value!r}.")
    if origin is tuple and isinstance(value, (list, tuple)):
        items = cast("list[object]", list(cast("Any", value)))
        return tuple(_convert(arguments[0], item, where=where) for item in items)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    name = getattr(hint, "__name__", str(hint))
    raise InvalidArgument(f"{where} must be of type {name}, got {value!r}.")


def _plain(value: object) -> Any:  # noqa: ANN401 - JSON
    """Nested dataclasses and tuples as dicts and lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in cast("tuple[object, ...]", value)]
    return value


def _without_defaults(config: RunConfig | SweepConfig) -> dict[str, Any]:
    return _difference(_plain(config), _plain(type(config)()))


def _field_names(kind: type[Any]) -> set[str]:
    return {f.name for f in fields(kind)}


def _difference(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The entries of `values` that are not as in `defaults`."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            inner = _difference(cast("dict[str, Any]", value), defaults[key])
            if inner:
                out[key] = inner
        elif value != defaults[key]:
            out[key] = value
    return out
