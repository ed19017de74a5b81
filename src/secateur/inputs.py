"""What a network is called with: one tensor, or several by place or by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn

from secateur.errors import DataError, first_line


@dataclass(frozen=True, eq=False)
class Arguments:
    """The arguments of a network that takes more than one tensor, for a batch of samples.

    It is sliced, moved and split as a tensor is, along the first axis of each of its tensors.

    Attributes:
        positional: In order, each of shape (batch, …).
        named: By the name of the network's parameter, each of shape (batch, …).

    Raises:
        DataError: if there is no tensor, if one has no batch axis, or if they differ in its length.
    """

    positional: tuple[Tensor, ...] = ()
    named: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])

    def __post_init__(self) -> None:
        shapes = [tuple(tensor.shape) for tensor in self.tensors]
        if not shapes or any(not shape or shape[0] != shapes[0][0] for shape in shapes):
            raise DataError(
                f"the inputs of a batch must be tensors of shape (batch, …), got {shapes or 'none'}. "
                "Repeat along the first axis what is the same for all samples."
            )

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them, those with names last."""
        return (*self.positional, *self.named.values())

    @property
    def device(self) -> torch.device:
        """Where the first lives."""
        return self.tensors[0].device

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, places: slice | Tensor) -> Arguments:
        return self.map(lambda tensor: tensor[places])

    def split(self, size: int) -> list[Arguments]:
        """In parts of `size` samples, the last of what is left."""
        return [self[first : first + size] for first in range(0, len(self), size)]

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Arguments:
        """On another device."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def map(self, change: Callable[[Tensor], Tensor]) -> Arguments:
        """With `change` applied to each tensor."""
        return self.filled([change(tensor) for tensor in self.tensors])

    def filled(self, tensors: Sequence[Tensor]) -> Arguments:
        """The same places and names with other `tensors`, in the order of `Arguments.tensors`."""
        n = len(self.positional)
        return Arguments(tuple(tensors[:n]), dict(zip(self.named, tensors[n:], strict=True)))


Inputs: TypeAlias = Tensor | Arguments
"""What a network is called with (`call`)."""


def as_inputs(value: object) -> Inputs:
    """A tensor as it is; a tuple or list of tensors, or a mapping of them by name, as `Arguments`.

    Raises:
        DataError: for anything else.
    """
    if isinstance(value, Tensor | Arguments):
        return value
    if isinstance(value, Mapping):
        named = {str(key): entry for key, entry in cast("Mapping[object, object]", value).items()}
        return Arguments(named={key: _tensor(entry, repr(key)) for key, entry in named.items()})
    if isinstance(value, (tuple, list)):
        entries = enumerate(cast("Sequence[object]", value))
        return Arguments(tuple(_tensor(entry, f"number {place}") for place, entry in entries))
    raise DataError(
        f"the inputs of a batch must be a tensor, several of them in a tuple, or a dict of them by name, got "
        f"{type(value).__name__}."
    )


def _tensor(entry: object, name: str) -> Tensor:
    if isinstance(entry, Tensor):
        return entry
    raise DataError(
        f"input {name} of a batch must be a tensor, got {type(entry).__name__}. Convert it, or leave it out."
    )


def call(network: Callable[..., object], inputs: Inputs) -> object:
    """What `network` returns for copies of `inputs`: it may write to them, and others get them too.

    Raises:
        DataError: if it does not take them, or computes in another precision; names which.
    """
    try:
        if isinstance(inputs, Tensor):
            return network(inputs.clone())
        own = inputs.map(torch.clone)
        return network(*own.positional, **own.named)
    except TypeError:
        if isinstance(inputs, Arguments):
            check_takes(network, inputs)
        raise
    except RuntimeError as error:
        _check_precision(network, inputs, error)
        raise


def _check_precision(network: Callable[..., object], inputs: Inputs, error: RuntimeError) -> None:
    """Say of a network that failed that types do not go together, if that may be why."""
    if torch.is_autocast_enabled(inputs.device.type) and is_of_types(error):
        raise DataError(
            f"a network that computes in fp32 failed in mixed precision: {first_line(error)} "
            "Set precision='fp32'."
        ) from error
    if not isinstance(network, nn.Module):
        return
    given = {tensor.dtype for tensor in tensors_of(inputs) if tensor.is_floating_point()}
    own = {tensor.dtype for tensor in network.parameters() if tensor.is_floating_point()}
    if given and own and not given & own:
        ours, theirs = (", ".join(sorted(map(str, dtypes))) for dtypes in (own, given))
        raise DataError(
            f"the weights of {type(network).__name__} are {ours}, the inputs of a batch {theirs}. Convert "
            "the network with .float(), or the inputs with .to(dtype)."
        ) from error


def is_of_types(error: RuntimeError) -> bool:
    """Whether torch says of an operation that types do not go together."""
    return "dtype" in str(error) or "scalar type" in str(error)


def check_takes(network: Callable[..., object], inputs: Arguments) -> None:
    """Refuse inputs that a network has no parameters for, or too few inputs.

    Raises:
        DataError: naming the inputs, and which is missing or too many.
    """
    try:
        inspect.signature(getattr(network, "forward", network)).bind(*inputs.positional, **inputs.named)
    except TypeError as error:
        given = [*(f"number {place}" for place in range(len(inputs.positional))), *map(repr, inputs.named)]
        raise DataError(
            f"{type(network).__name__} cannot be called with the inputs of a batch ({', '.join(given)}): "
            f"{error}. Give what its forward takes, and leave the rest out of the batches."
        ) from error


def tensors_of(inputs: Inputs) -> tuple[Tensor, ...]:
    """All tensors of `inputs`."""
    return (inputs,) if isinstance(inputs, Tensor) else inputs.tensors


def filled(inputs: Inputs, tensors: Sequence[Tensor]) -> Inputs:
    """`inputs` with other `tensors`, as many as `tensors_of` has."""
    return tensors[0] if isinstance(inputs, Tensor) else inputs.filled(tensors)


def joined(parts: Sequence[Inputs]) -> Inputs:
    """The samples of all `parts`, one after the other.

    Raises:
        DataError: if they differ in more than their number of samples.
    """
    forms = {_form(part) for part in parts}
    if len(forms) > 1:
        some = " and ".join(sorted(forms)[:3])
        raise DataError(f"all batches must have inputs of one shape, got {some}. Pad or crop them.")
    together = zip(*(tensors_of(part) for part in parts), strict=True)
    return filled(parts[0], [torch.cat(tensors) for tensors in together])


def _form(inputs: Inputs) -> str:
    """Shapes of a sample, with the names that they go by."""
    if isinstance(inputs, Tensor):
        return str(tuple(inputs.shape[1:]))
    positional = [str(tuple(tensor.shape[1:])) for tensor in inputs.positional]
    return ", ".join([*positional, *(f"{name} {tuple(t.shape[1:])}" for name, t in inputs.named.items())])
