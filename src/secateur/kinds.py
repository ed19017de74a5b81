"""Arguments of the wrong kind, told by their name."""

from __future__ import annotations

from secateur.errors import InvalidArgument


def check_kind(name: str, value: object, kind: type, example: str) -> None:
    """Refuse an argument that is of another kind, such as a name or a class where an object is wanted.

    Raises:
        InvalidArgument: naming the argument, what it is, and an example of what it must be.
    """
    if not isinstance(value, kind):
        got = f"the class {value.__name__}" if isinstance(value, type) else repr(value)[:80]
        raise InvalidArgument(f"{name} must be a {kind.__name__}, such as {example}, got {got}.")
