"""What a strategy is: a frozen value that turns a training budget into rounds of cut and train."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import nn
from torch.nn import functional as F

from secateur.masks import Masks
from secateur.naming import Batches, IndexedLoader, Loss, Named


class TrainAside(Protocol):
    """Trains another network than the student at the cost of the budget, see `Problem.train_aside`."""

    def __call__(self, network: nn.Module, train: IndexedLoader, *, masks: Masks | None, parts: int) -> None:
        """Train `network` in place on labels alone, by a learning-rate schedule of its own.

        Args:
            network: The network, on the student's device.
            train: Its batches, such as those of some classes, as large as the student's.
            masks: What stays of it.
            parts: How long; a part has as many batches as one of the student's and costs the same.

        Raises:
            TrainingError: if that is more than what is left of the budget.
        """
        ...


@dataclass(frozen=True)
class Problem:
    """What a strategy may use.

    Attributes:
        student: The network to prune. The driver trains it in place between rounds: what a strategy
            reads here is its present state. A strategy must not change it.
        start: State dict of the student as it was given, to rewind to.
        sparsity: Fraction of the prunable weights to remove in the end, in [0, 1).
        parts: Training budget in parts, which all have the same number of batches; 0 = no training.
        calibration: Batches for scoring.
        train: Training batches by whole epochs.
        train_aside: Trains another network, for parts of the same budget.
        include: Shell patterns of weights to prune.
        exclude: Shell patterns of weights to leave dense.
        task_loss: ``f(outputs, labels)``, averaged over the batch.
        seed: For whatever a strategy draws.
    """

    student: nn.Module
    start: Named
    sparsity: float
    parts: int
    calibration: Batches
    train: Batches
    train_aside: TrainAside
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    task_loss: Loss = F.cross_entropy
    seed: int = 0


@dataclass(frozen=True)
class Round:
    """One cut, and the training under it.

    Attributes:
        masks: What stays from here on; None leaves the network dense.
        parts: Training under these masks, ≥ 1 unless there is no budget; the parts of all rounds, and
            what was trained aside, make up the budget.
        schedule: Length in parts of a learning-rate schedule that begins with this round, with fresh
            momentum; None goes on with the schedule and the momentum of the round before.
        weights: State dict to put the student to before the masks are applied (weight rewinding); None
            keeps what the student holds.
    """

    masks: Masks | None
    parts: int
    schedule: int | None = None
    weights: Named | None = None


class AbstractStrategy(abc.ABC):
    """How zeros come about over a training budget.

    Subclasses are frozen dataclasses whose fields are the hyper-parameters.
    """

    in_rounds: ClassVar[bool] = True
    """Whether there is training before the last cut: it then needs a budget above 0, and training batches
    from an `IndexedLoader`."""

    def least_parts(self, sparsity: float) -> int:
        """How many parts the budget must be divided into, at least, so that all rounds fit in."""
        return 1

    @abc.abstractmethod
    def rounds_for(self, problem: Problem) -> Iterator[Round]:
        """The rounds, one after the other; each is trained before the next is asked for.

        A deterministic function of `problem` and of the student's states, so that a killed run can be
        played again from the states that were kept.
        """
