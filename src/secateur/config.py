"""A run is its configuration: frozen dataclasses that are the flags, the YAML file and the run id."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import tyro
import yaml
from torch import nn

from secateur.allocate import AbstractScope, Unstructured
from secateur.augment import FlipShift
from secateur.building import build_criterion_from, build_pattern_from, build_scope_from, wants_teacher
from secateur.calibration import CalibrationRecovery
from secateur.counts import check_fraction
from secateur.cutting import check_no_regrow
from secateur.data import DataOptions, ImageLoader
from secateur.errors import InvalidArgument
from secateur.losses import KDKind
from secateur.naming import Batches
from secateur.recovery import Recovery
from secateur.scores import AbstractCriterion
from secateur.stages import check_stages
from secateur.steps import Execution
from secateur.values import from_mapping, plain, without_defaults
from secateur.yaml_files import load_yaml

T = TypeVar("T")
_SEEDS = 2**32
"""Seeds there are: generators take 64 bits, and each purpose makes a seed of its own from this one."""


Options: TypeAlias = Annotated[
    dict[str, Any],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="NAME=VALUE [NAME=VALUE …]",
        instance_from_str=lambda words: dict(map(_parse_option, words)),
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda options: [f"{name}={json.dumps(v)}" for name, v in options.items()],
    ),
]
"""Options by name: a mapping in YAML, ``name=value`` as flags, where a value is JSON or else plain text."""


@dataclass(frozen=True)
class ScoreOptions:
    """What the cut is guided by. An option left out takes the criterion's own default."""

    criterion: str = "teacher-guided"
    """A key from docs/methods.md, such as teacher-guided or magnitude, or pkg.mod:Class."""
    criterion_options: Options = field(default_factory=dict[str, Any])
    """Options of the criterion that have no flag of their own."""
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
    """Built-in name, timm:NAME or pkg.mod:factory; by default what suits the data. student = the dense
    student itself, which takes no training of another network."""
    teacher_weights: str | None = None
    """Trained weights, .safetensors or .pt/.pth; trained here when left out."""
    score: Annotated[ScoreOptions, tyro.conf.arg(name="")] = field(default_factory=ScoreOptions)
    scope: str = "global"
    """Where weights compete: global, layerwise, erk, uniform-plus, smart-ratios, per-tensor, or
    pkg.mod:Class."""
    scope_options: Options = field(default_factory=dict[str, Any])
    """Options of the scope, such as linear_density=0.2 of smart-ratios."""
    min_density: float = 0.0
    """Smallest fraction of each tensor that stays under the global scope, in [0, 1]."""
    include: tuple[str, ...] = ("*",)
    """Name patterns of weights to prune."""
    exclude: tuple[str, ...] = ()
    """Name patterns of weights to leave dense."""
    pretrain: Recovery = field(default_factory=lambda: Recovery(epochs=30, kd_weight=0.0))
    """How to train a teacher or student that comes without weights (kd_weight counts for the student)."""
    seed: int = 0
    """Seed of splits, initial weights, shuffling and augmentation, from 0 to 2³² − 1."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    execution: Execution = "auto"
    """How training steps are run: eager; graph (recorded as a CUDA graph); compile (torch.compile); auto
    takes a graph on CUDA, where it pays, else eager. Results differ by rounding only."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < _SEEDS:
            raise InvalidArgument(f"seed must be from 0 to {_SEEDS - 1}, got {self.seed}. Choose another.")
        check_fraction("min_density", self.min_density)
        if self.scope != "global" and self.min_density:
            raise InvalidArgument(f"min_density applies to the global scope only, not to {self.scope!r}.")

        if self.own_teacher and self.teacher_weights is not None:
            raise InvalidArgument("teacher=student has the student's weights; drop teacher_weights.")
        if self.own_teacher and self.student_weights is None and self.pretrain.kd_weight > 0:
            raise InvalidArgument(
                "teacher=student cannot teach the student before it is trained: set pretrain.kd_weight=0."
            )

    @property
    def own_teacher(self) -> bool:
        """Whether the dense student is its own teacher."""
        return self.teacher == "student"

    @property
    def wants_teacher(self) -> bool:
        """Whether the score or the training of the student has a teacher in it, or one was named."""
        scored = wants_teacher(self.score.criterion)
        distilled = self.student_weights is None and self.pretrain.kd_weight > 0
        return scored or distilled or self.teacher is not None or self.teacher_weights is not None


@dataclass(frozen=True)
class CalibrationOptions:
    """Distillation on the calibration inputs after each stage of the cut, without labels or training set."""

    steps: int = 0
    """Steps after each stage but the last; 0 = none, also after the last. 120 are a good start."""
    final_steps: int = CalibrationRecovery.final_steps
    """Steps after the last stage, where most of them belong."""
    batch_size: int = CalibrationRecovery.batch_size
    """Calibration inputs a step."""
    lr: float = CalibrationRecovery.lr
    """Peak learning rate, anew after each stage."""
    cautious: bool = CalibrationRecovery.cautious
    """Lower the rate where a cut did little harm, and undo steps that do more of it."""
    momentum: float = CalibrationRecovery.momentum
    """Of SGD, in [0, 1)."""
    temperature: float = CalibrationRecovery.temperature
    """Temperature T > 0 of the teacher's loss on logits."""
    kd: KDKind = CalibrationRecovery.kd
    """The teacher's loss: forward, reverse or ca-kld on logits, mse or cosine on other outputs."""
    beta: float = CalibrationRecovery.beta
    """Weight of the reverse divergence in ca-kld, in [0, 1]."""
    standardize: bool = CalibrationRecovery.standardize
    """Standardise each sample's logits before the softmax."""
    batchnorm: Literal["train", "fixed"] = CalibrationRecovery.batchnorm
    """train: batch statistics in the steps, their running average after; fixed: as it was."""
    augment: Literal["auto", "none", "flip-shift", "mix"] = "auto"
    """What is done to each batch: nothing; mirror and move images by up to 4 pixels, for photographs; mix
    half of the inputs with others. auto mirrors and moves as the training images of the data set are, if
    they are."""
    precision: Literal["auto", "fp32", "bf16"] = CalibrationRecovery.precision
    """Arithmetic of the forward and backward pass; auto takes bf16 where the hardware has it."""
    teacher: Literal["student", "teacher"] = "student"
    """Who teaches: the dense student as it was, or the teacher of the run."""

    def __post_init__(self) -> None:
        self._recipe(0)
        if not self.runs and any(getattr(self, f.name) != f.default for f in fields(self)):
            raise InvalidArgument(
                "options of calibration without steps would do nothing: set calibration.steps, such as 120."
            )

    @property
    def runs(self) -> bool:
        """Whether there is any step."""
        return self.steps > 0

    def recovery(self, seed: int, train: Batches) -> CalibrationRecovery | None:
        """The recipe that the options make for data with the training part `train`; None without steps."""
        return self._recipe(seed, _look_of(train)) if self.runs else None

    def _recipe(self, seed: int, look: FlipShift | None = None) -> CalibrationRecovery:
        shared = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "teacher"}
        if self.augment == "auto":
            shared["augment"] = look or "none"
        return CalibrationRecovery(**shared, seed=seed)


def _look_of(train: Batches) -> FlipShift | None:
    """What images are moved by in training, where that is known and anything at all."""
    found = train.augmentation if isinstance(train, ImageLoader) else None
    if found is None or not (found.crop_padding or found.flip):
        return None
    return FlipShift(found.crop_padding, flip=found.flip)


@dataclass(frozen=True)
class RunConfig:
    """One run, from data to report."""

    setup: Annotated[Setup, tyro.conf.arg(name="")] = field(default_factory=Setup)
    sparsity: float | None = None
    """Fraction of the prunable weights to remove, in [0, 1); by default 0.9, or what the pattern removes."""
    pattern: str = "unstructured"
    """Where zeros may stand: unstructured (anywhere), or N:M such as 2:4: of every M
    weights along the input N stay."""
    alpha: float | None = None
    """Weight of the task term in the score, in [0, 1]: 0 = teacher alone, 1 = labels alone (default 0.5)."""
    stages: int = 1
    """How many times to score and cut, each time what is left, without training in between."""
    regrow: bool = False
    """Let a later stage take back what an earlier one removed (FORCE)."""
    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)
    """How to distil on the calibration inputs after each stage."""
    batchnorm: Literal["auto", "augmented", "plain", "off"] = "auto"
    """Data for BatchNorm re-estimation after the cut: augmented training images as in training (measured
    to be right), plain calibration images, or no re-estimation. auto: augmented, or plain without training
    images; off after calibration steps and solved weights, which end with statistics of their own."""
    recover: Literal["kd", "plain", "both", "none"] = "kd"
    """Recovery to run: with the teacher, on labels alone, both (the one with the teacher is kept), none."""
    recovery: Recovery = field(default_factory=Recovery)
    """How to recover."""

    def __post_init__(self) -> None:
        self._sparsity()
        check_stages(self.stages, regrow=self.regrow)
        if self.calibration.runs:
            check_no_regrow(regrow=self.regrow)
        if self.recover in ("kd", "both") and self.recovery.kd_weight == 0:
            raise InvalidArgument(
                f"recover={self.recover} with recovery.kd_weight=0 has no teacher in it. "
                "Raise kd_weight or choose recover=plain."
            )

    def resolved(self) -> RunConfig:
        """The same run with its sparsity written out."""
        return replace(self, sparsity=self._sparsity())

    def _sparsity(self) -> float:
        pattern = build_pattern_from(self.pattern)
        default = 0.9 if pattern == Unstructured() else None
        return pattern.sparsity_for(default if self.sparsity is None else self.sparsity)

    @property
    def wants_teacher(self) -> bool:
        """Whether any part of the run needs a teacher, or one was named."""
        taught = self.calibration.runs and self.calibration.teacher == "teacher"
        return self.setup.wants_teacher or self.recover in ("kd", "both") or taught

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
        if not self.sparsities:
            raise InvalidArgument("a sweep needs at least one sparsity, such as 0.9.")
        for sparsity in self.sparsities:
            check_fraction("sparsity", sparsity, below_one=True)


def _parse_option(word: str) -> tuple[str, Any]:
    """``name=value`` taken apart."""
    name, equals, text = word.partition("=")
    if not (name and equals):
        raise ValueError(f"an option is written name=value, got {word!r}")
    try:
        return name, json.loads(text, parse_constant=str)  # NaN and Infinity stay text
    except ValueError:
        return name, text


def run_id(config: RunConfig | SweepConfig) -> str:
    """Twelve hex digits of the SHA-256 of the configuration, defaults left out.

    The same configuration has the same id; a new field whose default changes nothing keeps old ids.
    """
    default = type(config)()
    if isinstance(config, RunConfig) and isinstance(default, RunConfig):
        config, default = config.resolved(), default.resolved()
    canonical = json.dumps(
        without_defaults(config, default), sort_keys=True, separators=(",", ":"), allow_nan=False
    )
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def build_criterion(setup: Setup, *, alpha: float | None, teacher: nn.Module | None) -> AbstractCriterion:
    """The criterion that `setup` names, with its own defaults where the options say nothing.

    Raises:
        InvalidArgument: if it is unknown, an option does not apply to it, or the teacher is missing.
    """
    name, options = setup.score.criterion, setup.score.criterion_options
    named = (f.name for f in fields(ScoreOptions) if f.name not in ("criterion", "criterion_options"))
    flags = {"alpha": alpha, **{flag: getattr(setup.score, flag) for flag in named}}
    given = {flag: value for flag, value in flags.items() if value is not None}
    twice = sorted(given.keys() & options)
    if twice:
        raise InvalidArgument(f"{', '.join(twice)} of criterion_options also has a flag; give it once.")
    return build_criterion_from(name, {**given, **options}, teacher=teacher, seed=setup.seed)


def build_scope(setup: Setup) -> AbstractScope:
    """The scope that `setup` names.

    Raises:
        InvalidArgument: if it is unknown, or an option does not apply to it.
    """
    floor = {"min_density": setup.min_density} if setup.min_density else {}
    return build_scope_from(setup.scope, {**setup.scope_options, **floor})


def check_names(setup: Setup, *, alpha: float | None) -> None:
    """Refuse what `build_criterion` and `build_scope` would refuse, before there is a teacher.

    Raises:
        InvalidArgument: as they do.
    """
    build_criterion(setup, alpha=alpha, teacher=nn.Identity())
    build_scope(setup)


def load_config(path: str | Path, kind: type[T]) -> T:
    """Read a YAML configuration such as the ``config.yaml`` of a run folder.

    Args:
        path: The file.
        kind: `RunConfig` or `SweepConfig`.

    Raises:
        InvalidArgument: if the file cannot be read, or holds an unknown key or a value of another type.
    """
    return from_mapping(kind, load_yaml(path), where=str(path))


def dump_config(config: object) -> str:
    """The resolved configuration as YAML, every field written out."""
    return yaml.safe_dump(plain(config), sort_keys=False)
