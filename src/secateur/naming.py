"""Names for the shapes of data that pass between modules, and how a batch is taken apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any, NamedTuple, Protocol, TypeAlias, cast, runtime_checkable

import torch
from torch import Tensor

from secateur.errors import DataError

Named: TypeAlias = Mapping[str, Tensor]
"""Tensors keyed by the state-dict name of the parameter they belong to."""

Batches: TypeAlias = Iterable[Any]
"""An iterable of batches, such as a DataLoader: ``(inputs, labels)`` pairs, or bare inputs."""

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""``loss(outputs, labels)``, a scalar averaged over the batch."""


def length_of(items: Iterable[Any]) -> int | None:
    """How many there are, or None for an iterable that does not know.

    A DataLoader over an IterableDataset has a ``__len__``, which raises.
    """
    if not isinstance(items, Sized):
        return None
    try:
        return len(items)
    except TypeError:
        return None


def count_batches(batches: Batches) -> int:
    """Number of batches in a re-iterable loader; one without a length is gone through to find out."""
    known = length_of(batches)
    return sum(1 for _ in batches) if known is None else known


class IndexedBatch(NamedTuple):
    """A batch that knows which samples it holds, so that what is computed from them can be remembered.

    Attributes:
        inputs: Shape (batch, …).
        labels: Shape (batch,), int64.
        indices: Place of each sample in its split, shape (batch,), int64.
        view: Which of the augmented views of the split this is: the same sample in the same view
            always looks the same.
    """

    inputs: Tensor
    labels: Tensor
    indices: Tensor
    view: int


@runtime_checkable
class IndexedLoader(Protocol):
    """A loader whose epochs are pure functions of their number, so training can stop and resume."""

    @property
    def n_samples(self) -> int:
        """Number of samples in the split."""
        ...

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        ...

    def epoch(
        self, number: int, *, view: int | None = None, start: int = 0, stop: int | None = None
    ) -> Iterator[IndexedBatch]:
        """The batches of epoch `number`, from 0, in its own order; `view` sets the look, by default too.

        `start` and `stop` cut a piece out of the epoch, in batches, as a slice does.
        """
        ...


def split_batches(batches: Batches, device: torch.device) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Inputs and labels of each batch on `device`; labels are None where there are none.

    Args:
        batches: Of tensors of inputs, or of tuples or lists ``(inputs,)`` or ``(inputs, labels)``.
        device: Where the model lives.

    Raises:
        DataError: if there is not a single batch, for any other structure, and for inputs that hold NaN
            or infinity. Batches on an accelerator are checked for these after the last one, so that none
            waits for the one before.
    """
    empty = True
    unchecked: list[Tensor] = []
    for batch in batches:
        empty = False
        inputs, labels = _take_apart(batch)
        finite = torch.isfinite(inputs).all()
        if inputs.device.type == "cpu":
            _check_finite(finite)
        else:
            unchecked.append(finite)
        inputs = inputs.to(device, non_blocking=True)
        yield inputs, None if labels is None else labels.to(device, non_blocking=True)
    if empty:
        raise DataError("the loader yielded no batch; check that the data set is not empty.")
    if unchecked:
        _check_finite(torch.stack(unchecked).all())


def _take_apart(batch: object) -> tuple[Tensor, Tensor | None]:
    if isinstance(batch, Tensor):
        inputs, labels = batch, None
    elif isinstance(batch, (tuple, list)) and 1 <= len(cast("list[object]", batch)) <= 2:
        parts = cast("list[object]", list(batch))
        inputs, labels = parts[0], parts[1] if len(parts) == 2 else None
    else:
        raise DataError(
            f"a batch must be a tensor, (inputs,) or (inputs, labels), got {type(batch).__name__}. "
            "Yield such pairs; stack several inputs in one tensor (docs/guide.md, section 1)."
        )
    if not isinstance(inputs, Tensor) or not (labels is None or isinstance(labels, Tensor)):
        raise DataError(
            "inputs and labels of a batch must be tensors, got "
            f"{type(inputs).__name__} and {type(labels).__name__}. Stack several inputs in one tensor "
            "(docs/guide.md, section 1)."
        )
    return inputs, labels


def _check_finite(finite: Tensor) -> None:
    if not bool(finite):
        raise DataError("a batch of inputs holds NaN or infinity; clean the data before scoring or training.")
