"""Gradual pruning: many small cuts in the course of one training."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from secateur.allocate import AbstractScope, Global
from secateur.counts import check_fraction, check_whole
from secateur.errors import InvalidArgument
from secateur.schedules import cubic_sparsity
from secateur.scores import AbstractCriterion, Magnitude
from secateur.strategies.base import AbstractStrategy, Problem, Round
from secateur.strategies.cutting import cut_further
from secateur.strategies.parts import place_in


@dataclass(frozen=True)
class Gradual(AbstractStrategy):
    """Gradual magnitude pruning: the sparsity rises along a cubic while one training runs.

    After the k-th of n updates, ``s = s_f + (s_i − s_f)·(1 − k/n)³`` (https://arxiv.org/abs/1710.01878
    eq. 1), with the updates evenly spaced from `begin` to `end`. What is gone stays gone. One
    learning-rate schedule runs over the whole budget.

    Attributes:
        criterion: What to score by at each update.
        scope: Where weights compete.
        updates: Number n of updates, ≥ 1.
        begin: Fraction of the budget at which the ramp begins, in [0, 1).
        end: Fraction of the budget at which the last update comes, above `begin` and below 1.
        initial: Sparsity s_i that is cut to at `begin`, in [0, 1), at most the one asked for; 0 = no cut.

    Raises:
        InvalidArgument: if a number is out of range.
    """

    criterion: AbstractCriterion = field(default_factory=Magnitude)
    scope: AbstractScope = field(default_factory=Global)
    updates: int = 10
    begin: float = 0.0
    end: float = 0.75
    initial: float = 0.0

    def __post_init__(self) -> None:
        check_whole("updates", self.updates, least=1)
        check_fraction("begin", self.begin, below_one=True)
        check_fraction("end", self.end, below_one=True)
        check_fraction("initial", self.initial, below_one=True)
        if self.end <= self.begin:
            raise InvalidArgument(f"end must be above begin={self.begin:g}, got {self.end:g}.")

    def least_parts(self, sparsity: float) -> int:
        """So many that no two updates fall into one part, and one is left after the last."""
        return max(math.ceil(self.updates / (self.end - self.begin)), math.ceil(1 / (1 - self.end)))

    def rounds_for(self, problem: Problem) -> Iterator[Round]:
        """Training up to each update, and from the last one to the end.

        Raises:
            InvalidArgument: if the sparsity asked for is below `initial`.
        """
        if problem.sparsity < self.initial:
            raise InvalidArgument(
                f"initial={self.initial:g} is above the sparsity asked for, {problem.sparsity:g}. Lower it."
            )
        cuts: list[tuple[int, float | None]] = []
        for update in range(0 if self.initial else 1, self.updates + 1):
            progress = update / self.updates
            place = place_in(problem.parts, self.begin + (self.end - self.begin) * progress)
            cuts.append((place, cubic_sparsity(progress, initial=self.initial, final=problem.sparsity)))
        if cuts[0][0] > 0:
            cuts.insert(0, (0, None))
        masks = None
        ends = [place for place, _ in cuts[1:]] + [problem.parts]
        for (place, asked), end in zip(cuts, ends, strict=True):
            if asked is not None:
                masks = cut_further(problem, self.criterion, self.scope, sparsity=asked, gone=masks)
            yield Round(masks, end - place, schedule=None if place else problem.parts)
