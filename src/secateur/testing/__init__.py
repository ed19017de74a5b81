"""The contract of a criterion, as checks that any criterion can be put to, also one outside the package.

::

    from secateur.testing import check_criterion

    check_criterion(MyCriterion)              # or AssertionError: who, what was expected, how to fix it
    check_criterion("pkg.mod:MyCriterion")    # by the name that it has on the command line

and in a test, each check as a test of its own::

    @parametrize_criteria(MyCriterion, MyOther(power=2))
    def test_the_contract(criterion, check):
        check(criterion)

The checks use small networks of their own and take a second or less in all. They ask what every criterion
promises, not whether its scores are any good.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from secateur.factories import needs_extra
from secateur.testing.answers import (
    higher_means_keep,
    is_a_frozen_value,
    scores_a_masked_network,
    scores_a_shared_weight_once,
    scores_every_target,
    scores_nothing_else,
)
from secateur.testing.robustness import (
    asks_for_the_data_it_needs,
    is_deterministic,
    takes_any_container,
    takes_any_memory_layout,
    takes_other_precisions_or_says_so,
    takes_unlabelled_data_or_says_so,
)
from secateur.testing.subjects import Subject, name_of
from secateur.testing.traces import (
    leaves_nothing_after_an_exception,
    leaves_the_student_as_it_was,
    leaves_the_teacher_as_it_was,
)

__all__ = ["Check", "Subject", "check_criterion", "criterion_checks", "parametrize_criteria"]

Check: TypeAlias = Callable[[Subject], None]
"""Takes a criterion, and raises AssertionError if it does not keep one part of the contract."""

_CHECKS: tuple[Check, ...] = (
    is_a_frozen_value,
    scores_every_target,
    scores_nothing_else,
    scores_a_shared_weight_once,
    scores_a_masked_network,
    higher_means_keep,
    leaves_the_student_as_it_was,
    leaves_the_teacher_as_it_was,
    leaves_nothing_after_an_exception,
    is_deterministic,
    takes_any_container,
    takes_any_memory_layout,
    takes_unlabelled_data_or_says_so,
    asks_for_the_data_it_needs,
    takes_other_precisions_or_says_so,
)


def criterion_checks() -> list[tuple[str, Check]]:
    """All checks by name, the basic ones first; what each asks stands in its docstring."""
    return [(check.__name__, check) for check in _CHECKS]


def check_criterion(criterion: Subject) -> None:
    """Put a criterion to all checks.

    Args:
        criterion: A class; a value; a function of a teacher that returns a value; or ``"pkg.mod:Class"``.
            A field ``teacher`` is filled with networks that suit those of the checks.

    Raises:
        AssertionError: from the first check that fails, naming the criterion, what was expected, what was
            found, and how to fix it.
        InvalidArgument: if `criterion` is none of these forms, or names nothing.
    """
    for check in _CHECKS:
        check(criterion)


def parametrize_criteria(*criteria: Subject) -> Any:  # noqa: ANN401 - a decorator of pytest
    """A pytest decorator that runs a test for every criterion and every check.

    The test takes the arguments ``criterion`` and ``check``, and calls ``check(criterion)``.

    Args:
        criteria: Each as for `check_criterion`.

    Raises:
        MissingExtra: if pytest is not installed.
    """
    with needs_extra("dev", "parametrize_criteria"):
        import pytest
    cases = [
        pytest.param(criterion, check, id=f"{name_of(criterion)}-{name}")
        for criterion in criteria
        for name, check in criterion_checks()
    ]
    return pytest.mark.parametrize(("criterion", "check"), cases)
