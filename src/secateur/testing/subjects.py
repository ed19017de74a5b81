"""What is checked: a criterion in any of the forms in which a user has it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias, cast

from torch import Tensor, nn

from secateur.errors import InvalidArgument, SecateurError
from secateur.factories import load_object
from secateur.naming import Batches, Named
from secateur.scores import AbstractCriterion, score

Make: TypeAlias = Callable[[nn.Module], AbstractCriterion]
"""Builds the criterion, given a teacher over the inputs and classes of the check's networks."""

Subject: TypeAlias = "str | type[AbstractCriterion] | AbstractCriterion | Make"
"""What can be checked.

- A class. It is built with its defaults, and with a teacher if it has a field of that name.
- A value. If it has a field ``teacher``, the networks of the checks take that place.
- A function of a teacher that returns a value, for anything else.
- ``"pkg.mod:Class"``, as after ``--criterion``.
"""


def name_of(subject: Subject) -> str:
    """What the criterion is called in messages and test ids."""
    if isinstance(subject, str):
        return subject
    return getattr(subject, "__name__", type(subject).__name__)


def maker_of(subject: Subject) -> Make:
    """How to build the criterion anew for a given teacher.

    Raises:
        InvalidArgument: if `subject` is none of the forms of `Subject`, or names nothing.
    """
    if isinstance(subject, str):
        found = load_object(subject, kind="criterion")
        return maker_of(cast("Subject", found))
    if isinstance(subject, AbstractCriterion):
        value = subject
        return lambda teacher: _with_teacher(value, teacher)
    if isinstance(subject, type):
        kind = cast("type[Any]", subject)
        return lambda teacher: kind(teacher=teacher) if "teacher" in _fields(kind) else kind()
    if callable(subject):
        return subject
    raise InvalidArgument(
        f"a criterion to check is a class, a value, a function of a teacher, or 'pkg.mod:Class', "
        f"got {subject!r} of type {type(subject).__name__}. Derive it from secateur.AbstractCriterion."
    )


def _with_teacher(criterion: AbstractCriterion, teacher: nn.Module) -> AbstractCriterion:
    """The same value over another teacher, also of a criterion inside it."""
    changes: dict[str, Any] = {}
    for name in _fields(type(criterion)):
        value = getattr(criterion, name)
        if isinstance(value, AbstractCriterion):
            changes[name] = _with_teacher(value, teacher)
        elif name == "teacher":
            changes[name] = teacher
    return dataclasses.replace(cast("Any", criterion), **changes) if changes else criterion


def _fields(kind: type[Any]) -> set[str]:
    return {f.name for f in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()


class Burst(Exception):
    """What the checks throw at a criterion; it has to come out again as it went in."""


def require(condition: bool, subject: Subject, expected: str, found: str, fix: str) -> None:
    """Refuse a criterion that does not keep the contract.

    Args:
        condition: What has to hold.
        subject: The criterion.
        expected: What the contract asks, as a phrase after "expected".
        found: What was there instead.
        fix: What to do, as a sentence.

    Raises:
        AssertionError: if `condition` is false; also under ``python -O``.
    """
    if not condition:
        raise AssertionError(f"{name_of(subject)}: expected {expected}; {found}. {fix}")


def built(subject: Subject, teacher: nn.Module) -> AbstractCriterion:
    """The criterion, built for `teacher`.

    Raises:
        AssertionError: if it cannot be built.
        InvalidArgument: as `maker_of` raises.
    """
    make = maker_of(subject)
    try:
        return make(teacher)
    except Exception as error:
        fix = "Give its other fields defaults, or check a function of the teacher that returns it."
        raise _unexpected(subject, "a criterion that its defaults and a teacher make", error, fix) from error


def scored(
    subject: Subject,
    student: nn.Module,
    batches: Batches | None,
    teacher: nn.Module,
    *,
    where: str,
    fix: str = "Look at the cause in the traceback.",
    criterion: AbstractCriterion | None = None,
    **options: Any,  # noqa: ANN401 - those of `score`
) -> Named:
    """`secateur.score`, in which every error is the criterion's.

    Args:
        subject: The criterion.
        student: What to score.
        batches: Calibration data.
        teacher: For the criterion, if it takes one.
        where: What is special about this call, to follow "scores".
        fix: What to do if it fails, as a sentence.
        criterion: The criterion if it is built already.
        options: Of `secateur.score`.

    Raises:
        AssertionError: if there are no scores.
    """
    criterion = criterion or built(subject, teacher)
    try:
        return score(student, batches, criterion, **options)
    except Exception as error:
        raise _unexpected(subject, f"scores {where}", error, fix) from error


def scored_or_refused(
    subject: Subject,
    student: nn.Module,
    batches: Batches | None,
    teacher: nn.Module,
    *,
    where: str,
    fix: str,
    errors: tuple[type[SecateurError], ...] = (SecateurError,),
    saying: str = "",
) -> Named | None:
    """As `scored`, where a criterion may also refuse, with an error meant for the user.

    Args:
        subject: The criterion.
        student: What to score.
        batches: Calibration data.
        teacher: For the criterion, if it takes one.
        where: What is special about this call, to follow "scores".
        fix: What to do if it fails, as a sentence.
        errors: Kinds of error that refuse.
        saying: A word that the message has to hold.

    Returns:
        The scores, or None if the criterion refused.

    Raises:
        AssertionError: if there is any other error.
    """
    criterion = built(subject, teacher)
    try:
        return score(student, batches, criterion)
    except Exception as error:
        if isinstance(error, errors) and saying in str(error):
            return None
        kinds = " or ".join(kind.__name__ for kind in errors)
        about = f" that says {saying!r}" if saying else ""
        raise _unexpected(subject, f"scores {where}, or {kinds}{about}", error, fix) from error


def _unexpected(subject: Subject, expected: str, error: Exception, fix: str) -> AssertionError:
    what = f"{type(error).__name__}: {error}".rstrip(".")
    return AssertionError(f"{name_of(subject)}: expected {expected}; got {what}. {fix}")


def require_equal(
    subject: Subject,
    expected: Named,
    found: Named,
    equal: Callable[[Tensor, Tensor], bool],
    *,
    what: str,
    fix: str,
) -> None:
    """Refuse scores that are not the same as before.

    Args:
        subject: The criterion.
        expected: Scores of the first call.
        found: Scores of the second call.
        equal: What counts as the same.
        what: When they have to be the same, to follow "the same scores".
        fix: What to do, as a sentence.

    Raises:
        AssertionError: naming the first weight whose scores differ.
    """
    for name, tensor in expected.items():
        other = found[name]
        require(
            tensor.shape == other.shape and equal(tensor, other),
            subject,
            f"the same scores {what}",
            f"those of {name!r} differ, by up to {_distance(tensor, other)}",
            fix,
        )


def _distance(a: Tensor, b: Tensor) -> str:
    if a.shape != b.shape:
        return f"their shapes {tuple(a.shape)} and {tuple(b.shape)}"
    return f"{float((a.double() - b.double()).abs().max()):.3g}"
