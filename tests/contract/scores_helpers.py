"""What the contract tests of single criteria share."""

from __future__ import annotations

from secateur.scores import AbstractCriterion
from secateur.testing import criterion_checks

ESSENTIAL = ("scores_every_target", "leaves_the_student_as_it_was", "leaves_the_teacher_as_it_was")


def meets_essentials(criterion: AbstractCriterion) -> None:
    """The checks that each form of a criterion has to pass, where all of them would take too long."""
    checks = dict(criterion_checks())
    for name in ESSENTIAL:
        checks[name](criterion)
