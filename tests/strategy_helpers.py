"""Strategies from a script, and stores that break down, for the tests of what plays strategies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from helpers import Indexed, indexed_images
from integration.train_helpers import PLAIN, student_cnn
from secateur.masks import Masks, apply_masks
from secateur.runs import RunFolder
from secateur.strategies import AbstractStrategy, Outcome, Problem, Round, carry_out
from secateur.strategies.driver import RoundStore
from secateur.train import Epoch, TrainState

SPARSITY = 0.6


@dataclass(frozen=True)
class Scripted(AbstractStrategy):
    """Plays the rounds it is given; an entry may be a function of the problem instead."""

    script: Sequence[Round | Callable[[Problem], Round]]
    least: int = 1

    def least_parts(self, sparsity: float) -> int:
        return self.least

    def rounds_for(self, problem: Problem) -> Iterator[Round]:
        for entry in self.script:
            yield entry if isinstance(entry, Round) else entry(problem)


def play(
    strategy: AbstractStrategy, student: nn.Module | None = None, *, epochs: int = 4, **options: Any
) -> Outcome:
    """`carry_out` on a small network and data, on labels alone unless told otherwise."""
    data = indexed_images(30)
    given: dict[str, Any] = {
        "sparsity": SPARSITY,
        "recipe": replace(PLAIN, epochs=epochs),
        "train": data,
        "calibration": [*data],
        **options,
    }
    return carry_out(strategy, student_cnn() if student is None else student, **given)


def without_seconds(curve: list[tuple[int, Epoch]]) -> list[tuple[int, Epoch]]:
    return [(number, replace(epoch, seconds=0.0)) for number, epoch in curve]


class Killed(Exception):
    """Stands for a job that was killed."""


@dataclass
class FailingStore:
    """A run folder whose process is killed after so many saved states.

    Attributes:
        folder: Where states really go.
        lives: How many states are saved until then.
    """

    folder: RoundStore
    lives: int

    def load_training(self, stage: str) -> tuple[TrainState, list[Epoch]]:
        return self.folder.load_training(stage)

    def save_training(self, stage: str, state: TrainState, curve: list[Epoch]) -> None:
        self.folder.save_training(stage, state, curve)
        self.lives -= 1
        if not self.lives:
            raise Killed


@dataclass
class CountingStore:
    """Keeps nothing, and counts the states it is given."""

    stages: list[str] = field(default_factory=list[str])

    def load_training(self, stage: str) -> tuple[TrainState, list[Epoch]]:
        return TrainState(), []

    def save_training(self, stage: str, state: TrainState, curve: list[Epoch]) -> None:
        self.stages.append(stage)


def run_folder(path: Path) -> RunFolder:
    path.mkdir()
    return RunFolder(path)


@dataclass
class Spy(Indexed):
    """Writes down which batches it was asked for: epoch, view, first and last batch."""

    asked: list[tuple[int, int | None, int, int | None]] = field(default_factory=list[Any])

    def epoch(
        self, number: int, *, view: int | None = None, start: int = 0, stop: int | None = None
    ) -> Iterator[Any]:
        self.asked.append((number, view, start, stop))
        return super().epoch(number, view=view, start=start, stop=stop)


def spying() -> Spy:
    data = indexed_images(30)
    return Spy(data.inputs, data.labels)


def all_kept(student: nn.Module, masks: Masks) -> bool:
    """Whether no weight that stays is zero, as it would be if it had been masked by mistake."""
    return all(bool((student.get_parameter(name)[mask] != 0).all()) for name, mask in masks.items())


def no_training(*args: Any, **options: Any) -> None:
    raise AssertionError("nothing is to be trained aside")


def problem_of(student: nn.Module, sparsity: float, parts: int, **options: Any) -> Problem:
    given: dict[str, Any] = {"calibration": [], "train": [], "train_aside": no_training, **options}
    start = {name: value.clone() for name, value in student.state_dict().items()}
    return Problem(student, start, sparsity, parts, **given)


def played(rounds: Iterator[Round], student: nn.Module) -> list[Round]:
    """The rounds, with their masks applied but without training."""
    found: list[Round] = []
    for round_ in rounds:
        if round_.masks is not None:
            apply_masks(student, round_.masks)
        found.append(round_)
    return found


def thousand() -> nn.Linear:
    """1,000 weights, all different."""
    layer = nn.Linear(50, 20, bias=False)
    with torch.no_grad():
        layer.weight.copy_((torch.randperm(1000) + 1.0).view(20, 50))
    return layer


def smallest_gone(n: int, layer: nn.Linear, start: Tensor) -> bool:
    return torch.equal(layer.weight.detach() == 0, start <= n)
