"""A suite: the grid of methods, sparsities and seeds that one command runs, as a YAML file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from secateur.counts import check_fraction, check_whole
from secateur.data import DataOptions
from secateur.errors import InvalidArgument
from secateur.losses import KDKind
from secateur.recovery import Recovery
from secateur.values import from_mapping, plain, unknown, without_defaults
from secateur.yaml_files import load_yaml

_OF_TEACHER = ("kd", "beta", "standardize", "temperature")
"""What a method may have otherwise than the suite's recovery, and only a recovery with a teacher reads."""
_OF_RECOVERY = ("kd_weight", *_OF_TEACHER, "lr", "epochs")
"""What a method may have otherwise than the suite's recovery."""


@dataclass(frozen=True)
class Method:
    """One line of the table: how zeros are chosen, and what is unusual about it."""

    label: str = ""
    """Name in tables and plots; by default the key of the method."""
    family: Literal["baseline", "one-shot", "published", "iterative", "ablation", "control"] = "one-shot"
    """Where it stands in the report."""
    strategy: str = "one-shot"
    """Name of a strategy, see docs/strategies.md."""
    strategy_options: dict[str, Any] = field(default_factory=dict[str, Any])
    """Its hyper-parameters by name."""
    criterion: str | None = None
    """Name of a criterion or pkg.mod:Class; None takes the strategy's own."""
    criterion_options: dict[str, Any] = field(default_factory=dict[str, Any])
    """Its hyper-parameters by name."""
    scope: str | None = None
    """Name of a scope; None takes the strategy's own."""
    scope_options: dict[str, Any] = field(default_factory=dict[str, Any])
    """Its parameters by name."""
    control: Literal["none", "shuffled", "inverted"] = "none"
    """Scores shuffled within each layer, or turned upside down."""
    teacher: Literal["trained", "untrained", "random-labels", "student"] = "trained"
    """Who teaches in the score, and in the distillation steps of a cut: the teacher, one without training,
    one trained on random labels, or a copy of the dense student. The recovery always has the trained one."""
    start: Literal["trained", "init", "small"] = "trained"
    """What is pruned: the trained student, the same network with fresh weights, or, not pruned at all, a
    fresh narrow network with as many parameters as the others keep."""
    calibrate_on: Literal["calibration", "train"] = "calibration"
    """What it scores by, and takes steps on: the suite's calibration images, or all training images, neither
    with augmentation."""
    calibration_batches: int | None = None
    """Calibration batches that it scores by where it is not all of them."""
    kd_weight: float | None = None
    """Weight of the teacher in the recovery where it differs from the suite's."""
    kd: KDKind | None = None
    """Distance from the teacher in the recovery where it is not the suite's."""
    beta: float | None = None
    """Weight of the reverse divergence in ca-kld where it differs from the suite's."""
    standardize: bool | None = None
    """Whether the recovery standardises logits where it is not as in the suite."""
    temperature: float | None = None
    """Temperature of the recovery where it differs from the suite's."""
    lr: float | None = None
    """Peak rate of the recovery where it differs from the suite's, which the report then says."""
    epochs: int | None = None
    """Training budget in epochs where it differs from the suite's, which the tables then say."""
    sparsities: tuple[float, ...] | None = None
    """Sparsities at which it runs; None = all of the suite's."""
    of: str | None = None
    """The method that a control is compared with in the report; magnitude by default."""
    expect: Literal["below", "level", "above"] | None = None
    """Where a control should come out against it, if not as its kind of control always should."""
    shows: str | None = None
    """What that would show, in words for the report."""


@dataclass(frozen=True)
class Suite:
    """A grid of cells: every method at every sparsity with every seed, on the same networks and data."""

    name: str = "suite"
    """What result files are called."""
    description: str = ""
    """One sentence on what it shows."""
    dataset: DataOptions = field(default_factory=DataOptions)
    """Data, and the number of calibration images."""
    student: str = "small-cnn"
    """Network to prune."""
    student_weights: str | None = None
    """Its trained weights; trained here, once a seed, when left out."""
    teacher: str = "wide-cnn"
    """Network that teaches."""
    teacher_weights: str | None = None
    """Its trained weights; trained here, once a seed, when left out."""
    pretrain: Recovery = field(default_factory=lambda: Recovery(epochs=30, kd_weight=0.0))
    """How networks without weights are trained."""
    random_label_epochs: int = 3
    """Epochs of training for the teacher that learns random labels."""
    recovery: Recovery | None = field(default_factory=Recovery)
    """Training budget of every method, and how it is used; None trains nothing."""
    sparsities: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95, 0.98)
    """Fractions of the prunable weights to remove."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of splits, calibration data, shuffling, augmentation and whatever a method draws."""
    include: tuple[str, ...] = ("*",)
    """Name patterns of weights to prune."""
    exclude: tuple[str, ...] = ()
    """Name patterns of weights to leave dense."""
    methods: dict[str, Method] = field(default_factory=dict[str, Method])
    """Methods by key; `magnitude` is what the others are compared with."""
    two_by_two: tuple[tuple[str, ...], ...] | None = None
    """Four method keys, [[A, B], [C, D]]: rows without and with the teacher in the score, columns without
    and with it in the recovery."""

    def __post_init__(self) -> None:
        for sparsity in self.sparsities:
            check_fraction("sparsity", sparsity, below_one=True)
        check_whole("random_label_epochs", self.random_label_epochs, least=0)
        for seed in self.seeds:
            check_whole("seeds", seed, least=0)
        _check_differ("sparsities", self.sparsities)
        _check_differ("seeds", self.seeds)
        labelled: dict[str, str] = {}
        deciding: dict[str, str] = {}
        for key, method in self.methods.items():
            other = labelled.setdefault(method.label or key, key)
            if other != key:
                raise InvalidArgument(
                    f"methods {other!r} and {key!r} have the same label, {method.label or key!r}; "
                    "tables and figures could not tell them apart. Give each its own."
                )
            same = deciding.setdefault(json.dumps(computed(method), sort_keys=True), key)
            if same != key:
                raise InvalidArgument(
                    f"methods {same!r} and {key!r} do the same, and would fill the same places of the grid. "
                    "Remove one of them."
                )
            _check_method(key, method)
            self._check_recovery(key, method)
            extra = set(method.sparsities or ()) - set(self.sparsities)
            if extra:
                raise InvalidArgument(
                    f"method {key!r} asks for sparsities {sorted(extra)} that the suite does not have."
                )
            if method.of is not None and method.of not in self.methods:
                raise InvalidArgument(
                    f"method {key!r} is a control of {method.of!r}, which is not among the methods chosen; "
                    f"choose it too, or correct its name: {', '.join(self.methods)}."
                )
        self._check_square()

    def _check_recovery(self, key: str, method: Method) -> None:
        """Refuse options of the recovery that do not go together, or that nothing would read."""
        recovery = recovery_of(self, method)
        unread = [name for name in _OF_TEACHER if getattr(method, name) is not None]
        if unread and recovery is not None and recovery.kd_weight == 0:
            raise InvalidArgument(
                f"method {key!r} recovers without the teacher (kd_weight=0), and sets "
                f"{' and '.join(unread)}, which only a recovery with one reads. Drop the one or the other."
            )

    def _check_square(self) -> None:
        square = self.two_by_two
        if square is None:
            return
        if len(square) != 2 or any(len(row) != 2 for row in square):
            raise InvalidArgument(
                "two_by_two must be two rows of two methods, [[A, B], [C, D]]: rows without and with the "
                f"teacher in the score, columns without and with it in the recovery; got {plain(square)}."
            )
        for key in (*square[0], *square[1]):
            if key not in self.methods:
                raise InvalidArgument(
                    f"two_by_two names {key!r}, which is not among the methods; "
                    f"correct its name: {', '.join(self.methods)}."
                )


def _check_differ(name: str, values: Sequence[float]) -> None:
    if len(set(values)) < len(values):
        raise InvalidArgument(f"{name} must differ from each other, got {plain(values)}.")


def _check_method(key: str, method: Method) -> None:
    """Refuse what could only fail, or come to nothing, once networks are trained.

    Raises:
        InvalidArgument: naming the method.
    """
    _check_differ(f"method {key!r}: sparsities", method.sparsities or ())
    if method.calibration_batches is not None:
        check_whole(f"method {key!r}: calibration_batches", method.calibration_batches, least=1)
    if method.start == "small" and method.strategy != "dense":
        raise InvalidArgument(
            f"method {key!r}: start: small is a narrow network that is not pruned, for strategy: dense only, "
            f"not for {method.strategy!r}."
        )
    for option in ("criterion", "scope"):
        if option in method.strategy_options:
            raise InvalidArgument(
                f"method {key!r}: {option} stands beside strategy_options, not in it: {option}: NAME and "
                f"{option}_options."
            )


def suite_names() -> list[str]:
    """The suites that come with the package."""
    folder = resources.files("secateur.arena") / "suites"
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))


def load_suite(spec: str) -> Suite:
    """A suite by name, or from a YAML file.

    A file may say ``extends: SUITE``, a name or a file beside it: what it does not say itself is taken from
    there, method by method.

    Args:
        spec: One of `suite_names`, or the path of a file that ends in .yaml.

    Raises:
        InvalidArgument: if there is no such suite, or it holds an unknown key or a wrong value.
    """
    return from_mapping(Suite, _read(spec, ()), where=spec)


def _read(spec: str, extending: tuple[str, ...]) -> object:
    """The content of a suite's file, with that of the suite that it extends."""
    if spec in extending:
        raise InvalidArgument(f"suite {spec!r} extends itself, by way of {' and '.join(extending)}.")
    if not spec.endswith((".yaml", ".yml")):
        names = suite_names()
        if spec not in names:
            raise InvalidArgument(unknown("suite", spec, dict.fromkeys(names)) + " Or give a .yaml file.")
        with resources.as_file(resources.files("secateur.arena") / "suites" / f"{spec}.yaml") as path:
            return _extended(load_yaml(path), Path(), (*extending, spec))
    return _extended(load_yaml(Path(spec)), Path(spec).parent, (*extending, spec))


def _extended(content: object, folder: Path, extending: tuple[str, ...]) -> object:
    if not (isinstance(content, dict) and "extends" in content):
        return content
    other = str(content.pop("extends"))
    base = _read(str(folder / other) if other.endswith((".yaml", ".yml")) else other, extending)
    if not isinstance(base, dict):
        return base
    merged = base | content
    if isinstance(base.get("methods"), dict) and isinstance(content.get("methods"), dict):
        merged["methods"] = base["methods"] | content["methods"]
    return merged


def narrowed(
    suite: Suite, *, methods: Sequence[str] = (), sparsities: Sequence[float] = (), seeds: Sequence[int] = ()
) -> Suite:
    """The part of a suite with some methods, sparsities and seeds only; empty = all of them.

    Without one of its four methods there is no two by two.

    Raises:
        InvalidArgument: if the suite has no such method, sparsity or seed.
    """
    for key in methods:
        if key not in suite.methods:
            raise InvalidArgument(unknown("method", key, suite.methods))
    kept = {key: m for key, m in suite.methods.items() if not methods or key in methods}
    wanted = tuple(sparsities) or suite.sparsities
    for key, method in kept.items():
        if method.sparsities is not None:
            kept[key] = replace(method, sparsities=tuple(s for s in method.sparsities if s in wanted))
    for what, asked, has in (("sparsity", sparsities, suite.sparsities), ("seed", seeds, suite.seeds)):
        if extra := sorted(set(asked) - set(has)):
            raise InvalidArgument(
                f"suite {suite.name!r} has no {what} {', '.join(map(str, extra))}; it has "
                f"{', '.join(map(str, has))}. A suite of your own may extend it and have others."
            )
    whole = all(key in kept for row in suite.two_by_two or () for key in row)
    return replace(
        suite,
        methods=kept,
        sparsities=wanted,
        seeds=tuple(seeds) or suite.seeds,
        two_by_two=suite.two_by_two if whole else None,
    )


def recovery_of(suite: Suite, method: Method) -> Recovery | None:
    """How a method is trained: the suite's recovery with the method's own changes."""
    if suite.recovery is None:
        return None
    own = {name: getattr(method, name) for name in _OF_RECOVERY}
    return replace(suite.recovery, **{key: value for key, value in own.items() if value is not None})


def computed(method: Method) -> dict[str, Any]:
    """What of a method decides a result, and not only how and where it is shown."""
    bare = replace(method, label="", family="one-shot", sparsities=None, of=None, expect=None, shows=None)
    return without_defaults(bare, Method())
