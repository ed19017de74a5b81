"""One cell of a suite: prune one student by one method, train it, and write down everything."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any

from torch import nn

from secateur import provenance
from secateur.allocate import SCOPES
from secateur.arena.cells import Cell
from secateur.arena.networks import Networks, training_images
from secateur.arena.suite import Method, Suite, recovery_of
from secateur.building import build, build_criterion_from, build_scope_from, class_of, wants_teacher
from secateur.cutting import moves_weights
from secateur.data import Data
from secateur.errors import InvalidArgument, SecateurWarning
from secateur.evaluate import evaluate, reestimate_batchnorm
from secateur.masks import Masks
from secateur.naming import Batches, Named
from secateur.recovery import Recovery
from secateur.result import describe, sparsities
from secateur.runs import RunFolder
from secateur.scores import CRITERIA, AbstractCriterion, Inverted, ScoreInputs, Shuffled
from secateur.strategies import STRATEGIES, AbstractStrategy, OneShot, Outcome, carry_out
from secateur.training import augmented_batches


@dataclass
class ScoreOnce(AbstractCriterion):
    """A criterion that looks once at a network and data that stay the same from cell to cell.

    Attributes:
        criterion: The criterion.
        seconds: What the one look took.
    """

    criterion: AbstractCriterion
    seconds: float = 0.0
    _scores: Named | None = field(default=None, repr=False)

    def __call__(self, inputs: ScoreInputs) -> Named:
        """The scores of the first call."""
        if self._scores is None:
            started = time.perf_counter()
            self._scores = self.criterion(inputs)
            self.seconds = time.perf_counter() - started
        return self._scores


@dataclass
class Bench:
    """Runs cells of one suite and seed, one after the other.

    Attributes:
        suite: The suite.
        networks: Data and networks for the seed.
    """

    suite: Suite
    networks: Networks
    _scored: tuple[str, AbstractStrategy] | None = None

    def run(self, cell: Cell, folder: RunFolder) -> tuple[dict[str, Any], Masks | None]:
        """Run `cell`, resuming trainings that `folder` keeps.

        Returns:
            The content of its result file, and the masks; None for a dense network.

        Raises:
            SecateurError: one of its kinds.
        """
        started, cpu_started = time.perf_counter(), time.process_time()
        method = self.suite.methods[cell.method]
        recipe = recovery_of(self.suite, method)
        strategy = self._strategy(cell, method)
        scored_before = _score_seconds(strategy)
        student = self.networks.student(method, cell.sparsity)
        accuracy: dict[str, float | None] = {**self.networks.accuracy, "cut": None, "batchnorm": None}

        def on_last_cut(masks: Masks | None) -> None:
            accuracy["cut"] = self._test(student)
            if reestimate_batchnorm(student, augmented_batches(self.networks.data)):
                accuracy["batchnorm"] = self._test(student)

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", SecateurWarning)
            outcome = self._carry_out(strategy, student, cell, recipe, on_last_cut, folder)
        trained = outcome.epochs > 0
        accuracy["recovered"] = self._test(student) if trained else None
        accuracy["val"] = evaluate(student, self.networks.data.val).accuracy if trained else None
        score_s, here_s = outcome.score_s + scored_before, time.perf_counter() - started + scored_before
        cost = {
            "score_s": score_s,
            "train_s": outcome.train_s,
            # A cell that was taken up again trained for longer than this process has run.
            "total_s": max(here_s, score_s + outcome.train_s),
            # Of this process since it took the cell up; whatever else the machine does does not lengthen it.
            "cpu_s": time.process_time() - cpu_started,
            "epochs": outcome.epochs,
        }
        masks = outcome.masks
        content: dict[str, Any] = {
            "format": "secateur-cell",
            "version": 1,
            "id": cell.id,
            "suite": self.suite.name,
            "method": cell.method,
            "about": self._about(method, strategy, recipe),
            "seed": cell.seed,
            "sparsity": _achieved(student, masks, cell.sparsity),
            "n_prune": 0 if masks is None else masks.n_prune,
            "n_parameters": sum(p.numel() for p in student.parameters()),
            "accuracy": accuracy,
            "layers": _layers(masks),
            "mask_digest": None if masks is None else masks.digest,
            "cost": cost,
            "curve": [{"round": number, **asdict(epoch)} for number, epoch in outcome.curve],
            "warnings": [str(w.message) for w in caught],
            "data": self.networks.data.describe(),
            "models": self.networks.about(),
            "versions": provenance.versions(),
            "hardware": provenance.hardware(self.networks.device),
            "commit": provenance.commit(),
        }
        return content, masks

    def _carry_out(
        self,
        strategy: AbstractStrategy,
        student: nn.Module,
        cell: Cell,
        recipe: Recovery | None,
        on_last_cut: Callable[[Masks | None], None],
        folder: RunFolder,
    ) -> Outcome:
        data = self.networks.data
        budget = recipe or Recovery(epochs=0, kd_weight=0.0)
        name = f"{cell.method} {cell.sparsity:g} seed {cell.seed}"
        with self.networks.watcher.stage(name) as step:
            return carry_out(
                strategy,
                student,
                sparsity=cell.sparsity,
                recipe=budget,
                train=data.train,
                calibration=calibration_of(data, self.suite.methods[cell.method]),
                validation=data.val,
                teacher=self.networks.teacher_logits(budget) if budget.kd_weight else None,
                include=self.suite.include,
                exclude=self.suite.exclude,
                seed=cell.seed,
                on_last_cut=on_last_cut,
                on_step=step,
                store=folder,
            )

    def _test(self, student: nn.Module) -> float:
        return evaluate(student, self.networks.data.test).accuracy

    def _strategy(self, cell: Cell, method: Method) -> AbstractStrategy:
        """The method's strategy; one that scores the same network at each sparsity is used again."""
        if self._scored is not None and self._scored[0] == cell.method:
            return self._scored[1]
        strategy = build_method(method, self.networks.score_teacher(method.teacher), cell.seed)
        if (
            isinstance(strategy, OneShot)
            and strategy.stages == 1
            and not moves_weights(strategy.criterion, strategy.recovery)
        ):
            strategy = replace(strategy, criterion=ScoreOnce(strategy.criterion))
            self._scored = (cell.method, strategy)
        return strategy

    def _about(self, method: Method, strategy: AbstractStrategy, recipe: Recovery | None) -> dict[str, Any]:
        criterion = getattr(strategy, "criterion", None)
        criterion = criterion.criterion if isinstance(criterion, ScoreOnce) else criterion
        scope = getattr(strategy, "scope", None)
        apart = ("criterion", "scope")
        return {
            "strategy": {k: v for k, v in describe(strategy, STRATEGIES).items() if k not in apart},
            "criterion": None if criterion is None else describe(criterion, CRITERIA),
            "scope": None if scope is None else describe(scope, SCOPES),
            "control": method.control,
            "teacher": method.teacher,
            "start": method.start,
            "recovery": None if recipe is None else asdict(recipe),
        }


def build_method(method: Method, teacher: nn.Module, seed: int) -> AbstractStrategy:
    """The strategy that a method describes, with its criterion, scope and control.

    Raises:
        InvalidArgument: if a name is unknown or an option does not apply.
    """
    _check_applies(method)
    options: dict[str, Any] = dict(method.strategy_options)
    if method.criterion is not None:
        criterion = build_criterion_from(
            method.criterion, method.criterion_options, teacher=teacher, seed=seed
        )
        if method.control == "shuffled":
            criterion = Shuffled(criterion, seed=seed)
        elif method.control == "inverted":
            criterion = Inverted(criterion)
        options["criterion"] = criterion
    if method.scope is not None:
        options["scope"] = build_scope_from(method.scope, method.scope_options)
    kind = class_of("strategy", method.strategy, STRATEGIES, AbstractStrategy)
    return build("strategy", method.strategy, kind, options, {"seed": seed})


def _check_applies(method: Method) -> None:
    """Refuse what a method says of a criterion, teacher or scope that it does not have."""
    usual = Method()
    scored = method.criterion is not None
    taught = method.criterion is not None and wants_teacher(method.criterion)
    for key, what, is_there in (
        ("control", "criterion", scored),
        ("criterion_options", "criterion", scored),
        ("teacher", "criterion that takes a teacher" if scored else "criterion", taught),
        ("scope_options", "scope", method.scope is not None),
    ):
        if not is_there and getattr(method, key) != getattr(usual, key):
            raise InvalidArgument(
                f"{key}: {getattr(method, key)} does not apply to a method without a {what}. "
                f"Name a {what}, or drop {key}."
            )


def calibration_of(data: Data, method: Method) -> Batches:
    """What a method scores by.

    Raises:
        DataError: if it wants the training images, and they cannot be had without augmentation.
    """
    batches = data.calibration
    if method.calibrate_on == "train":
        batches = replace(training_images(data, "calibrate_on: train"), augmentation=None, shuffle=False)
    return (
        batches if method.calibration_batches is None else list(islice(batches, method.calibration_batches))
    )


def _score_seconds(strategy: AbstractStrategy) -> float:
    """What scoring cost in an earlier cell, where this one need not pay again."""
    criterion = getattr(strategy, "criterion", None)
    return criterion.seconds if isinstance(criterion, ScoreOnce) else 0.0


def _achieved(student: nn.Module, masks: Masks | None, asked: float) -> dict[str, float]:
    if masks is None:
        return {"asked": asked, "prunable": 0.0, "all": 0.0}
    return sparsities(student, masks, asked)


def _layers(masks: Masks | None) -> list[dict[str, Any]]:
    if masks is None:
        return []
    return [
        {"name": name, "n_weights": mask.numel(), "density": masks.density(name)}
        for name, mask in masks.items()
    ]
