"""A training budget in parts of equal length, so that masks can change in the middle of an epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from secateur.errors import TrainingError
from secateur.naming import IndexedBatch, IndexedLoader


def divide(n_batches: int, epochs: int, *, least: int) -> tuple[int, int]:
    """Number of parts of a budget, and batches a part: whole epochs, or shorter if they are too few.

    What does not fill a last part is left out of the training; among the lengths that would do, one that
    leaves out little is taken.

    Args:
        n_batches: Batches an epoch.
        epochs: Budget in epochs; 0 makes no part.
        least: How many parts there must be, if there is a budget.

    Raises:
        TrainingError: if there are fewer batches than parts.
    """
    if epochs == 0 or least <= epochs:
        return epochs, n_batches
    total = n_batches * epochs
    if total < least:
        raise TrainingError(
            f"this many rounds need at least {least} training batches, {epochs} epochs of {n_batches} have "
            f"{total}. Train for more epochs, lower batch_size, or ask for fewer rounds or updates."
        )
    longest = total // least
    length = min(range(longest, longest // 2, -1), key=lambda length: total % length)
    return total // length, length


def split_evenly(parts: int, n: int) -> list[int]:
    """`n` whole numbers that add up to `parts` and differ by at most 1, the larger ones last."""
    return [(parts + place) // n for place in range(n)]


def place_in(parts: int, progress: float) -> int:
    """The part before which a fraction of a budget is spent; fractions a whole part apart never share one."""
    return math.floor(parts * progress + 1e-9)  # 0.3 · 10 is a little less than 3 in binary


@dataclass(frozen=True)
class Parts:
    """An `IndexedLoader` whose every epoch is one part of the batches that another goes through.

    Those are all batches of its epoch 0, then those of its epoch 1, and so on; a part may begin in one
    epoch and end in the next.

    Attributes:
        loader: Where the batches come from.
        length: Batches a part, ≥ 1.
        first: Part that counts as number 0, so that a later round sees new images in a new order.
        views: Augmented views to cycle through, one an epoch; 0 = a new one every epoch.
    """

    loader: IndexedLoader
    length: int
    first: int = 0
    views: int = 0

    @property
    def n_samples(self) -> int:
        """Number of samples in the whole split."""
        return self.loader.n_samples

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[object, object]]:
        for batch in self.epoch(0):
            yield batch.inputs, batch.labels

    def epoch(
        self, number: int, *, view: int | None = None, start: int = 0, stop: int | None = None
    ) -> Iterator[IndexedBatch]:
        """The batches of part `number`; the look is that of the epoch they lie in, or `view`."""
        n_batches = len(self.loader)
        begin = (self.first + number) * self.length
        place, end = begin + start, begin + (self.length if stop is None else min(stop, self.length))
        while place < end:
            epoch, within = divmod(place, n_batches)
            until = min(n_batches, within + end - place)
            look = epoch % self.views if self.views else epoch
            yield from self.loader.epoch(epoch, view=look if view is None else view, start=within, stop=until)
            place += until - within
