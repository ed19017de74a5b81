"""A user's own code by name ("pkg.mod:attr"), and optional packages with an error that names their extra."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from types import ModuleType

from torch import nn

from secateur.errors import DataError, InvalidArgument, MissingExtra, ModelError, SecateurError

_ERRORS: Mapping[str, type[SecateurError]] = {"model": ModelError, "data": DataError}


def load_object(spec: str, *, kind: str) -> Callable[..., object]:
    """The function or class that "pkg.mod:attr" names.

    The current directory is on ``sys.path`` while the module is imported, as with ``python -m``,
    so a module that lies beside the user's data is found.

    Args:
        spec: Module and attribute, separated by one colon; the attribute may be dotted.
        kind: What is looked for: "model", "data", or any other word for the error message.

    Raises:
        ModelError: with ``kind="model"``, if there is no such callable.
        DataError: with ``kind="data"``, if there is no such callable.
        InvalidArgument: with any other kind, if there is no such callable.
    """
    error = _ERRORS.get(kind, InvalidArgument)
    module_name, _, attribute = spec.partition(":")
    names = [*module_name.split("."), *attribute.split(".")]
    if not all(name.isidentifier() for name in names):
        raise error(f"{kind} {spec!r} is not of the form 'pkg.mod:attr', for example 'mycode:build'.")
    found: object = _import_user_module(module_name, spec, kind, error)
    for name in attribute.split("."):
        if not hasattr(found, name):
            public = ", ".join(n for n in vars(found) if not n.startswith("_")) or "nothing"
            raise error(f"{kind} {spec!r}: {_name_of(found)} has no attribute {name!r}. It holds: {public}.")
        found = getattr(found, name)
    if not callable(found) or isinstance(found, nn.Module):
        what = type(found).__name__
        raise error(f"{kind} {spec!r} is an object of type {what}; name a function or a class to call.")
    return found


def call_factory(spec: str, offered: Mapping[str, object], *, kind: str) -> object:
    """What the callable named by `spec` returns, called with those of `offered` that it accepts by keyword.

    Args:
        spec: "pkg.mod:attr".
        offered: Values by keyword.
        kind: As in `load_object`.

    Raises:
        ModelError: with ``kind="model"``, if there is no such callable, it needs any other argument, or it
            fails with an error that is none of ours.
        DataError: with ``kind="data"``, likewise.
        InvalidArgument: with any other kind, likewise.
    """
    factory = load_object(spec, kind=kind)
    parameters = inspect.signature(factory).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        accepted = set(offered)
    else:
        accepted = {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    needed = [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and p.name not in offered
    ]
    if needed:
        raise _ERRORS.get(kind, InvalidArgument)(
            f"{kind} {spec!r} needs the arguments {', '.join(needed)}, but is called with "
            f"{', '.join(offered)} by keyword. Give the others a default."
        )
    try:
        return factory(**{name: value for name, value in offered.items() if name in accepted})
    except SecateurError:  # which says itself what is wrong
        raise
    except Exception as cause:
        raise _ERRORS.get(kind, InvalidArgument)(
            f"{kind} {spec!r}: calling it failed with {type(cause).__name__}: {cause}"
        ) from cause


@contextmanager
def needs_extra(extra: str, purpose: str) -> Generator[None, None, None]:
    """Turn a failing import inside the ``with`` block into `MissingExtra`.

    Args:
        extra: The extra of secateur that brings the package, such as "data".
        purpose: What the package is needed for, to begin the message.

    Raises:
        MissingExtra: if an import in the block fails.
    """
    try:
        yield
    except ImportError as cause:
        raise MissingExtra(
            f"{purpose} needs {cause.name or 'an optional package'}, which cannot be imported ({cause}). "
            f"Run: pip install 'secateur[{extra}]'"
        ) from cause


def _import_user_module(name: str, spec: str, kind: str, error: type[SecateurError]) -> ModuleType:
    folder = os.getcwd()
    sys.path.insert(0, folder)
    importlib.invalidate_caches()  # the module may have been written after its folder was last listed
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as cause:
        missing = cause.name or ""
        if name == missing or name.startswith(f"{missing}."):
            raise error(
                f"{kind} {spec!r}: no module {missing!r} is installed or lies in the current folder."
            ) from cause
        raise error(f"{kind} {spec!r}: {name!r} imports {missing!r}, which is not installed.") from cause
    except Exception as cause:
        raise error(
            f"{kind} {spec!r}: importing {name!r} failed with {type(cause).__name__}: {cause}"
        ) from cause
    finally:
        with suppress(ValueError):  # the module may have changed sys.path itself
            sys.path.remove(folder)


def _name_of(found: object) -> str:
    return f"{type(found).__name__} {getattr(found, '__name__', '?')!r}"
