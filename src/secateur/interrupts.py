"""What Ctrl-C does for a while."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], object] | signal.Handlers


@contextmanager
def on_interrupt(handler: Handler) -> Generator[None]:
    """Have Ctrl-C do something else inside. Only the first thread may say so; in others nothing changes.

    Args:
        handler: As `signal.signal` takes it. Processes that are started inside inherit ``signal.SIG_IGN``.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
