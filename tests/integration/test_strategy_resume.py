"""A killed run goes on from its store, and ends with the bits it would have had."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers import indexed_images, make_cnn, same_state
from integration.train_helpers import GUIDED, pruned, student_cnn
from secateur.errors import TrainingError
from secateur.masks import Masks
from secateur.scores import TaskGradient
from secateur.strategies import (
    IterativeMagnitude,
    OneShot,
    Outcome,
    Problem,
    Round,
)
from secateur.teacher_cache import TeacherLogits
from strategy_helpers import FailingStore, Killed, Scripted, play, run_folder, without_seconds


class Sociable(nn.Module):
    """Its answer to a sample depends on the batch: in the open what some kernels do in the last bits."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.inner(x)
        return z + 0.01 * z.mean(dim=0)


SOME, MORE = pruned(student_cnn(), 0.3), pruned(student_cnn(), 0.6)


def with_aside(problem: Problem) -> Round:
    """Masks that follow from a network trained aside."""
    network = copy.deepcopy(problem.student)
    problem.train_aside(network, indexed_images(20), masks=SOME, parts=2)
    return Round(pruned(network, 0.6) & SOME, 2)


SCRIPTS: dict[str, Any] = {
    "restarts": Scripted([Round(SOME, 2, schedule=2), Round(MORE, 3, schedule=3)]),
    "goes on": Scripted([Round(SOME, 1, schedule=5), Round(MORE, 2), Round(MORE, 2)]),
    "ends before its schedule": Scripted([Round(SOME, 2, schedule=9), Round(MORE, 3, schedule=3)]),
    "rewinds": Scripted([Round(SOME, 2, schedule=2), lambda p: Round(MORE, 3, schedule=3, weights=p.start)]),
    "dense, then pruned": Scripted([Round(None, 2, schedule=5), Round(MORE, 3)]),
    "regrows": Scripted([Round(MORE, 2, schedule=5), Round(Masks({n: ~m for n, m in MORE.items()}), 3)]),
    "half epochs": Scripted([Round(SOME, 3, schedule=10), Round(MORE, 7)], least=10),
    "aside": Scripted([Round(SOME, 1, schedule=3), with_aside]),
    "scored": IterativeMagnitude(criterion=TaskGradient(), rounds=3),
    "one cut": OneShot(),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_run_killed_after_any_part_ends_with_the_same_bits(name: str, tmp_path: Path) -> None:
    """With teacher logits of its own or shared, and remembered in whatever order."""
    recipe = replace(GUIDED, epochs=5, teacher_views=2)
    teacher = Sociable(make_cnn(1))

    def run(student: nn.Module, store: Any, guide: Any = teacher) -> Outcome:
        return play(
            SCRIPTS[name],
            student,
            recipe=recipe,
            validation=indexed_images(24),
            teacher=guide,
            seed=4,
            on_last_cut=lambda masks: student[1].running_mean.mul_(0.5),  # type: ignore[index]
            store=store,
        )

    whole, student = student_cnn(), student_cnn()
    expected = run(whole, None)
    lives = 0
    while True:
        lives += 1
        folder = run_folder(tmp_path / str(lives))
        shared = TeacherLogits(teacher, indexed_images(30))
        try:
            run(student_cnn(), FailingStore(folder, lives), shared)
            break
        except Killed:
            torch.manual_seed(lives)  # the global random state plays no part
            student = student_cnn()
            found = run(student, folder)
        assert same_state(student.state_dict(), whole.state_dict())
        assert found.masks == expected.masks
        assert without_seconds(found.curve) == without_seconds(expected.curve)
        assert found.epochs == expected.epochs
        again = run(student_cnn(), folder)  # all of it is there now
        assert without_seconds(again.curve) == without_seconds(expected.curve)
        assert again.train_s == found.train_s
    assert lives > (10 if name == "half epochs" else 5)


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    folder, steps = run_folder(tmp_path / "run"), []
    first, second = student_cnn(), student_cnn()
    play(SCRIPTS["aside"], first, epochs=5, store=folder)
    play(SCRIPTS["aside"], second, epochs=5, store=folder, on_step=lambda: steps.append(None))
    assert same_state(first.state_dict(), second.state_dict())
    assert steps == []


def test_a_store_of_another_run_is_refused(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    play(Scripted([Round(SOME, 4, schedule=4)]), store=folder)
    with pytest.raises(TrainingError, match="stored training 'round-000' was made under other masks"):
        play(Scripted([Round(MORE, 4, schedule=4)]), store=folder)
