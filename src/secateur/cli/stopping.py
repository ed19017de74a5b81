"""Ctrl-C while modules are imported."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager

from secateur.interrupts import on_interrupt

STOPPED = 130
"""Exit code of a command that was stopped, as a shell gives it."""


def stopped_at_once() -> AbstractContextManager[None]:
    """Let Ctrl-C end the process: out of an import it would come as a traceback, or as another error.

    Nothing has been begun that could be lost.
    """
    return on_interrupt(_stop)


def _stop(*_: object) -> None:
    os.write(2, b"stopped.\n")
    os._exit(STOPPED)
