"""What the commands share: where they print, and how text becomes values."""

from __future__ import annotations

import json
import os
from fractions import Fraction
from typing import Protocol

from rich.console import Console

from secateur.errors import InvalidArgument


class PipedConsole(Console):
    """A console whose reader may go away, as ``head`` does."""

    def on_broken_pipe(self) -> None:
        """Raise, where rich would end the process with exit code 1, which says that a check did not hold.

        Raises:
            BrokenPipeError: always.
        """
        self.quiet = True
        # What is left in the stream goes nowhere: Python would fail to write it at exit, with another code.
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())
        raise BrokenPipeError


out = PipedConsole(highlight=False, markup=False, soft_wrap=True)
err = PipedConsole(stderr=True, highlight=False, markup=False, soft_wrap=True)
if not out.is_terminal and "COLUMNS" not in os.environ:
    out.width = 1000  # in a file or a pipe there is no edge of a screen for tables to lose columns to

_MOST_VALUES = 1000
"""Of a range on the command line."""
PLAN_FILE = "student.plan"
"""Where `secateur compile` puts the plan of a run, in its folder."""


class Command(Protocol):
    """One subcommand: its fields are its flags."""

    def run(self) -> int:
        """Do it; returns the exit code."""
        ...


def parse_values(name: str, text: str) -> tuple[float, ...]:
    """Numbers from ``0.8,0.9`` or from ``START:STOP:STEP``, exact in decimals, both ends included.

    Raises:
        InvalidArgument: if the text is neither.
    """
    try:
        if ":" in text:
            start, stop, step = (Fraction(part) for part in text.split(":"))
            if step <= 0 or stop < start:
                raise ValueError
            n = int((stop - start) / step) + 1
        else:
            return tuple(float(Fraction(part)) for part in text.split(","))
    except (ValueError, ZeroDivisionError) as error:
        raise InvalidArgument(
            f"--{name} takes numbers such as 0.8,0.9 or a rising range START:STOP:STEP, got {text!r}."
        ) from error
    if n > _MOST_VALUES:
        raise InvalidArgument(f"--{name} {text} names {n:,} values; take at most {_MOST_VALUES:,}.")
    if (last := start + (n - 1) * step) != stop:
        raise InvalidArgument(
            f"--{name} {text} does not reach {float(stop):g}: steps of {float(step):g} from {float(start):g} "
            f"lead to {float(last):g}. End there, or take another step."
        )
    return tuple(float(start + i * step) for i in range(n))


def parse_names(text: str) -> tuple[str, ...]:
    """Words between commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def parse_sizes(name: str, text: str, *, least: int = 1) -> tuple[int, ...]:
    """Whole numbers of at least `least` between commas.

    Raises:
        InvalidArgument: if there is anything else.
    """
    parts = parse_names(text)
    if not parts or not all(part.isdecimal() and int(part) >= least for part in parts):
        raise InvalidArgument(
            f"--{name} takes whole numbers of at least {least} such as {least},{least + 1}, got {text!r}."
        )
    return tuple(int(part) for part in parts)


def percent(value: float | None) -> str:
    """A fraction as percent, empty for None."""
    return "" if value is None else f"{value:.2%}"


def compared(ratio: float, places: int) -> str:
    """How one size compares with another, of which it is `ratio` times as much: ``2.1 times smaller``.

    Args:
        ratio: Above 0.
        places: Decimals.
    """
    if ratio == 1:
        return "the same size"
    return f"{ratio:.{places}f} times larger" if ratio > 1 else f"{1 / ratio:.{places}f} times smaller"


def print_json(content: object) -> None:
    """JSON on standard output."""
    out.print(json.dumps(content, indent=2, allow_nan=False))
