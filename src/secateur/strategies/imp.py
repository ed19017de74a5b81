"""Iterative pruning: cut, train, cut again; lottery tickets and learning-rate rewinding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from secateur.allocate import AbstractScope, Global
from secateur.counts import check_whole
from secateur.errors import InvalidArgument
from secateur.schedules import geometric_sparsities
from secateur.scores import AbstractCriterion, Magnitude
from secateur.strategies.base import AbstractStrategy, Problem, Round
from secateur.strategies.cutting import cut_further
from secateur.strategies.parts import split_evenly


@dataclass(frozen=True)
class IterativeMagnitude(AbstractStrategy):
    """Iterative magnitude pruning: every round removes the same fraction of what is left, and trains.

    Densities are geometric, ``density^(i/rounds)`` after the i-th cut, and the budget is split evenly. The
    first cut comes before any training, because the student is given trained; for one that is given at
    its initialisation there is `train_first`.

    Attributes:
        criterion: What to score by at each cut; magnitude gives the method its name.
        scope: Where weights compete.
        rounds: Number of cuts, ≥ 1.
        rewind: What is put back after each cut. ``"lr"``: the learning rate, which begins a full schedule
            of its own (https://arxiv.org/abs/2003.02389). ``"weights"``: also the weights that are left
            and everything else in the state dict, to what the student was given with (lottery tickets,
            https://arxiv.org/abs/1803.03635). ``"none"``: nothing; one schedule runs over the whole budget.
        train_first: Train densely before the first cut, as one more round.

    Raises:
        InvalidArgument: if a value is not one of these.
    """

    criterion: AbstractCriterion = field(default_factory=Magnitude)
    scope: AbstractScope = field(default_factory=Global)
    rounds: int = 5
    rewind: Literal["lr", "weights", "none"] = "lr"
    train_first: bool = False

    def __post_init__(self) -> None:
        check_whole("rounds", self.rounds, least=1)
        if self.rewind not in ("lr", "weights", "none"):
            raise InvalidArgument(f"rewind must be lr, weights or none, got {self.rewind!r}.")

    def least_parts(self, sparsity: float) -> int:
        """One a round."""
        return self.rounds + self.train_first

    def rounds_for(self, problem: Problem) -> Iterator[Round]:
        """A cut and a share of the budget each."""
        sparsities = [None] * self.train_first + [*geometric_sparsities(problem.sparsity, self.rounds)]
        masks = None
        for number, parts in enumerate(split_evenly(problem.parts, len(sparsities))):
            asked = sparsities[number]
            if asked is not None:
                masks = cut_further(problem, self.criterion, self.scope, sparsity=asked, gone=masks)
            schedule = parts
            if self.rewind == "none":
                schedule = None if number else problem.parts
            weights = problem.start if self.rewind == "weights" and number else None
            yield Round(masks, parts, schedule, weights)
