"""Criteria and scopes by name: one of the registry, or "pkg.mod:Class" for a class of the user's own."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TypeVar, get_type_hints

from torch import nn

from secateur.allocate import SCOPES, AbstractScope
from secateur.errors import InvalidArgument
from secateur.factories import load_object
from secateur.scores import CRITERIA, AbstractCriterion
from secateur.values import converted, unknown

T = TypeVar("T")


def build_criterion_from(
    name: str, options: Mapping[str, object], *, teacher: nn.Module | None, seed: int
) -> AbstractCriterion:
    """The criterion that `name` stands for.

    Args:
        name: A key of `CRITERIA`, or "pkg.mod:Class".
        options: Its hyper-parameters by name; its own defaults for the others.
        teacher: For a parameter of that name, if it has one.
        seed: Likewise.

    Raises:
        InvalidArgument: if there is no such criterion, it does not take an option or not that value, or
            it needs one more, or a teacher.
    """
    kind = class_of("criterion", name, CRITERIA, AbstractCriterion)
    return build("criterion", name, kind, options, {"teacher": teacher, "seed": seed})


def wants_teacher(name: str) -> bool:
    """Whether the criterion that `name` stands for takes a teacher.

    Raises:
        InvalidArgument: if there is no such criterion.
    """
    kind = class_of("criterion", name, CRITERIA, AbstractCriterion)
    return "teacher" in inspect.signature(kind).parameters


def build_scope_from(name: str, options: Mapping[str, object]) -> AbstractScope:
    """The scope that `name` stands for.

    Args:
        name: A key of `SCOPES`, or "pkg.mod:Class".
        options: Its parameters by name; its own defaults for the others.

    Raises:
        InvalidArgument: if there is no such scope, or it does not take an option or not that value.
    """
    return build("scope", name, class_of("scope", name, SCOPES, AbstractScope), options, {})


def class_of(what: str, name: str, registry: Mapping[str, type[T]], base: type[T]) -> type[T]:
    """The class that a name stands for.

    Args:
        what: What it is a name of, for error messages.
        name: A key of `registry`, or "pkg.mod:Class".
        registry: Classes by name.
        base: What a class from outside must derive from.

    Raises:
        InvalidArgument: if there is no such class, or it does not derive from `base`.
    """
    if ":" not in name:
        if name not in registry:
            raise InvalidArgument(f"{unknown(what, name, registry)} Your own goes by 'pkg.mod:Class'.")
        return registry[name]
    found = load_object(name, kind=what)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise InvalidArgument(f"{what} {name!r} is not a class that derives from {base.__name__}.")
    return found


def build(
    what: str, name: str, kind: type[T], options: Mapping[str, object], offered: Mapping[str, object]
) -> T:
    """An object of a class with named options, each checked against the class's own parameters.

    Args:
        what: What it is, for error messages.
        name: What it was asked for by.
        kind: Its class.
        options: Parameters by name, as YAML, JSON or Python give them.
        offered: Parameters that the caller provides where the class has them; options cannot set these.

    Raises:
        InvalidArgument: naming the option, its value and what is allowed.
    """
    parameters = inspect.signature(kind).parameters
    takes = [parameter for parameter in parameters if parameter not in offered]
    for option in options:
        if option not in takes:
            raise InvalidArgument(
                f"option {option!r} does not apply to {what} {name!r}, which takes "
                f"{', '.join(takes) or 'no options'}."
            )
    given = {key: value for key, value in offered.items() if key in parameters} | dict(options)
    if given.get("teacher", kind) is None:
        raise InvalidArgument(f"{what} {name!r} needs a teacher; pass one.")
    missing = [key for key, p in parameters.items() if p.default is p.empty and key not in given]
    if missing:
        raise InvalidArgument(f"{what} {name!r} needs the options {', '.join(missing)}.")
    try:
        hints = get_type_hints(kind.__init__)
    except NameError:  # a user's class with hints that only a type checker imports: its options as they are
        hints = {}
    return kind(
        **{
            key: converted(hints.get(key), value, where=f"option {key!r} of {what} {name!r}")
            for key, value in given.items()
        }
    )
