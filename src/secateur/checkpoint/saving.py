"""Write a pruned model as a sparse checkpoint."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateur.checkpoint.coding import encode_tensor
from secateur.checkpoint.container import pack
from secateur.checkpoint.metadata import DTYPES, NARROW, Metadata, SparseLayout, to_strings
from secateur.errors import CheckpointError, InvalidArgument, SecateurWarning
from secateur.files import atomic_write
from secateur.masks import Masks, masks_from_zeros
from secateur.targets import parameters_by_name, select_targets, unwrap

_CODES = {dtype: code for code, dtype in DTYPES.items()}


def save_sparse(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    masks: Masks | None = None,
    value_dtype: torch.dtype | None = None,
    recipe: Mapping[str, Any] | None = None,
    sparsity_asked: float | None = None,
) -> None:
    """Write a pruned model as one small safetensors file, in the format of `docs/format.md`.

    Each masked tensor is stored as a coded index and its kept weights, without loss unless
    `value_dtype` asks for it; all else in the state dict as it is. The same model gives
    the same bytes. The file is written atomically.

    Args:
        model: The model, on any device, bare or wrapped by ``torch.compile`` or DistributedDataParallel.
        path: The file; its folder must exist.
        masks: What was kept; by default the weights that are not zero in what `select_targets` finds.
        value_dtype: Store kept weights of wider types as ``torch.float16`` or ``torch.bfloat16``,
            rounded; loading gives them their own type back. By default they are stored exactly.
        recipe: How the model was made, to be kept with it: anything that JSON can hold.
        sparsity_asked: The sparsity that was asked for, in [0, 1); `verify_checkpoint` compares.

    Raises:
        MaskError: if the masks do not fit the model, or a pruned weight is not zero.
        TargetError: without masks, if there is nothing prunable.
        InvalidArgument: if `value_dtype` is another type or too narrow for a weight, `recipe` is not
            JSON, or `sparsity_asked` is out of range.
        CheckpointError: if the state dict holds what the format cannot.
        RunError: if the file cannot be written.

    Warns:
        SecateurWarning: naming a tensor whose kept weights become zeros in `value_dtype`.
    """
    if value_dtype is not None and _CODES.get(value_dtype) not in NARROW:
        raise InvalidArgument(
            f"value_dtype must be None, torch.float16 or torch.bfloat16, got {value_dtype}."
        )
    bare = unwrap(model)
    masks = masks_from_zeros(bare, select_targets(bare)) if masks is None else masks
    masks.check(bare)
    stored, aliases = _split_shared(storable_state(bare), masks)
    entries: dict[str, Tensor] = {}
    layouts: dict[str, SparseLayout] = {}
    for name, tensor in stored.items():
        if name in masks:
            values = _convert(name, tensor[masks[name].to(tensor.device)], value_dtype)
            data, index, heads = encode_tensor(values.cpu(), masks[name].cpu())
            entries[name] = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else _NOTHING
            layouts[name] = SparseLayout(
                tuple(tensor.shape), _CODES[tensor.dtype], _CODES[values.dtype], index, heads
            )
        else:
            entries[name] = _copied(name, tensor)
    metadata = Metadata(
        layouts=layouts,
        n_parameters=sum(parameter.numel() for parameter in parameters_by_name(bare).values()),
        mask_digest=masks.digest,
        aliases=aliases,
        sparsity_asked=sparsity_asked,
        recipe=recipe,
    )
    atomic_write(path, pack(entries, to_strings(metadata)))


def _copied(name: str, tensor: Tensor) -> Tensor:
    """A copy on the CPU: safetensors refuses tensors that share memory, such as parts of one flat buffer."""
    try:
        return tensor.cpu().clone(memory_format=torch.contiguous_format)
    except NotImplementedError as error:
        raise CheckpointError(
            f"tensor {name!r} has type {tensor.dtype}, which torch cannot copy. Convert it to another type."
        ) from error


_NOTHING = torch.empty(0, dtype=torch.uint8)


def storable_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of a bare model, if the format can hold every entry of it.

    Raises:
        CheckpointError: naming an entry that it cannot hold.
    """
    state: dict[str, Any] = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"state-dict entry {name!r} is a {type(value).__name__}, not a tensor. "
                "A sparse checkpoint holds tensors only: make it a buffer, or leave it out of the state dict."
            )
        if value.is_meta or value.is_nested or value.layout is not torch.strided:
            layout = "nested" if value.is_nested else value.layout
            kind = "has no data (device meta)" if value.is_meta else f"has layout {layout}"
            raise CheckpointError(f"tensor {name!r} {kind}. Only ordinary dense tensors can be stored.")
        if name == "__metadata__":
            raise CheckpointError(f"tensor name {name!r} is reserved by safetensors. Rename the buffer.")
    return state


def _split_shared(state: Mapping[str, Tensor], masks: Masks) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Each tensor once, under its masked names or else its first one, and the further names of it."""
    stored: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[object, ...], str] = {}
    for name in masks:
        if name not in state:
            raise CheckpointError(f"the state dict of the model leaves out its masked parameter {name!r}.")
        if state[name].dtype not in _CODES:
            raise CheckpointError(
                f"pruned tensor {name!r} has type {state[name].dtype}; pruned tensors must be "
                f"{', '.join(str(dtype) for dtype in _CODES)}."
            )
    for name in sorted(state, key=lambda name: name not in masks):
        primary = first.setdefault(identity(state[name]), name)
        if primary == name or name in masks:
            stored[name] = state[name]
        else:
            aliases[name] = primary
    return stored, aliases


def identity(tensor: Tensor) -> tuple[object, ...]:
    """Equal for tensors that are the same elements of the same memory; empty tensors are all different."""
    if not tensor.numel():
        return (id(tensor),)
    signs = (tensor.is_neg(), tensor.is_conj())  # views that negate what they look at
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride(), *signs)


def _convert(name: str, values: Tensor, dtype: torch.dtype | None) -> Tensor:
    if dtype is None or values.element_size() <= dtype.itemsize:
        return values
    converted = values.to(dtype)
    if int(converted.isinf().sum()) > int(values.isinf().sum()):
        raise InvalidArgument(
            f"a weight of {name!r} is beyond the range of {dtype} (±{torch.finfo(dtype).max:g}). "
            "Use torch.bfloat16, or leave value_dtype out."
        )
    n_lost = int(((converted == 0) & (values != 0)).sum())
    if n_lost:
        warnings.warn(
            f"{n_lost} kept weights of {name!r} are too small for {dtype} and become zeros. "
            "Use torch.bfloat16, or leave value_dtype out.",
            SecateurWarning,
            stacklevel=3,
        )
    return converted
