"""From a configuration to networks, data and a finished run folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from secateur import provenance
from secateur.allocate import SCOPES, AbstractPattern, Unstructured, allocate
from secateur.building import build_pattern_from
from secateur.checks import check_fits, check_splits
from secateur.config import (
    RunConfig,
    Setup,
    SweepConfig,
    build_criterion,
    build_scope,
    check_names,
    run_id,
)
from secateur.cutting import check_no_regrow, moves_weights
from secateur.data import Data, load_data
from secateur.errors import InvalidArgument
from secateur.evaluate import evaluate, reestimate_batchnorm
from secateur.masks import Masks, apply_masks
from secateur.models import build_model, load_weights
from secateur.modules import twin
from secateur.pipeline import prune
from secateur.progress import Watcher
from secateur.recovery import Recovery
from secateur.report import render_run, render_sweep
from secateur.report.schema import read_run, read_sweep
from secateur.result import describe, describe_network
from secateur.runs import RunFolder
from secateur.scores import (
    CRITERIA,
    AbstractCriterion,
    GuidedScores,
    Magnitude,
    TeacherGuided,
    score,
)
from secateur.stages import fitting_targets, mask_warnings_ignored, staged_masks
from secateur.suggestions import after_run, after_sweep
from secateur.targets import select_targets
from secateur.training import augmented_batches, train_stage


@dataclass
class Prepared:
    """Data and networks of a run, loaded or trained.

    Attributes:
        data: The data set.
        student: Trained, dense.
        teacher: Trained, or None where the run needs none.
        curves: Training curves of what was trained here, by stage.
        seconds: Training time of what was trained here, by stage.
    """

    data: Data
    student: nn.Module
    teacher: nn.Module | None
    curves: dict[str, list[dict[str, Any]] | None]
    seconds: dict[str, float | None]


def launch(config: RunConfig, folder: RunFolder, watcher: Watcher) -> dict[str, Any]:
    """Run `config` in `folder`: train or load both networks, prune, recover, save, report.

    A finished run is not repeated; one that was killed goes on from its last epoch.

    Returns:
        The content of ``result.json``.

    Raises:
        SecateurError: one of its kinds.
    """
    finished = folder.found("result.json")
    if finished is not None:
        read_run(finished)  # refused if somebody has edited it
        return finished
    check_names(config.setup, alpha=config.alpha)
    pattern, sparsity = build_pattern_from(config.pattern), config.resolved().sparsity
    pattern.scope_for(build_scope(config.setup))  # refused before any data are read
    if moves_weights(build_criterion(config.setup, alpha=config.alpha, teacher=nn.Identity()), None):
        check_no_regrow(regrow=config.regrow)

    def check(student: nn.Module) -> None:
        setup, stages, regrow = config.setup, config.stages, config.regrow
        _check_cuts(student, setup, [sparsity], pattern=pattern, stages=stages, regrow=regrow)

    ready = prepare(config.setup, folder, watcher, wants_teacher=config.wants_teacher, check=check)
    result = prune(
        ready.student,
        data=ready.data,
        sparsity=sparsity,
        teacher=ready.teacher,
        criterion=build_criterion(config.setup, alpha=config.alpha, teacher=ready.teacher),
        scope=build_scope(config.setup),
        pattern=pattern,
        stages=config.stages,
        regrow=config.regrow,
        calibration_recovery=config.calibration.recovery(config.setup.seed, ready.data.train),
        calibration_teacher=config.calibration.teacher,
        recovery=config.recoveries,
        batchnorm=config.batchnorm,
        include=config.setup.include,
        exclude=config.setup.exclude,
        seed=config.setup.seed,
        execution=config.setup.execution,
        folder=folder,
        watcher=watcher,
    )
    result.curves |= ready.curves
    result.seconds |= ready.seconds
    trained = sum(s for s in ready.seconds.values() if s)
    result.seconds["total"] = (result.seconds["total"] or 0.0) + trained
    content = {"format": "secateur-result", "run_id": run_id(config), **result.to_json()}
    content["models"] = _name_networks(config.setup, ready)
    folder.write("report.html", render_run(content, after_run(config, content, folder.path)))
    folder.finish("result.json", content)
    return content


def launch_sweep(config: SweepConfig, folder: RunFolder, watcher: Watcher) -> dict[str, Any]:
    """Score once, then cut at every alpha and sparsity, each cut tried on the validation split.

    Returns:
        The content of ``sweep.json``.

    Raises:
        InvalidArgument: if alphas are given for a criterion whose alpha is fixed, or the criterion solves for
            the weights that it keeps.
        SecateurError: one of its other kinds.
    """
    finished = folder.found("sweep.json")
    if finished is not None:
        read_sweep(finished)
        return finished
    started = time.perf_counter()
    setup = config.setup
    check_names(setup, alpha=None)
    untaught = build_criterion(setup, alpha=None, teacher=nn.Identity())
    if config.alphas and not _may_be_mixed(untaught):
        raise _alpha_is_fixed(untaught)
    if moves_weights(untaught, None):
        raise InvalidArgument(
            f"a sweep tries masks, and {describe(untaught, CRITERIA)['name']!r} solves for the weights that "
            "stay. Set --criterion-options update_weights=False to try its masks alone, or prune at each "
            "sparsity."
        )

    def check(student: nn.Module) -> None:
        _check_cuts(student, setup, config.sparsities)

    ready = prepare(setup, folder, watcher, wants_teacher=setup.wants_teacher, check=check)
    criterion = build_criterion(setup, alpha=None, teacher=ready.teacher)
    calibration = watcher.track(ready.data.calibration, "score")
    scored = time.perf_counter()
    scores = score(ready.student, calibration, criterion, include=setup.include, exclude=setup.exclude)
    score_seconds = time.perf_counter() - scored
    if config.alphas and not isinstance(scores, GuidedScores):
        raise _alpha_is_fixed(criterion)
    scope = build_scope(setup)
    cells = [(alpha, sparsity) for alpha in config.alphas or (None,) for sparsity in config.sparsities]
    rows: list[dict[str, Any]] = []
    for alpha, sparsity in watcher.track(cells, "sweep"):
        ranking = scores.at(alpha) if isinstance(scores, GuidedScores) and alpha is not None else scores
        masks = allocate(ranking, sparsity=sparsity, scope=scope)
        rows.append({"alpha": getattr(ranking, "alpha", None), "sparsity": sparsity, **_try(ready, masks)})
    content: dict[str, Any] = {
        "format": "secateur-sweep",
        "version": 1,
        "run_id": run_id(config),
        "data": ready.data.describe(),
        "models": _name_networks(setup, ready),
        "criterion": describe(criterion, CRITERIA),
        "scope": describe(scope, SCOPES),
        "split": "validation",
        "dense_accuracy": evaluate(ready.student, ready.data.val).accuracy,
        "rows": rows,
        "seconds": {"score": score_seconds, "total": time.perf_counter() - started},
        "seed": setup.seed,
        "versions": provenance.versions(),
        "hardware": provenance.hardware(_device(setup)),
        "commit": provenance.commit(),
    }
    folder.write("report.html", render_sweep(content, after_sweep(config, content, folder.path)))
    folder.finish("sweep.json", content)
    return content


def _may_be_mixed(criterion: AbstractCriterion) -> bool:
    """Whether the scores may have two terms; of a criterion of the user's own only the scores can tell."""
    if type(criterion) not in CRITERIA.values():
        return True
    return isinstance(criterion, TeacherGuided) and criterion.form == "separate"


def _alpha_is_fixed(criterion: AbstractCriterion) -> InvalidArgument:
    return InvalidArgument(
        f"alpha can be swept for the separate form of teacher-guided only, not for "
        f"{describe(criterion, CRITERIA)['name']!r}. Leave alpha out to sweep sparsities alone."
    )


def _check_cuts(
    student: nn.Module,
    setup: Setup,
    sparsities: Sequence[float | None],
    *,
    pattern: AbstractPattern = Unstructured(),  # noqa: B008 - a frozen value
    stages: int = 1,
    regrow: bool = False,
) -> None:
    """Refuse cuts that cannot be made whatever the scores, by choosing the masks by magnitude.

    Not with a scope of the user's own, which may look at more of the scores than their order.

    Raises:
        SecateurError: as `staged_masks` does.
    """
    scope = build_scope(setup)
    with mask_warnings_ignored():
        fitting_targets(student, pattern, setup.include, setup.exclude)
        for sparsity in sparsities if type(scope) in SCOPES.values() else ():
            staged_masks(
                student,
                None,
                Magnitude(),
                sparsity=sparsity,
                scope=scope,
                pattern=pattern,
                stages=stages,
                regrow=regrow,
                include=setup.include,
                exclude=setup.exclude,
            )


def prepare(
    setup: Setup,
    folder: RunFolder,
    watcher: Watcher,
    *,
    wants_teacher: bool,
    check: Callable[[nn.Module], None] = lambda student: None,
) -> Prepared:
    """Load the data, and load or train teacher and student.

    Args:
        setup: What to load or train.
        folder: Where training in progress and what was trained are kept.
        watcher: Who is told of progress.
        wants_teacher: Whether a teacher is needed.
        check: Called with the student before anything is trained, to refuse what could not be done to it.

    Raises:
        SecateurError: one of its kinds, before any training where that can be known.
    """
    device = _device(setup)
    with watcher.stage("read images") as step:

        def on_images(split: str, done: int, total: int) -> None:
            step()

        data = load_data(setup.dataset, seed=setup.seed, progress=on_images).near(device)
    check_splits(data, ("val", "test", "calibration"))  # before a look at the first batch takes it away
    # Both are built, filled and checked before either is trained, so that a mistake costs no training.
    student = _build(setup, "student", data, device)
    teacher = _build(setup, "teacher", data, device) if wants_teacher and not setup.own_teacher else None
    select_targets(student, include=setup.include, exclude=setup.exclude)
    check(student)
    ready = Prepared(data, student, teacher, {}, {})
    if teacher is not None and setup.teacher_weights is None:
        recipe = replace(setup.pretrain, kd_weight=0.0)
        _train(setup, ready, teacher, "teacher", recipe, folder, watcher)
    if setup.student_weights is None:
        _train(setup, ready, student, "dense", setup.pretrain, folder, watcher)
    if wants_teacher and setup.own_teacher:
        ready.teacher = twin(student)
    return ready


def _build(setup: Setup, role: str, data: Data, device: torch.device) -> nn.Module:
    """The teacher or the student, with its weights if they are given."""
    with torch.random.fork_rng(devices=[]):
        # Two networks of one architecture must not start, and so end, as the same one.
        torch.manual_seed(2 * setup.seed + (role == "teacher"))
        spec = _spec(setup, role, data)
        network = build_model(spec, num_classes=data.n_classes, in_channels=data.in_channels)
        network.to(device).eval()
        check_fits(network, data, role)  # here, as the batch that it takes also makes what lazy layers lack
    weights = setup.teacher_weights if role == "teacher" else setup.student_weights
    if weights is not None:
        load_weights(network, weights)
    return network


def _train(
    setup: Setup,
    ready: Prepared,
    network: nn.Module,
    stage: str,
    recipe: Recovery,
    folder: RunFolder,
    watcher: Watcher,
) -> None:
    """Train the teacher or the dense student, and keep its weights in the run folder."""
    state, curve = train_stage(
        network,
        ready.data,
        recipe,
        stage,
        teacher=ready.teacher,
        seed=setup.seed,
        execution=setup.execution,
        folder=folder,
        watcher=watcher,
    )
    weights = {name: value.detach().clone().contiguous() for name, value in network.state_dict().items()}
    folder.write(f"{stage}.safetensors", save(weights))
    ready.curves[stage] = [asdict(epoch) for epoch in curve]
    ready.seconds[stage] = sum(epoch.seconds for epoch in curve)
    chosen = curve[state.selected_epoch - 1].val_accuracy if curve else None
    if chosen is not None:
        name = "teacher" if stage == "teacher" else "student"
        watcher.say(f"trained {name}: {chosen:.2%} on validation after epoch {state.selected_epoch}")


def _try(ready: Prepared, masks: Masks) -> dict[str, Any]:
    """Validation accuracy of one cut, before and after BatchNorm re-estimation; the student stays dense."""
    trial = twin(ready.student)
    apply_masks(trial, masks)
    cut = evaluate(trial, ready.data.val).accuracy
    n_layers = reestimate_batchnorm(trial, augmented_batches(ready.data))
    batchnorm = evaluate(trial, ready.data.val).accuracy if n_layers else None
    return {"cut": cut, "batchnorm": batchnorm, "mask_digest": masks.digest}


def _spec(setup: Setup, role: str, data: Data) -> str:
    """The network that was asked for, or one that suits the size of the images."""
    given = setup.teacher if role == "teacher" else setup.student
    if given is not None:
        return given
    if len(data.input_shape) != 3:
        raise InvalidArgument(
            f"there is no {role} by default for {data.name!r}, whose inputs are no images: name one, such as "
            f"--{role} pkg.mod:factory."
        )
    if data.input_shape[-1] < 32:
        return "wide-cnn" if role == "teacher" else "small-cnn"
    return "resnet56" if role == "teacher" else "resnet20"


def _name_networks(setup: Setup, ready: Prepared) -> dict[str, Any]:
    """Networks by the names they were asked for by."""
    named: dict[str, Any] = {"student": None, "teacher": None}
    for role, network in (("student", ready.student), ("teacher", ready.teacher)):
        if network is not None:
            named[role] = {**describe_network(network), "name": _spec(setup, role, ready.data)}
    return named


def _device(setup: Setup) -> torch.device:
    """The device that was asked for.

    Raises:
        InvalidArgument: if it is unknown, not there, or nothing can be computed on it.
    """
    if setup.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if setup.device.startswith("cuda") and not torch.cuda.is_available():
        raise InvalidArgument(
            f"device {setup.device!r} asked for, but this torch sees no CUDA device. Use cpu."
        )
    try:
        device = torch.device(setup.device)
        # A device may have a name and not be there, or like meta hold no numbers: this fails on both.
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        raise InvalidArgument(
            f"device must be auto, cpu, cuda or cuda:N, and one that this torch can use, got "
            f"{setup.device!r}. Use cpu."
        ) from error
    return device
