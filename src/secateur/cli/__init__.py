"""The command line: the only place that prints, and that turns text into values."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from secateur.cli.stopping import stopped_at_once


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments without the program's name; by default those of the process.

    Returns:
        0 if all is well, or the reader of a pipe has seen enough, as ``head`` does; 1 if the work failed or a
        check did not hold, 2 if the command was wrong, 130 if it was stopped.
    """
    with stopped_at_once():
        from secateur.cli.commands import run
    try:
        return run(list(sys.argv[1:] if argv is None else argv))
    except BrokenPipeError:
        return 0
