"""Checks of what a criterion leaves behind: nothing in the student, nothing in the teacher."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.errors import SecateurWarning
from secateur.scores import score
from secateur.testing.networks import busy_cnn, images, make_cnn, noisy_teacher
from secateur.testing.snapshot import Snapshot
from secateur.testing.subjects import Burst, Subject, built, require, scored


def leaves_the_student_as_it_was(subject: Subject) -> None:
    """Parameters, buffers, gradients, hooks, modes and random state have the same bits after scoring."""
    student, teacher = busy_cnn(), noisy_teacher()
    before = Snapshot.of(student)
    scored(subject, student, images(), teacher, where="of a network in mixed modes, with gradients")
    _require_unchanged(subject, before, student, "the student")


def leaves_the_teacher_as_it_was(subject: Subject) -> None:
    """The same for the teacher, which may be the student itself."""
    teacher = noisy_teacher()
    before = Snapshot.of(teacher)
    scored(subject, make_cnn(), images(), teacher, where="with a teacher in training mode")
    _require_unchanged(subject, before, teacher, "the teacher")
    student = busy_cnn()
    before = Snapshot.of(student)
    fix = "Run the teacher before the student's forward pass, which still needs its buffers for backward."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecateurWarning)  # such a teacher has nothing to say
        scored(subject, student, images(), student, where="with the student as its own teacher", fix=fix)
    _require_unchanged(subject, before, student, "a student that is its own teacher")


def leaves_nothing_after_an_exception(subject: Subject) -> None:
    """What is thrown in the middle of scoring comes out as it is, and both networks are as they were.

    It is thrown by the loader, by the student's forward or backward pass, by the teacher, or by the task
    loss, at its first, second or third use. What a criterion does not use is not thrown at it.
    """
    for place in ("loader", "forward", "backward", "teacher", "loss"):
        for use in (1, 2, 3):
            _throw(subject, place, use)


def _throw(subject: Subject, place: str, use: int) -> None:
    fuse = _Fuse(use)
    student, teacher = busy_cnn(), noisy_teacher()
    if place in ("forward", "backward"):
        student.insert(4, _Bomb(fuse, place))  # in the middle: some weights have their gradient by then
    if place == "teacher":
        teacher.append(_Bomb(fuse, "forward"))
    batches = _bursting(images(), fuse) if place == "loader" else images()

    def task_loss(outputs: Tensor, labels: Tensor) -> Tensor:
        if place == "loss":
            fuse.burn()
        return F.cross_entropy(outputs, labels)

    criterion = built(subject, teacher)
    before, teacher_before = Snapshot.of(student), Snapshot.of(teacher)
    outcome = "no exception"
    try:
        score(student, batches, criterion, task_loss=task_loss)
    except Exception as error:
        outcome = type(error).__name__
    when = f"after an exception from the {place}, use {use}"
    require(
        outcome == (Burst.__name__ if fuse.burnt else "no exception"),
        subject,
        f"scores, or the exception thrown by the {place} at use {use}",
        f"got {outcome}",
        "Catch only what you know, or use `finally`.",
    )
    _require_unchanged(subject, before, student, "the student", when)
    _require_unchanged(subject, teacher_before, teacher, "the teacher", when)


class _Fuse:
    """Throws `Burst` at the n-th use."""

    def __init__(self, n_uses: int) -> None:
        self._left = n_uses

    @property
    def burnt(self) -> bool:
        return self._left <= 0

    def burn(self) -> None:
        self._left -= 1
        if self.burnt:
            raise Burst


class _Bomb(nn.Module):
    """Burns its fuse in each forward or each backward pass."""

    def __init__(self, fuse: _Fuse, where: str) -> None:
        super().__init__()
        self._fuse = fuse
        self._where = where

    def forward(self, x: Tensor) -> Tensor:
        if self._where == "forward":
            self._fuse.burn()
        elif x.requires_grad:
            x.register_hook(self._on_gradient)
        return x

    def _on_gradient(self, gradient: Tensor) -> None:
        self._fuse.burn()


def _bursting(batches: list[Any], fuse: _Fuse) -> Iterator[Any]:
    for batch in batches:
        torch.rand(3)
        fuse.burn()
        yield batch


_CAUSES = {
    "hooks": "Remove every handle, in a `finally` or with an ExitStack.",
    "random state": "Draw from a torch.Generator of your own.",
    "gradient": "Use torch.autograd.grad, or set the gradients back in a `finally`.",
    "state dict": "Register nothing on the network.",
    "requires_grad": "Set requires_grad back in a `finally`.",
}


def _require_unchanged(
    subject: Subject, before: Snapshot, model: nn.Module, role: str, when: str = ""
) -> None:
    change = next(before.changes(model), None)
    if change is None:
        return
    fix = next((fix for cause, fix in _CAUSES.items() if cause in change), "Work on copies.")
    if "teacher" in role:
        fix = "Run the teacher inside `with secateur.scores.preserving(self.teacher):`."
    require(False, subject, f"{role} to be as before {when}".rstrip(), change, fix)
