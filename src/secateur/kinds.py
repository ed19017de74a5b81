"""Arguments of the wrong kind, and options that nothing would read, told by their name."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.errors import InvalidArgument


def check_kind(name: str, value: object, kind: type, example: str) -> None:
    """Refuse an argument that is of another kind, such as a name or a class where an object is wanted.

    Raises:
        InvalidArgument: naming the argument, what it is, and an example of what it must be.
    """
    if not isinstance(value, kind):
        got = f"the class {value.__name__}" if isinstance(value, type) else " ".join(repr(value).split())[:80]
        article = "an" if kind.__name__[0] in "AEIO" else "a"
        raise InvalidArgument(f"{name} must be {article} {kind.__name__}, such as {example}, got {got}.")


def check_used(options: object, name: str, other: str, users: Sequence[str]) -> None:
    """Refuse a value of the field `name` that nothing would read, as the field `other` is none of `users`.

    Raises:
        InvalidArgument: saying so.
    """
    given, choice = getattr(options, name), getattr(options, other)
    if given != getattr(type(options), name) and choice not in users:
        raise InvalidArgument(
            f"{name}={given!r} does nothing with {other}={choice!r}, only with {', '.join(users)}. "
            f"Drop {name}, or choose another {other}."
        )
