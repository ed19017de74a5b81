"""Progress: what a long computation tells whoever watches it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from secateur.naming import length_of

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")


class Watcher:
    """Tells a console how far a computation is: a line of news, a bar for each stage.

    Args:
        console: Where to draw; None stays silent.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console

    def say(self, text: str) -> None:
        """One line of news."""
        if self._console is not None:
            self._console.print(text, highlight=False, markup=False)

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Generator[Callable[[], None]]:
        """A bar of `total` steps, gone at the end; the body calls what it is given once a step.

        Only a terminal gets bars; a log file gets the lines of news alone.
        """
        if self._console is None or not self._console.is_terminal:
            yield lambda: None
            return
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._console, transient=True) as bars:
            task = bars.add_task(name, total=total)
            yield lambda: bars.advance(task)

    def track(self, items: Iterable[T], name: str) -> Generator[T]:
        """`items` under a bar."""
        with self.stage(name, length_of(items)) as step:
            for item in items:
                yield item
                step()
