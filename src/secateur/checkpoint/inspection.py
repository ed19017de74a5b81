"""Look into a checkpoint: what it holds, what it saves, and whether all of it is right."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from secateur.checkpoint.container import DIGEST, Container, read
from secateur.checkpoint.loading import SparseCheckpoint, decode, decode_checked, is_sparse, refuse_plan
from secateur.counts import n_prune
from secateur.errors import CheckpointError


@dataclass(frozen=True)
class TensorRow:
    """One tensor of a checkpoint.

    Attributes:
        name: State-dict name.
        shape: Shape when loaded.
        dtype: Safetensors code of its type in the file; narrower than the loaded one if saved so.
        density: Fraction kept, in [0, 1]; without a mask, the fraction that is not zero.
        coding: That of its index, "bitmask" or "rice-1" … "rice-7"; else "dense" or "alias of NAME".
        size_bytes: Bytes in the file, without the header.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    density: float
    coding: str
    size_bytes: int


@dataclass(frozen=True)
class Inspection:
    """What a checkpoint file holds.

    Attributes:
        path: The file.
        kind: "sparse", or "dense" for plain safetensors.
        size_bytes: Size of the file.
        dense_size_bytes: Size of the same tensors as plain safetensors without metadata.
        ratio: How many times smaller the file is than that.
        sparsity: Fraction removed of the weights under masks, in [0, 1]; None for a dense file.
        sparsity_all: Fraction removed of all parameters, in [0, 1]; None for a dense file.
        sparsity_asked: Sparsity asked for; None if not recorded.
        n_prune: Number of weights removed; None for a dense file.
        n_parameters: Number of weights in all parameters; None for a dense file.
        mask_digest: ``Masks.digest``; None for a dense file.
        recipe: How the model was made; None if not recorded.
        rows: The tensors, in order of name.
    """

    path: str
    kind: str
    size_bytes: int
    dense_size_bytes: int
    ratio: float
    sparsity: float | None
    sparsity_all: float | None
    sparsity_asked: float | None
    n_prune: int | None
    n_parameters: int | None
    mask_digest: str | None
    recipe: Mapping[str, Any] | None
    rows: tuple[TensorRow, ...]

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values that JSON can hold."""
        return asdict(self)


@dataclass(frozen=True)
class Check:
    """One question asked of a checkpoint: its name, whether the answer is good, and the figures."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class Verification:
    """Answers of `verify_checkpoint`.

    Attributes:
        path: The file.
        checks: One entry a question, in the order they were asked.
    """

    path: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether every answer is good."""
        return all(check.ok for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values that JSON can hold, with ``ok``."""
        return {**asdict(self), "ok": self.ok}


def inspect_checkpoint(path: str | os.PathLike[str]) -> Inspection:
    """What a sparse checkpoint or a plain safetensors file holds.

    Raises:
        CheckpointError: if the file is missing or damaged, or is a plan.
    """
    return inspect_container(read(Path(path)), path)


def inspect_container(container: Container, path: str | os.PathLike[str]) -> Inspection:
    """The same of a file that has been read already.

    Raises:
        CheckpointError: if it is damaged, or is a plan.
    """
    refuse_plan(container, path)
    if not is_sparse(container):
        return _inspect_dense(container, path)
    checkpoint = decode_checked(container, path)
    masks, metadata = checkpoint.masks, checkpoint.metadata
    stored = {n: t for n, t in checkpoint.state_dict.items() if n not in metadata.aliases}
    dense_size_bytes = len(save({name: tensor.contiguous() for name, tensor in stored.items()}))
    return Inspection(
        path=str(path),
        kind="sparse",
        size_bytes=container.size_bytes,
        dense_size_bytes=dense_size_bytes,
        ratio=dense_size_bytes / container.size_bytes,
        sparsity=masks.sparsity,
        sparsity_all=masks.n_prune / metadata.n_parameters if metadata.n_parameters else 0.0,
        sparsity_asked=metadata.sparsity_asked,
        n_prune=masks.n_prune,
        n_parameters=metadata.n_parameters,
        mask_digest=masks.digest,
        recipe=metadata.recipe,
        rows=tuple(_sparse_row(name, container, checkpoint) for name in sorted(checkpoint.state_dict)),
    )


def verify_checkpoint(path: str | os.PathLike[str]) -> Verification:
    """Check everything that a sparse checkpoint claims.

    The questions: can it be decoded, is the content what was written, do the masks have the
    recorded digest, are all numbers finite (but for −∞ in buffers, with which attention masks forbid
    places), and is exactly as much pruned as was asked for (over all weights, or in each tensor). That
    pruned weights are zero is no question: they are not stored.

    Returns:
        The answers. A file that is missing, cannot be decoded, or is no sparse checkpoint, has the
        first one only, with the reason.
    """
    try:
        container = read(Path(path))
        checkpoint = decode(container, path)
    except CheckpointError as error:
        return Verification(str(path), (Check("decodes", False, str(error)),))
    found = f"{len(checkpoint.state_dict)} tensors, {len(checkpoint.masks)} of them sparse"
    checks = (
        Check("decodes", True, found),
        _compare("content digest", container.content_digest, container.metadata[DIGEST]),
        _compare("mask digest", checkpoint.masks.digest, checkpoint.metadata.mask_digest),
        _check_finite(checkpoint),
        _check_sparsity(checkpoint),
    )
    return Verification(str(path), checks)


def _inspect_dense(container: Container, path: str | os.PathLike[str]) -> Inspection:
    dense_size_bytes = len(save(dict(container.tensors)))
    return Inspection(
        path=str(path),
        kind="dense",
        size_bytes=container.size_bytes,
        dense_size_bytes=dense_size_bytes,
        ratio=dense_size_bytes / container.size_bytes,
        sparsity=None,
        sparsity_all=None,
        sparsity_asked=None,
        n_prune=None,
        n_parameters=None,
        mask_digest=None,
        recipe=None,
        rows=tuple(_dense_row(name, container) for name in sorted(container.tensors)),
    )


def _dense_row(name: str, container: Container) -> TensorRow:
    tensor = container.tensors[name]
    density = int((tensor != 0).sum()) / tensor.numel() if tensor.numel() else 1.0
    return TensorRow(name, tuple(tensor.shape), container.dtypes[name], density, "dense", tensor.nbytes)


def _sparse_row(name: str, container: Container, checkpoint: SparseCheckpoint) -> TensorRow:
    metadata = checkpoint.metadata
    if name in metadata.aliases:
        primary = metadata.aliases[name]
        row = _sparse_row(primary, container, checkpoint)
        return TensorRow(name, row.shape, row.dtype, row.density, f"alias of {primary}", 0)
    if name not in metadata.layouts:
        return _dense_row(name, container)
    layout = metadata.layouts[name]
    return TensorRow(
        name,
        layout.shape,
        layout.value_dtype,
        checkpoint.masks.density(name),
        f"rice-{layout.index[0]}" if layout.index[0] else "bitmask",
        container.tensors[name].nbytes,
    )


def _compare(name: str, found: str, recorded: str) -> Check:
    same = found == recorded
    return Check(name, same, found if same else f"recomputed {found}, recorded {recorded[:80]}")


def _check_finite(checkpoint: SparseCheckpoint) -> Check:
    metadata = checkpoint.metadata
    state = {name: t for name, t in checkpoint.state_dict.items() if name not in metadata.aliases}
    floats = {name: _as_float(t) for name, t in state.items() if t.is_floating_point() or t.is_complex()}
    bad = sorted(name for name, tensor in floats.items() if not torch.isfinite(tensor).all())
    if not bad:
        return Check("finite", True, "no NaN, no infinity")
    # The file does not name its buffers; how large they are together is what its parameters leave.
    n_in_buffers = sum(tensor.numel() for tensor in state.values()) - metadata.n_parameters
    fitting = sum(floats[name].numel() for name in bad) <= n_in_buffers
    if fitting and all(name not in checkpoint.masks and _forbids(floats[name]) for name in bad):
        return Check("finite", True, f"no NaN; −∞ in {', '.join(bad)}, as in a buffer that forbids places")
    return Check("finite", False, f"NaN or infinity in {', '.join(bad)}")


def _forbids(tensor: Tensor) -> bool:
    """Whether all that is not finite is −∞, as in what is added to attention to forbid places."""
    return not tensor.is_complex() and bool((torch.isfinite(tensor) | torch.isneginf(tensor)).all())


def _as_float(tensor: Tensor) -> Tensor:
    """The 8-bit floats, which know few operations of their own, as wider ones."""
    return tensor.float() if tensor.element_size() == 1 else tensor


def _check_sparsity(checkpoint: SparseCheckpoint) -> Check:
    masks, asked = checkpoint.masks, checkpoint.metadata.sparsity_asked
    n_zeros = sum(int((mask & (checkpoint.state_dict[name] == 0)).sum()) for name, mask in masks.items())
    too = f" ({n_zeros} of those kept are zero too)" if n_zeros else ""
    achieved = f"{masks.n_prune} of {masks.numel} weights pruned{too}"
    if asked is None:
        return Check("sparsity", True, f"{achieved}; what was asked is not recorded")
    wanted = n_prune(masks.numel, asked)
    if masks.n_prune == wanted:
        return Check("sparsity", True, f"{achieved}, exactly the {asked:g} asked for")
    if all(int((~mask).sum()) == n_prune(mask.numel(), asked) for mask in masks.values()):
        return Check("sparsity", True, f"{achieved}, exactly the {asked:g} asked for in each tensor")
    return Check("sparsity", False, f"{achieved}; the {asked:g} asked for is {wanted}")
