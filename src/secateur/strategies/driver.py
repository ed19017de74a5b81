"""The one driver: plays a strategy's rounds, and trains the student in each by the one loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from torch import nn
from torch.nn import functional as F

from secateur.counts import check_fraction
from secateur.errors import MaskError, TrainingError
from secateur.masks import Masks, apply_masks
from secateur.naming import Batches, IndexedLoader, Loss, length_of
from secateur.recovery import Recovery
from secateur.strategies.base import AbstractStrategy, Problem, Round
from secateur.strategies.parts import Parts, divide
from secateur.teacher_cache import TeacherLogits
from secateur.train import Epoch, TrainState, fit


class RoundStore(Protocol):
    """Keeps trainings in progress, so that a killed job goes on; a `RunFolder` does."""

    def load_training(self, stage: str) -> tuple[TrainState, list[Epoch]]:
        """Where stage `stage` stopped; a fresh state if it never began."""
        ...

    def save_training(self, stage: str, state: TrainState, curve: list[Epoch]) -> None:
        """Keep the state of `stage`."""
        ...


@dataclass
class Outcome:
    """What became of a strategy.

    Attributes:
        masks: What stays; None for a dense network.
        epochs: Training in epochs of the student's training split, other networks' included.
        epochs_per_part: What an entry of `curve` stands for; 1 = whole epochs.
        score_s: Seconds of scoring and selection; those before a resume are not known.
        train_s: Seconds of training, other networks' and those before a resume included.
        curve: One entry a part of the student's training, with its round, from 0. Parts are numbered
            from 1 in each learning-rate schedule.
    """

    masks: Masks | None = None
    epochs: float = 0.0
    epochs_per_part: float = 1.0
    score_s: float = 0.0
    train_s: float = 0.0
    curve: list[tuple[int, Epoch]] = field(default_factory=list[tuple[int, Epoch]])


def carry_out(
    strategy: AbstractStrategy,
    student: nn.Module,
    *,
    sparsity: float,
    recipe: Recovery,
    train: Batches,
    calibration: Batches,
    validation: Batches | None = None,
    teacher: nn.Module | TeacherLogits | None = None,
    include: tuple[str, ...] = ("*",),
    exclude: tuple[str, ...] = (),
    task_loss: Loss = F.cross_entropy,
    seed: int = 0,
    on_last_cut: Callable[[Masks | None], None] = lambda masks: None,
    on_step: Callable[[], None] = lambda: None,
    store: RoundStore | None = None,
) -> Outcome:
    """Prune and train `student` in place by `strategy`, on a budget of ``recipe.epochs`` epochs.

    The budget covers everything that is trained. It is divided into parts of equally many batches, whole
    epochs unless the strategy needs more; what does not fill a last part is not used.

    Args:
        strategy: Yields the rounds.
        student: A network, on its device.
        sparsity: Fraction of the prunable weights to remove, in [0, 1).
        recipe: How every round is trained; its epochs are the whole budget.
        train: Training batches; an `IndexedLoader` for a strategy that trains before its last cut.
        calibration: Batches for scoring.
        validation: For choosing among the parts after the last cut.
        teacher: Needed if ``recipe.kd_weight > 0``.
        include: Shell patterns of weights to prune.
        exclude: Shell patterns of weights to leave dense.
        task_loss: ``f(outputs, labels)``, averaged over the batch.
        seed: Of dropout, and of what the strategy draws.
        on_last_cut: Called with the final masks when they have been applied, before they are trained.
        on_step: Called after each training batch.
        store: Where to keep trainings in progress; what it holds already is not trained again, and the
            student ends with the same bits as if it had never been stopped.

    Returns:
        The `Outcome`.

    Raises:
        InvalidArgument: if `sparsity` is out of range.
        TrainingError: if the budget or the data are not enough for the strategy, if it does not keep to
            its budget, or if the store holds trainings under other masks.
        SecateurError: one of its kinds, from scoring and training.
    """
    check_fraction("sparsity", sparsity, below_one=True)
    if strategy.in_rounds:
        _check_rounds_possible(strategy, recipe, train)
    n_batches = length_of(train) or 0  # fit refuses a loader without a length
    n_parts, length = divide(n_batches, recipe.epochs, least=strategy.least_parts(sparsity))
    if isinstance(train, IndexedLoader) and recipe.teacher_views and isinstance(teacher, nn.Module):
        teacher = TeacherLogits(teacher, train)
    job = _Job(student, train, recipe, n_parts, length, validation, teacher, task_loss, seed, on_step, store)
    problem = Problem(
        student=student,
        start={name: value.detach().clone() for name, value in student.state_dict().items()},
        sparsity=sparsity,
        parts=n_parts,
        calibration=calibration,
        train=train,
        train_aside=job.train_aside,
        include=include,
        exclude=exclude,
        task_loss=task_loss,
        seed=seed,
    )
    outcome = job.play(strategy, problem, on_last_cut)
    outcome.epochs_per_part = length / n_batches if n_batches else 1.0
    outcome.epochs = n_parts * outcome.epochs_per_part
    return outcome


def _check_rounds_possible(strategy: AbstractStrategy, recipe: Recovery, train: Batches) -> None:
    name = type(strategy).__name__
    if recipe.epochs == 0:
        raise TrainingError(
            f"{name} prunes while it trains, but there are 0 epochs to train. Give it epochs, or cut with "
            "OneShot, in stages if you like."
        )
    if not isinstance(train, IndexedLoader):
        raise TrainingError(
            f"{name} trains in rounds, for which the training batches must come from an IndexedLoader, "
            f"such as an ImageLoader; got {type(train).__name__}."
        )


@dataclass
class _Job:
    """One playing of a strategy: what its rounds share.

    Attributes:
        state: Of the learning-rate schedule that is going on.
        schedule: Its length in parts.
        spent: Parts of the budget that are used up.
        train_s: Seconds of training.
        aside_s: Seconds that this process spent in `train_aside`.
    """

    student: nn.Module
    train: Batches
    recipe: Recovery
    n_parts: int
    length: int
    validation: Batches | None
    teacher: nn.Module | TeacherLogits | None
    task_loss: Loss
    seed: int
    on_step: Callable[[], None]
    store: RoundStore | None
    state: TrainState = field(default_factory=TrainState)
    schedule: int = 0
    spent: int = 0
    n_aside: int = 0
    train_s: float = 0.0
    aside_s: float = 0.0

    def play(
        self, strategy: AbstractStrategy, problem: Problem, on_last_cut: Callable[[Masks | None], None]
    ) -> Outcome:
        """All rounds in order."""
        out = Outcome()
        number, finished = 0, False
        asked = time.perf_counter()
        for number, round_ in enumerate(strategy.rounds_for(problem)):
            out.score_s += time.perf_counter() - asked
            if finished:
                raise TrainingError(
                    f"{strategy} goes on although its budget of {self.n_parts} parts is spent."
                )
            self._spend(round_.parts, f"round {number}")
            finished = self.spent == self.n_parts
            if round_.weights is not None:
                self.student.load_state_dict(round_.weights)
            if round_.masks is not None:
                apply_masks(self.student, round_.masks)
            if finished:
                on_last_cut(round_.masks)
            epochs = self._train_round(number, round_, last=finished)
            out.masks = round_.masks
            out.curve += [(number, epoch) for epoch in epochs]
            asked = time.perf_counter()
        if not finished:
            raise TrainingError(f"{strategy} used {self.spent} of the {self.n_parts} parts of its budget.")
        out.score_s -= self.aside_s
        out.train_s = self.train_s
        return out

    def _spend(self, parts: int, what: str) -> None:
        if parts < min(self.n_parts, 1) or self.spent + parts > self.n_parts:
            raise TrainingError(
                f"{what} asks for {parts} parts of training, but must have at least 1 and at most the "
                f"{self.n_parts - self.spent} that are left of {self.n_parts}."
            )
        self.spent += parts

    def _train_round(self, number: int, round_: Round, *, last: bool) -> list[Epoch]:
        if round_.parts == 0:
            return []
        if round_.schedule is not None:
            self.state, self.schedule = TrainState(), round_.schedule
        end = self.state.epochs_done + round_.parts
        if end > self.schedule or (last and end < self.schedule):
            raise TrainingError(
                f"round {number} trains to part {end} of a learning-rate schedule of {self.schedule} parts; "
                "rounds must stay within it, and the last must end it."
            )
        # The network has been cut since the state was kept.
        weights = {name: value.detach().clone() for name, value in self.student.state_dict().items()}
        fresh = replace(self.state, model=weights)
        train = self.train
        if isinstance(train, IndexedLoader):
            train = Parts(train, self.length, first=self.spent - end, views=self.recipe.teacher_views)
        self.state, curve = self._fit(
            f"round-{number:03d}",
            self.student,
            train,
            replace(self.recipe, epochs=self.schedule),
            fresh,
            end,
            masks=round_.masks,
            teacher=self.teacher,
            validation=self.validation if last else None,
        )
        return curve

    def train_aside(
        self, network: nn.Module, train: IndexedLoader, *, masks: Masks | None, parts: int
    ) -> None:
        """See `TrainAside`."""
        started = time.perf_counter()
        first = self.spent
        self._spend(parts, "training aside")
        self.n_aside += 1
        recipe = replace(self.recipe, epochs=parts, kd_weight=0.0)
        batches = Parts(train, self.length, first)
        self._fit(f"aside-{self.n_aside:03d}", network, batches, recipe, TrainState(), parts, masks=masks)
        self.aside_s += time.perf_counter() - started

    def _fit(
        self,
        stage: str,
        network: nn.Module,
        train: Batches,
        recipe: Recovery,
        state: TrainState,
        end: int,
        *,
        masks: Masks | None,
        teacher: nn.Module | TeacherLogits | None = None,
        validation: Batches | None = None,
    ) -> tuple[TrainState, list[Epoch]]:
        """Train until `end` parts of the recipe's schedule are done, from where the store stopped."""
        curve: list[Epoch] = []
        if self.store is not None:
            kept, curve = self.store.load_training(stage)
            if kept.epochs_done:
                state = kept
                _load(network, kept, stage, masks)
        if isinstance(train, Parts):
            recipe = replace(recipe, teacher_views=0)  # the parts see to it that views come back
        stays_open = end < recipe.epochs  # the schedule goes on in the next round
        if not (stays_open and state.epochs_done == end):
            epochs = fit(
                network,
                train,
                recipe,
                masks=masks,
                teacher=teacher,
                validation=validation,
                task_loss=self.task_loss,
                state=state,
                seed=self.seed,
                on_step=self.on_step,
            )
            for epoch in epochs:
                curve.append(epoch)
                if self.store is not None:
                    self.store.save_training(stage, state, curve)
                if stays_open and state.epochs_done == end:
                    epochs.close()
                    break
        self.train_s += sum(epoch.seconds for epoch in curve)
        return state, curve


def _load(network: nn.Module, kept: TrainState, stage: str, masks: Masks | None) -> None:
    """Put `network` where a stored training stopped, which must be one under the same masks."""
    network.load_state_dict(kept.model)
    if masks is None:
        return
    try:
        masks.check(network)
    except MaskError as error:
        raise TrainingError(
            f"the stored training {stage!r} was made under other masks than are made now ({error}). "
            "The run was another one, or its scores are not the same to the last bit on this machine: "
            "delete its checkpoint and train it anew."
        ) from error
