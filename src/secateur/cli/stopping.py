"""Ctrl-C while modules are imported."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager

STOPPED = 130
"""Exit code of a command that was stopped, as a shell gives it."""


@contextmanager
def stopped_at_once() -> Generator[None]:
    """Let Ctrl-C end the process: out of an import it would come as a traceback, or as another error.

    Nothing has been begun that could be lost. Threads other than the first get no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _stop(*_: object) -> None:
    os.write(2, b"stopped.\n")
    os._exit(STOPPED)
