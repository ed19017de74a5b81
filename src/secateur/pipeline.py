"""The whole path: score, cut, re-estimate BatchNorm, recover, save."""

from __future__ import annotations

import copy
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from secateur import provenance
from secateur.allocate import SCOPES, AbstractScope, Global
from secateur.checkpoint import inspect_checkpoint, save_sparse
from secateur.counts import check_fraction
from secateur.cutting import cut, moves_weights
from secateur.data import Data, DataOptions, load_data
from secateur.diagnostics import describe_scores, mask_overlap, split_half_overlap
from secateur.errors import DataError, InvalidArgument, SecateurWarning
from secateur.evaluate import evaluate, reestimate_batchnorm
from secateur.losses import logits_of
from secateur.masks import Masks, apply_masks
from secateur.modules import device_of, modes_kept
from secateur.naming import Batches, count_batches, split_batches
from secateur.progress import Watcher
from secateur.recovery import Recovery
from secateur.result import Result, describe, describe_network, sparsities
from secateur.runs import RunFolder
from secateur.scores import CRITERIA, AbstractCriterion, TeacherGuided
from secateur.stages import StageLog, check_stages, staged_masks
from secateur.steps import Execution
from secateur.train import Epoch, TrainState, fit


def prune(
    student: nn.Module,
    *,
    data: Data | str,
    sparsity: float,
    teacher: nn.Module | None = None,
    criterion: AbstractCriterion | None = None,
    scope: AbstractScope | None = None,
    stages: int = 1,
    regrow: bool = False,
    recovery: Recovery | Sequence[Recovery] | None = None,
    batchnorm: Literal["augmented", "plain", "off"] = "augmented",
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    seed: int = 0,
    execution: Execution = "auto",
    folder: RunFolder | None = None,
    watcher: Watcher | None = None,
) -> Result:
    """The whole path on a trained student, in place: it ends pruned, and recovered if asked.

    Args:
        student: A trained classifier, on the device to work on.
        data: Data, or the name of a data set such as "digits".
        sparsity: Fraction of the prunable weights to remove, in [0, 1).
        teacher: Network over the same classes, needed by `TeacherGuided` and by recovery with KD.
        criterion: What to score by; `TeacherGuided(teacher)` by default.
        scope: Where weights compete; `Global()` by default.
        stages: How many times to score and cut, see `secateur.staged_masks`; 1 is one cut.
        regrow: Let a later stage take back what an earlier one removed.
        recovery: Trainings after the cut, each from the same cut; `student` ends with the last one.
            None stops after the cut.
        batchnorm: Data for BatchNorm re-estimation: as many batches of augmented training inputs as
            there are calibration batches, the plain calibration inputs, or off.
        include: Shell patterns of weights to prune.
        exclude: Shell patterns of weights to leave dense.
        seed: Of dropout and the like in recovery, and of the data splits if `data` is a name.
        execution: How training steps are run, see `secateur.steps.Execution`.
        folder: Where to save the student and training in progress; None saves nothing.
        watcher: Who is told of progress; by default nobody.

    Returns:
        A `Result`.

    Raises:
        SecateurError: one of its kinds; arguments are checked before any work.
    """
    recipes = [recovery] if isinstance(recovery, Recovery) else list(recovery or ())
    recipes = [recipe for recipe in recipes if recipe.epochs > 0]
    _check_arguments(student, teacher, recipes, sparsity, batchnorm)
    check_stages(stages, regrow=regrow)
    criterion = criterion or _default_criterion(teacher)
    loaded = load_data(DataOptions(data=data), seed=seed) if isinstance(data, str) else data
    loaded = loaded.near(device_of(student))
    scope = scope or Global()
    for role, network in (("student", student), ("teacher", teacher)):
        if network is not None:
            check_fits(network, loaded, role)
    watcher = watcher or Watcher()
    job = _Job(
        student,
        teacher,
        loaded,
        criterion,
        scope,
        sparsity,
        stages,
        regrow,
        include,
        exclude,
        seed,
        execution,
        watcher,
    )
    return job.run(recipes, batchnorm=batchnorm, folder=folder)


@dataclass
class _Job:
    """One run of `prune`: what its steps share."""

    student: nn.Module
    teacher: nn.Module | None
    data: Data
    criterion: AbstractCriterion
    scope: AbstractScope
    sparsity: float
    stages: int
    regrow: bool
    include: Sequence[str]
    exclude: Sequence[str]
    seed: int
    execution: Execution
    watcher: Watcher

    def run(self, recipes: Sequence[Recovery], *, batchnorm: str, folder: RunFolder | None) -> Result:
        """All steps in order."""
        started = time.perf_counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", SecateurWarning)
            masks, found, moved = self._choose()
        result = Result(
            masks=masks,
            n_parameters=sum(p.numel() for p in self.student.parameters()),
            sparsity=sparsities(self.student, masks, self.sparsity),
            stages={"n": self.stages, "regrow": self.regrow, "rows": found.rows, "one_cut": None},
            about=self._about(),
            warnings=[str(w.message) for w in caught],
        )
        result.seconds |= found.seconds
        for warning in caught:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        result.accuracy["dense"] = self._test("dense student")
        if self.teacher is not None:
            result.accuracy["teacher"] = self._test("teacher", self.teacher)
        result.diagnostics |= {
            **describe_scores(found.scores, masks, self.scope),
            "split_half": self._split_half(masks),
        }
        if self.stages > 1 and found.one_cut is not None:
            result.stages["one_cut"] = self._try_one_cut(found.one_cut, masks, batchnorm)
        if moved is not None:
            self.student.load_state_dict(moved)
        apply_masks(self.student, masks)
        result.accuracy["cut"] = self._test("after the cut")
        if batchnorm != "off":
            before = time.perf_counter()
            n_layers = self._reestimate(self.student, batchnorm)
            result.seconds["batchnorm"] = time.perf_counter() - before
            result.accuracy["batchnorm"] = self._test("after BatchNorm") if n_layers else None
        self._recover(recipes, masks, result, folder)
        self._measure_size(masks, result, folder)
        result.seconds["total"] = time.perf_counter() - started
        return result

    def _choose(self) -> tuple[Masks, StageLog, dict[str, Any] | None]:
        """The masks, what came up on the way, and the state of a student whose kept weights the cut moved."""
        calibration, found = self.data.calibration, StageLog(self.sparsity, self.scope)
        options: dict[str, Any] = {
            "sparsity": self.sparsity,
            "scope": self.scope,
            "stages": self.stages,
            "regrow": self.regrow,
            "include": self.include,
            "exclude": self.exclude,
            "on_stage": found.add,
        }
        with self.watcher.stage("score", self.stages * count_batches(calibration)) as step:
            if moves_weights(self.criterion, None):
                trial = copy.deepcopy(self.student)
                masks = cut(trial, calibration, self.criterion, **options)
                return masks, found, trial.state_dict()
            masks = staged_masks(self.student, calibration, self.criterion, on_batch=step, **options)
        return masks, found, None

    def _try_one_cut(self, one_cut: Masks, masks: Masks, batchnorm: str) -> dict[str, Any]:
        """What the stages are compared with: the same student cut by the scores of the first one alone."""
        trial = copy.deepcopy(self.student)
        apply_masks(trial, one_cut)
        found: dict[str, Any] = {"mask_overlap": mask_overlap(one_cut, masks)}
        found["cut"] = self._test("one cut instead", trial)
        reestimated = batchnorm != "off" and self._reestimate(trial, batchnorm)
        found["batchnorm"] = self._test("  with BatchNorm", trial) if reestimated else None
        return found

    def _reestimate(self, network: nn.Module, batchnorm: str) -> int:
        batches = self.data.calibration if batchnorm == "plain" else augmented_batches(self.data)
        return reestimate_batchnorm(network, self.watcher.track(batches, "BatchNorm"))

    def _about(self) -> dict[str, Any]:
        device = device_of(self.student)
        return {
            "criterion": describe(self.criterion, CRITERIA),
            "scope": describe(self.scope, SCOPES),
            "data": self.data.describe(),
            "models": {
                "student": describe_network(self.student),
                "teacher": None if self.teacher is None else describe_network(self.teacher),
            },
            "seed": self.seed,
            "versions": provenance.versions(),
            "hardware": provenance.hardware(device),
            "commit": provenance.commit(),
        }

    def _test(self, what: str, network: nn.Module | None = None) -> float:
        batches = self.watcher.track(self.data.test, f"test: {what}")
        accuracy = evaluate(network or self.student, batches).accuracy
        self.watcher.say(f"  {what:<24} {accuracy:7.2%}")
        return accuracy

    def _split_half(self, masks: Masks) -> dict[str, Any] | None:
        n_batches = count_batches(self.data.calibration)
        if n_batches < 2:
            return None
        with self.watcher.stage("split-half stability", self.stages * n_batches) as step:
            overlap = split_half_overlap(
                self.student,
                self.data.calibration,
                self.criterion,
                sparsity=self.sparsity,
                scope=self.scope,
                stages=self.stages,
                regrow=self.regrow,
                include=self.include,
                exclude=self.exclude,
                on_batch=step,
            )
        density = 1 - masks.sparsity
        n_samples = self.data.describe()["n_calibration"]
        return {
            "mask_overlap": overlap,
            "expected_random": density / (2 - density),
            "n_samples_per_half": None if n_samples is None else n_samples // 2,
        }

    def _recover(
        self, recipes: Sequence[Recovery], masks: Masks, result: Result, folder: RunFolder | None
    ) -> None:
        """Train from the same cut by each recipe; the student ends with the last."""
        start = copy.deepcopy(self.student.state_dict())
        for recipe in recipes:
            name = recovery_name(recipe)
            self.student.load_state_dict(start)
            state, curve = train_stage(
                self.student,
                self.data,
                recipe,
                name,
                masks=masks,
                teacher=self.teacher,
                seed=self.seed,
                execution=self.execution,
                folder=folder,
                watcher=self.watcher,
            )
            result.curves[name] = [asdict(epoch) for epoch in curve]
            result.selected_epoch[name] = state.selected_epoch
            trained = sum(epoch.seconds for epoch in curve)  # also the epochs before a resume
            result.seconds["recovery"] = (result.seconds["recovery"] or 0.0) + trained
            what = "recovered with teacher" if recipe.kd_weight > 0 else "recovered on labels"
            result.accuracy[name] = self._test(what)

    def _measure_size(self, masks: Masks, result: Result, folder: RunFolder | None) -> None:
        """Save the student, or only find out how large its file would be."""
        with tempfile.TemporaryDirectory() as scratch:
            path = (folder.path if folder else Path(scratch)) / "student.safetensors"
            recipe = {"criterion": result.about["criterion"], "scope": result.about["scope"]}
            if self.stages > 1:
                recipe["stages"] = {"n": self.stages, "regrow": self.regrow}
            save_sparse(self.student, path, masks=masks, sparsity_asked=self.sparsity, recipe=recipe)
            found = inspect_checkpoint(path)
            result.size_bytes = {"dense": found.dense_size_bytes, "sparse": found.size_bytes}


def train_stage(
    model: nn.Module,
    data: Data,
    recipe: Recovery,
    name: str,
    *,
    masks: Masks | None = None,
    teacher: nn.Module | None = None,
    seed: int,
    execution: Execution = "auto",
    folder: RunFolder | None = None,
    watcher: Watcher,
) -> tuple[TrainState, list[Epoch]]:
    """`fit` with a progress bar, a log line an epoch, and a state on disk to resume from.

    Returns:
        The final state, and one entry an epoch.
    """
    state, curve = folder.load_training(name) if folder else (TrainState(), [])
    n_steps = count_batches(data.train) * (recipe.epochs - state.epochs_done)
    with watcher.stage(f"train: {name}", n_steps) as step:
        epochs = fit(
            model,
            data.train,
            recipe,
            masks=masks,
            teacher=teacher,
            validation=data.val,
            state=state,
            seed=seed,
            execution=execution,
            on_step=step,
        )
        for epoch in epochs:
            curve.append(epoch)
            if folder:
                folder.save_training(name, state, curve)
                folder.log("epoch", stage=name, **asdict(epoch))
    return state, curve


def augmented_batches(data: Data) -> Batches:
    """Augmented training batches for BatchNorm, as many as there are calibration batches."""
    return islice(data.train, count_batches(data.calibration))


def recovery_name(recipe: Recovery) -> str:
    """The key under which a recovery's figures stand."""
    return "recovered_kd" if recipe.kd_weight > 0 else "recovered"


def check_fits(network: nn.Module, data: Data, role: str) -> None:
    """Refuse a network whose logits do not cover the data's classes.

    Raises:
        DataError: naming both numbers of classes.
    """
    inputs, _ = next(split_batches(data.calibration, device_of(network)))
    with modes_kept(network), torch.no_grad():
        logits = logits_of(network.eval()(inputs[:2]))
    if logits.ndim != 2 or logits.shape[1] != data.n_classes:
        raise DataError(
            f"the {role} returns outputs of shape {tuple(logits.shape)} for 2 inputs, "
            f"{data.name!r} has {data.n_classes} classes. They must be (2, {data.n_classes})."
        )


def _check_arguments(
    student: nn.Module,
    teacher: nn.Module | None,
    recipes: Sequence[Recovery],
    sparsity: float,
    batchnorm: str,
) -> None:
    """Refuse what `prune` cannot do, before any work."""
    check_fraction("sparsity", sparsity, below_one=True)
    if batchnorm not in ("augmented", "plain", "off"):
        raise InvalidArgument(f"batchnorm must be augmented, plain or off, got {batchnorm!r}.")
    names = [recovery_name(recipe) for recipe in recipes]
    if len(set(names)) != len(names):
        raise InvalidArgument("recovery takes at most one recipe with a teacher and one without.")
    if teacher is None and "recovered_kd" in names:
        raise InvalidArgument("recovery with kd_weight > 0 needs a teacher; pass one or set kd_weight=0.")
    if teacher is student:
        raise InvalidArgument(
            "the teacher is the very student that is to be pruned; pass copy.deepcopy(student) as teacher."
        )


def _default_criterion(teacher: nn.Module | None) -> AbstractCriterion:
    if teacher is None:
        raise InvalidArgument(
            "prune needs a teacher, or a criterion that works without, such as Magnitude()."
        )
    return TeacherGuided(teacher)
