"""The whole path: score, cut, re-estimate BatchNorm, recover, save."""

from __future__ import annotations

import copy
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from secateur import provenance
from secateur.allocate import SCOPES, AbstractPattern, AbstractScope, Groups, Unstructured
from secateur.calibration import CalibrationRecovery
from secateur.checkpoint import inspect_checkpoint, save_sparse
from secateur.checkpoint.saving import storable_state
from secateur.checks import (
    check_evaluable,
    check_fits,
    check_kinds,
    check_splits,
    check_teachers,
    recipes_of,
    resolve_batchnorm,
)
from secateur.counts import check_whole
from secateur.cutting import check_no_regrow, cut, moves_weights
from secateur.data import Data, DataOptions, load_data
from secateur.diagnostics import describe_scores, mask_overlap, split_half_overlap
from secateur.errors import InvalidArgument, SecateurWarning
from secateur.evaluate import evaluate, reestimate_batchnorm
from secateur.masks import Masks, apply_masks
from secateur.modules import device_of, twin
from secateur.naming import count_batches
from secateur.progress import Watcher
from secateur.recovery import Recovery
from secateur.result import Result, describe, describe_network, sparsities
from secateur.runs import RunFolder
from secateur.scores import CRITERIA, AbstractCriterion, TeacherGuided
from secateur.stages import Stage, StageLog, check_calibration, check_stages, fitting_targets, staged_masks
from secateur.statistics import random_jaccard
from secateur.steps import Execution
from secateur.targets import unwrap
from secateur.train import check_trainable
from secateur.training import augmented_batches, recovery_name, train_stage


def prune(
    student: nn.Module,
    *,
    data: Data | str,
    sparsity: float | None = None,
    teacher: nn.Module | None = None,
    criterion: AbstractCriterion | None = None,
    scope: AbstractScope | None = None,
    pattern: AbstractPattern = Unstructured(),  # noqa: B008 - a frozen value
    stages: int = 1,
    regrow: bool = False,
    calibration_recovery: CalibrationRecovery | None = None,
    calibration_teacher: Literal["student", "teacher"] = "student",
    recovery: Recovery | Sequence[Recovery] | None = None,
    batchnorm: Literal["auto", "augmented", "plain", "off"] = "auto",
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
        sparsity: Fraction of the prunable weights to remove, in [0, 1); `NM` sets it.
        teacher: Network over the same classes, needed by `TeacherGuided` and by recovery with KD.
        criterion: What to score by; `TeacherGuided(teacher)` by default.
        scope: Where weights compete; `Global()` by default.
        pattern: Where zeros may stand, see `secateur.allocate`.
        stages: How many times to score and cut, see `secateur.staged_masks`; 1 is one cut.
        regrow: Let a later stage take back what an earlier one removed.
        calibration_recovery: Distillation on the calibration inputs after each stage, which needs neither
            labels nor training batches; None for none. The weights that it leaves are those of the cut.
        calibration_teacher: Who teaches in it: a copy of the dense student, or `teacher`.
        recovery: Trainings after the cut, each from the same cut; `student` ends with the last one.
            None stops after the cut.
        batchnorm: Data for BatchNorm re-estimation: as many batches of augmented training inputs as
            there are calibration batches, the plain calibration inputs, or off. auto is augmented, plain
            without training inputs, and off where the cut moves weights and leaves statistics of its own.
        include: Shell patterns of weights to prune.
        exclude: Shell patterns of weights to leave dense.
        seed: ≥ 0, of dropout and the like in recovery, and of the data splits if `data` is a name.
        execution: How training steps are run, see `secateur.steps.Execution`.
        folder: Where to save the student and training in progress; None saves nothing.
        watcher: Who is told of progress; by default nobody.

    Returns:
        A `Result`.

    Raises:
        SecateurError: one of its kinds; arguments are checked before any work.
    """
    check_kinds(
        student,
        data,
        pattern,
        teacher=teacher,
        criterion=criterion,
        calibration_recovery=calibration_recovery,
        folder=folder,
        watcher=watcher,
    )
    check_whole("seed", seed, least=0)
    recipes = recipes_of(recovery)
    sparsity, scope = pattern.sparsity_for(sparsity), pattern.scope_for(scope)
    check_teachers(student, teacher, recipes, calibration_teacher)
    check_stages(stages, regrow=regrow)
    criterion = criterion or _default_criterion(teacher)
    moved = moves_weights(criterion, calibration_recovery)
    resolved = resolve_batchnorm(batchnorm, data, moved=moved)
    if moved:
        check_no_regrow(regrow=regrow)
    loaded = load_data(DataOptions(data=data), seed=seed) if isinstance(data, str) else data
    loaded = loaded.near(device_of(student))
    evaluated: tuple[Literal["val", "test"], ...] = ("val", "test") if recipes else ("test",)
    check_splits(loaded, evaluated)
    check_calibration(loaded.calibration, stages + 1)
    for role, network in (("student", student), ("teacher", teacher)):
        if network is not None:
            check_fits(network, loaded, role)
    for recipe in recipes:
        check_trainable(student, loaded.train, recipe, teacher, execution=execution)
    storable_state(unwrap(student))  # what cannot be saved is found out now, not after the training
    check_evaluable(student, loaded, evaluated)
    watcher = watcher or Watcher()
    job = _Job(
        student,
        teacher,
        loaded,
        criterion,
        scope,
        pattern,
        sparsity,
        stages,
        regrow,
        calibration_recovery,
        calibration_teacher,
        include,
        exclude,
        seed,
        execution,
        watcher,
    )
    return job.run(recipes, batchnorm=resolved, folder=folder)


@dataclass
class _Job:
    """One run of `prune`: what its steps share."""

    student: nn.Module
    teacher: nn.Module | None
    data: Data
    criterion: AbstractCriterion
    scope: AbstractScope
    pattern: AbstractPattern
    sparsity: float
    stages: int
    regrow: bool
    calibration_recovery: CalibrationRecovery | None
    calibration_teacher: Literal["student", "teacher"]
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
            _, self.exclude = fitting_targets(self.student, self.pattern, self.include, self.exclude)
            masks, found, moved = self._choose()
        caught = list({str(w.message): w for w in caught}.values())  # said again by each step of the way
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
            # Steps and solving end with statistics of their own; the one cut has none but re-estimated ones.
            fair = batchnorm if moved is None else resolve_batchnorm("auto", self.data, moved=False)
            result.stages["one_cut"] = self._try_one_cut(found.one_cut, masks, fair)
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
        if moves_weights(self.criterion, self.calibration_recovery):
            return self._cut_a_copy(found)
        with self.watcher.stage("score", self.stages * count_batches(calibration)) as step:
            masks = staged_masks(
                self.student,
                calibration,
                self.criterion,
                on_batch=step,
                on_stage=found.add,
                **self._cut_options(),
            )
        return masks, found, None

    def _cut_options(self) -> dict[str, Any]:
        return {
            "sparsity": self.sparsity,
            "scope": self.scope,
            "stages": self.stages,
            "regrow": self.regrow,
            "include": self.include,
            "exclude": self.exclude,
        }

    def _cut_a_copy(self, found: StageLog) -> tuple[Masks, StageLog, dict[str, Any]]:
        """A cut that moves the kept weights; the student itself stays dense for what it is compared with."""
        trial, teacher, recipe = twin(self.student), None, self.calibration_recovery
        if recipe is not None:
            teacher = self.teacher if self.calibration_teacher == "teacher" else twin(self.student)
        n_steps = 0 if recipe is None else recipe.total_steps(self.stages)
        with self.watcher.stage("cut", self.stages + n_steps) as step:

            def on_stage(stage: Stage) -> None:
                found.add(stage)
                step()
                place = f"stage {len(found.rows)} of {self.stages}, {stage.sparsity:.2%} removed"
                self.watcher.say(f"  {place}: {stage.about_loss()}")

            masks = cut(
                trial,
                self.data.calibration,
                self.criterion,
                recovery=recipe,
                teacher=teacher,
                on_stage=on_stage,
                on_step=step,
                **self._cut_options(),
            )
        return masks, found, trial.state_dict()

    def _try_one_cut(self, one_cut: Masks, masks: Masks, batchnorm: str) -> dict[str, Any]:
        """What the stages are compared with: the same student cut by the scores of the first one alone."""
        trial = twin(self.student)
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
            "scope": describe(self.scope, {**SCOPES, "n:m": Groups}),
            "calibration_recovery": self._about_calibration(),
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

    def _about_calibration(self) -> dict[str, Any] | None:
        if self.calibration_recovery is None:
            return None
        options = {k: v for k, v in describe(self.calibration_recovery, {}).items() if k != "name"}
        return {**options, "teacher": self.calibration_teacher}

    def _test(self, what: str, network: nn.Module | None = None) -> float:
        batches = self.watcher.track(self.data.test, f"test: {what}")
        accuracy = evaluate(self.student if network is None else network, batches).accuracy
        self.watcher.say(f"  {what:<24} {accuracy:7.2%}")
        return accuracy

    def _split_half(self, masks: Masks) -> dict[str, Any] | None:
        n_batches = count_batches(self.data.calibration)
        if n_batches < 2 or moves_weights(self.criterion, self.calibration_recovery):
            return None
        with self.watcher.stage("split-half stability", self.stages * n_batches) as step:
            overlap = split_half_overlap(
                self.student, self.data.calibration, self.criterion, on_batch=step, **self._cut_options()
            )
        density = 1 - masks.sparsity
        n_samples = self.data.describe()["n_calibration"]
        return {
            "mask_overlap": overlap,
            "expected_random": random_jaccard(density, density),
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
            if self.calibration_recovery is not None:
                recipe["calibration_recovery"] = result.about["calibration_recovery"]
            if self.stages > 1:
                recipe["stages"] = {"n": self.stages, "regrow": self.regrow}
            save_sparse(self.student, path, masks=masks, sparsity_asked=self.sparsity, recipe=recipe)
            found = inspect_checkpoint(path)
            result.size_bytes = {"dense": found.dense_size_bytes, "sparse": found.size_bytes}


def _default_criterion(teacher: nn.Module | None) -> AbstractCriterion:
    if teacher is None:
        raise InvalidArgument(
            "prune needs a teacher, or a criterion that works without, such as Magnitude()."
        )
    return TeacherGuided(teacher)
