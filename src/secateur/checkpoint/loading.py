"""Read a sparse checkpoint: the whole of a well-formed file, or an error."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from secateur.checkpoint.coding import decode_tensor
from secateur.checkpoint.container import DIGEST, Container, read
from secateur.checkpoint.metadata import (
    DTYPES,
    FORMAT,
    VERSION,
    Metadata,
    SparseLayout,
    from_strings,
)
from secateur.checkpoint.saving import identity
from secateur.errors import CheckpointError
from secateur.masks import Masks
from secateur.modules import check_has_shapes, why_not_writable
from secateur.runtime.container import FORMAT as PLAN
from secateur.targets import unwrap


@dataclass(frozen=True)
class SparseCheckpoint:
    """A pruned model read from a file.

    Attributes:
        state_dict: All tensors, dense, on the CPU; pruned weights are +0.0. Shared tensors stand under
            each of their names and are one object.
        masks: What was kept.
        metadata: What the file says about itself.
    """

    state_dict: dict[str, Tensor]
    masks: Masks
    metadata: Metadata

    def __repr__(self) -> str:
        return f"SparseCheckpoint({len(self.state_dict)} tensors, masks={self.masks!r})"


def load_sparse(path: str | os.PathLike[str], into: nn.Module | None = None) -> SparseCheckpoint:
    """Read a sparse checkpoint, and fill a model with it.

    Nothing but data is read from the file, no code. A file of n bytes takes at most about 10,000·n
    bytes of memory: that is what an almost empty tensor comes to, and a hostile file can reach.

    Args:
        path: A file of `save_sparse`.
        into: A model of the same names, shapes and types, on any device, bare or wrapped; it is
            filled in place, or untouched if anything is wrong.

    Returns:
        The tensors, the masks and the metadata.

    Raises:
        CheckpointError: if the file is missing, damaged, malformed, of another format or version, or
            does not fit `into`.
    """
    checkpoint = decode_checked(read(Path(path)), path)
    if into is not None:
        _fill(into, checkpoint.state_dict, path)
    return checkpoint


def is_sparse(container: Container) -> bool:
    """Whether a file says that it is a sparse checkpoint, of any version."""
    return container.metadata.get("format") == FORMAT


def is_plan(container: Container) -> bool:
    """Whether a file is a plan of `secateur.runtime`, which is a safetensors file too."""
    return container.metadata.get("format") == PLAN


def refuse_plan(container: Container, path: str | os.PathLike[str]) -> None:
    """Refuse a plan, which holds a program and the weights as it wants them.

    Raises:
        CheckpointError: naming what reads plans.
    """
    if is_plan(container):
        raise CheckpointError(
            f"{str(path)!r} is a plan, not a checkpoint. Read it with secateur.runtime.read_plan, "
            "or run it with secateur time."
        )


def decode_checked(container: Container, path: str | os.PathLike[str]) -> SparseCheckpoint:
    """The checkpoint in a container, if its content and its masks are what was written.

    Raises:
        CheckpointError: if it is of another format or version, malformed, or a digest differs.
    """
    checkpoint = decode(container, path)
    digests = {
        "content": (container.content_digest, container.metadata[DIGEST]),
        "masks": (checkpoint.masks.digest, checkpoint.metadata.mask_digest),
    }
    for what, (found, recorded) in digests.items():
        if found != recorded:
            raise CheckpointError(
                f"{str(path)!r} was damaged or changed after it was written: the digest of its {what} is "
                f"{found}, recorded is {recorded[:80]}. Fetch or save it again."
            )
    return checkpoint


def decode(container: Container, path: str | os.PathLike[str]) -> SparseCheckpoint:
    """The checkpoint in a container, before its digests are compared.

    Raises:
        CheckpointError: if it is of another format or version, or malformed.
    """
    refuse_plan(container, path)
    if not is_sparse(container):
        raise CheckpointError(
            f"{str(path)!r} is a plain safetensors file, not a sparse checkpoint. "
            "Load it with secateur.models.load_weights."
        )
    version = container.metadata.get("version")
    if version != VERSION:
        raise CheckpointError(
            f"{str(path)!r} is of format version {str(version)[:80]!r}, this secateur reads {VERSION!r}. "
            "Upgrade secateur, or save the file again with this one."
        )
    try:
        return _decode(container)
    except ValueError as error:
        raise CheckpointError(
            f"{str(path)!r} is a malformed sparse checkpoint: {error}. Fetch or save it again."
        ) from error


def _decode(container: Container) -> SparseCheckpoint:
    metadata = from_strings(container.metadata)
    state = dict(container.tensors)
    masks: dict[str, Tensor] = {}
    for name, layout in metadata.layouts.items():
        try:
            state[name], masks[name] = _decode_entry(container, name, layout)
        except ValueError as error:
            raise ValueError(f"tensor {name!r}: {error}") from error
    for alias, name in metadata.aliases.items():
        if alias in state or name not in state or name in metadata.aliases:
            raise ValueError(f"alias {alias!r} of {name!r} is not a new name of a stored tensor")
    state |= {alias: state[name] for alias, name in metadata.aliases.items()}
    found = Masks(masks)
    if metadata.n_parameters < found.numel:
        raise ValueError(f"{metadata.n_parameters} parameters, but {found.numel} weights under masks")
    return SparseCheckpoint(state, found, metadata)


def _decode_entry(container: Container, name: str, layout: SparseLayout) -> tuple[Tensor, Tensor]:
    """The dense tensor and its mask."""
    entry = container.tensors.get(name)
    if entry is None:
        raise ValueError("it is missing")
    if entry.ndim != 1 or entry.dtype is not torch.uint8:
        raise ValueError("its entry must be one row of U8")
    values, mask = decode_tensor(
        entry.numpy().tobytes(),
        index=layout.index,
        heads=layout.heads,
        numel=layout.numel,
        dtype=DTYPES[layout.value_dtype],
    )
    weight = torch.zeros(layout.numel, dtype=DTYPES[layout.dtype])
    weight[mask] = values.to(weight.dtype)
    return weight.reshape(layout.shape), mask.reshape(layout.shape)


def _fill(model: nn.Module, state: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Load a state dict that fits in every respect; check all before the first write."""
    bare = unwrap(model)
    check_has_shapes(bare, CheckpointError)
    own: dict[str, Tensor] = bare.state_dict()
    names = sorted(own.keys() ^ state.keys())
    if names:
        where = "the file has no" if names[0] in own else "the model has no"
        raise CheckpointError(
            f"{str(path)!r} does not fit {type(bare).__name__}: {where} {names[0]!r}, and {len(names)} names "
            "differ in all. Build the model that was saved."
        )
    first: dict[tuple[object, ...], str] = {}
    for name, tensor in own.items():
        stored, twin = state[name], state[first.setdefault(identity(tensor), name)]
        if tensor.shape != stored.shape or tensor.dtype != stored.dtype or tensor.is_meta:
            raise CheckpointError(
                f"{name!r} in {str(path)!r} is {_describe(stored)}, in the model {_describe(tensor)}. "
                "Build the model that was saved, in its types, with memory of its own."
            )
        if stored is not twin and not torch.equal(stored, twin):
            raise CheckpointError(
                f"{first[identity(tensor)]!r} and {name!r} are one shared tensor in the model, but differ in "
                f"{str(path)!r}. Build the model that was saved."
            )
        if reason := why_not_writable(tensor):
            raise CheckpointError(
                f"{name!r} of {type(bare).__name__} cannot be filled from {str(path)!r}: {reason}"
            )
    bare.load_state_dict(state)


def _describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)} on {tensor.device.type}"
