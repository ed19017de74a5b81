"""Names for the shapes of data that pass between modules, and how a batch is taken apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, NamedTuple, Protocol, TypeAlias, cast, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import Dataset

from secateur.errors import DataError, InvalidArgument
from secateur.inputs import Inputs, as_inputs, tensors_of

Named: TypeAlias = Mapping[str, Tensor]
"""Tensors keyed by the state-dict name of the parameter they belong to."""

Batches: TypeAlias = Iterable[Any]
"""An iterable of batches, such as a DataLoader, each of a form that `split_batches` takes apart."""

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""``loss(outputs, labels)``, a scalar averaged over the batch."""


_LABELS = ("labels", "label")
"""Where a batch that is a dict has them."""

GIVE_LABELS = "Pass (inputs, labels), or a dict with 'labels' or 'label'"
"""What to do where a batch has none."""


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


def check_repeatable(batches: Batches | None, use: str) -> None:
    """Refuse batches that can be gone through once only, such as a generator.

    Args:
        batches: The batches, if there are any.
        use: What needs them more than once, to begin the message.

    Raises:
        InvalidArgument: saying so.
    """
    # Only an iterator is asked for its iterator: that of a DataLoader starts processes and draws a number.
    if isinstance(batches, Iterator) and iter(batches) is batches:
        raise InvalidArgument(
            f"{use}, but these can be gone through once. Pass a list of batches or a DataLoader."
        )


class IndexedBatch(NamedTuple):
    """A batch that knows which samples it holds, so that what is computed from them can be remembered.

    Attributes:
        inputs: Shape (batch, …).
        labels: Shape (batch,), int64.
        indices: Place of each sample in its split, shape (batch,), int64.
        view: Which of the augmented views of the split this is: the same sample in the same view
            always looks the same.
    """

    inputs: Inputs
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


def split_batches(batches: Batches, device: torch.device) -> Iterator[tuple[Inputs, Tensor | None]]:
    """Inputs and labels of each batch on `device`; labels are None where there are none.

    Args:
        batches: Of tensors of inputs, or of tuples or lists ``(inputs,)`` or ``(inputs, labels)``. A network
            with several inputs is given them by place or by name: then `inputs` is a tuple or a dict of
            tensors. A batch that is a dict holds its labels, if it has any, under "labels" or "label", as
            those of `transformers` and `datasets` do, and the rest are inputs by name.
        device: Where the model lives.

    Yields:
        Labels that are whole numbers are int64.

    Raises:
        DataError: if there is not a single batch, for any other structure, and for inputs that hold NaN
            or infinity. Batches on an accelerator are checked for these after the last one, so that none
            waits for the one before.
    """
    _check_batches(batches)
    empty = True
    unchecked: list[Tensor] = []
    for batch in batches:
        empty = False
        inputs, labels = _take_apart(batch)
        for tensor in tensors_of(inputs):
            finite = torch.isfinite(tensor).all()
            if tensor.device.type == "cpu":
                _check_finite(finite)
            else:
                unchecked.append(finite)
        inputs = inputs.to(device, non_blocking=True)
        if labels is not None:
            # torch's losses take whole numbers as int64 alone
            whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
            labels = labels.to(device, torch.int64 if whole else labels.dtype, non_blocking=True)
        yield inputs, labels
    if empty:
        raise DataError("the loader yielded no batch; check that the data set is not empty.")
    if unchecked:
        _check_finite(torch.stack(unchecked).all())


def _check_batches(batches: object) -> None:
    """Refuse what is taken for batches by mistake, and would be gone through as something else."""
    wrong = ""
    if isinstance(batches, Tensor):
        wrong = f"one tensor of shape {tuple(batches.shape)}. Put it in a list."
    elif isinstance(batches, Dataset):
        wrong = f"the data set {type(batches).__name__}. Wrap it in a torch.utils.data.DataLoader."
    elif isinstance(batches, tuple):
        shapes = [tuple(t.shape) for t in cast("tuple[object, ...]", batches) if isinstance(t, Tensor)]
        if len(shapes) == len(batches) == 2 and len(shapes[0]) != len(shapes[1]):
            wrong = f"two tensors of shapes {shapes[0]} and {shapes[1]}. Put the pair in a list."
    elif not isinstance(batches, Iterable):
        wrong = f"a {type(batches).__name__}. {'Call it.' if callable(batches) else 'Put it in a list.'}"
    if wrong:
        raise DataError(f"batches must be a loader or a list of batches, got {wrong}")


def _take_apart(batch: object) -> tuple[Inputs, Tensor | None]:
    if isinstance(batch, Mapping):
        entries = dict(cast("Mapping[object, object]", batch))
        labels = next((entries.pop(name) for name in _LABELS if name in entries), None)
        inputs: object = entries
    elif isinstance(batch, (tuple, list)):
        parts = cast("Sequence[object]", batch)
        if not 1 <= len(parts) <= 2:
            raise DataError(
                f"a batch must be inputs, (inputs,) or (inputs, labels), got {len(parts)} parts. Put several "
                "inputs in a tuple or a dict of their own: ((first, second), labels)."
            )
        inputs, labels = parts[0], parts[1] if len(parts) == 2 else None
    else:
        inputs, labels = batch, None
    if not (labels is None or isinstance(labels, Tensor)):
        raise DataError(
            f"the labels of a batch must be a tensor, got {type(labels).__name__}. Convert them with "
            "torch.as_tensor."
        )
    return as_inputs(inputs), labels


def _check_finite(finite: Tensor) -> None:
    if not bool(finite):
        raise DataError("a batch of inputs holds NaN or infinity; clean the data before scoring or training.")
