"""Values as text files and flags have them, turned into typed ones, strictly, and back."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from secateur.errors import InvalidArgument

T = TypeVar("T")
_SIMPLE = (bool, int, float, str)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_EXACT = 2**53
"""Up to here every whole number is a float of its own."""


def unknown(kind: str, name: str, allowed: Mapping[str, object]) -> str:
    """The message for a name that is not in a table, with the closest one that is."""
    close = difflib.get_close_matches(name, allowed, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"unknown {kind} {name!r}; known: {', '.join(allowed)}.{hint}"


def from_mapping(cls: type[T], data: object, *, where: str) -> T:
    """A dataclass from nested plain values, strictly: unknown keys and other types are refused.

    Args:
        cls: A dataclass.
        data: What YAML gave for it; an object of the class stays as it is.
        where: Path of keys so far, for error messages.

    Raises:
        InvalidArgument: naming the key, the value and what is allowed.
    """
    if isinstance(data, cls):
        return data
    if not isinstance(data, Mapping):
        raise InvalidArgument(f"{where} must be a mapping of options, got {data!r}.")
    hints = get_type_hints(cls, include_extras=False)
    table: dict[str, object] = {f.name: None for f in fields(cast("Any", cls))}
    values: dict[str, object] = {}
    for key, value in cast("Mapping[str, object]", data).items():
        if key not in table:
            raise InvalidArgument(f"{where}: {unknown('option', str(key), table)}")
        values[key] = converted(hints[key], value, where=f"{where}: {key}")
    try:
        return cls(**values)
    except InvalidArgument as error:
        raise InvalidArgument(f"{where}: {error}") from error


def converted(hint: Any, value: object, *, where: str) -> object:  # noqa: ANN401 - a type annotation
    """`value` as the annotated type `hint`; what only Python code can give is left as it is.

    Args:
        hint: Number, text, literal, tuple, mapping, dataclass, or a union that begins with one of these.
        value: What YAML, JSON or Python gave for it.
        where: What the value is, for error messages.

    Raises:
        InvalidArgument: naming the value and what is allowed.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_mapping(cast("type[Any]", hint), value, where=where)
    if origin in (Union, types.UnionType):
        if (value is None and type(None) in arguments) or callable(value):  # a function where its name may be
            return value
        return converted(next(a for a in arguments if a is not type(None)), value, where=where)
    if origin is Literal:
        if value in arguments:
            return value
        raise InvalidArgument(f"{where} must be one of {', '.join(map(repr, arguments))}, got {value!r}.")
    if origin in (dict, Mapping) and isinstance(value, Mapping):
        items = cast("Mapping[object, object]", value).items()
        return {str(k): converted(arguments[1], v, where=f"{where}: {k}") for k, v in items}
    if origin is tuple and isinstance(value, (list, tuple)):
        items = cast("list[object]", list(cast("Any", value)))
        return tuple(converted(arguments[0], item, where=where) for item in items)
    if hint in (bool, int, float):
        value = _read(hint, value)
    checked = hint in _SIMPLE or origin in (tuple, dict, Mapping)
    if type(value) is hint or not checked:
        return value
    name = getattr(hint, "__name__", str(hint))
    raise InvalidArgument(f"{where} must be of type {name}, got {value!r}.")


def _read(kind: type, value: object) -> object:
    """`value` as a bool or number of type `kind` where it says just that, and else as it is.

    Text is read too: without a point YAML takes a number such as ``1e-2`` for it, and flags spell ``True``.
    """
    if kind is bool:
        return {"True": True, "False": False}.get(value, value) if isinstance(value, str) else value
    if isinstance(value, str) and _NUMBER.fullmatch(value) and math.isfinite(read := float(value)):
        if kind is float:
            return read
        return int(read) if read.is_integer() and abs(read) < _EXACT else value
    return float(value) if kind is float and type(value) is int else value


def plain(value: object) -> Any:  # noqa: ANN401 - JSON
    """Nested dataclasses, tuples and dicts as dicts and lists, ready for JSON and YAML."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple):
        return [plain(item) for item in cast("tuple[object, ...]", value)]
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in cast("dict[object, object]", value).items()}
    return value


def without_defaults(config: T, default: T) -> dict[str, Any]:
    """Nested plain values of a dataclass, those of `default` left out."""
    return _difference(plain(config), plain(default))


def _difference(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The entries of `values` that are not as in `defaults`."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(defaults.get(key), dict):
            inner = _difference(cast("dict[str, Any]", value), defaults[key])
            if inner:
                out[key] = inner
        elif key not in defaults or value != defaults[key]:
            out[key] = value
    return out
