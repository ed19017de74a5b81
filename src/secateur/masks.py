"""Masks: which weights stay. A fixed mapping, checked against its model, hashable, packed to bits at rest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from secateur.errors import MaskError
from secateur.kinds import check_kind
from secateur.naming import Named
from secateur.targets import parameters_by_name


class Masks(Mapping[str, Tensor]):
    """Boolean masks by parameter name; True = keep.

    The tensors are taken over, not copied; nobody may write to them afterwards. Names are state-dict
    names; a parameter that is shared between modules appears once.

    Args:
        masks: One ``torch.bool`` tensor a parameter, shaped like it.

    Raises:
        MaskError: if a tensor is not boolean, or there is none.
    """

    def __init__(self, masks: Named) -> None:
        if not masks:
            raise MaskError("masks must name at least one parameter.")
        for name, mask in masks.items():
            if mask.dtype is not torch.bool:
                raise MaskError(f"mask {name!r} must be torch.bool, got {mask.dtype}. True means keep.")
        self._masks = {name: mask.detach() for name, mask in masks.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Masks) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Masks({len(self)} tensors, sparsity={self.sparsity:.4f}, {self.n_keep} of {self.numel} kept)"

    def __and__(self, other: Masks) -> Masks:
        """What both keep; a tensor that only one of them names keeps that one's mask.

        Raises:
            MaskError: if a tensor has two shapes.
        """
        for name in self:
            if name in other and self[name].shape != other[name].shape:
                shapes = f"{tuple(self[name].shape)} and {tuple(other[name].shape)}"
                raise MaskError(f"masks of {name!r} have shapes {shapes}; they were made for two models.")
        return Masks({**self, **other, **{name: self[name] & other[name] for name in self if name in other}})

    @property
    def numel(self) -> int:
        """Number of weights under the masks."""
        return sum(mask.numel() for mask in self._masks.values())

    @property
    def n_keep(self) -> int:
        """Number of weights kept."""
        return sum(int(mask.sum()) for mask in self._masks.values())

    @property
    def n_prune(self) -> int:
        """Number of weights removed."""
        return self.numel - self.n_keep

    @property
    def sparsity(self) -> float:
        """Fraction of weights removed, in [0, 1]."""
        return self.n_prune / self.numel if self.numel else 0.0

    def density(self, name: str) -> float:
        """Fraction of tensor `name` kept, in [0, 1]."""
        mask = self._masks[name]
        return int(mask.sum()) / mask.numel() if mask.numel() else 1.0

    @property
    def digest(self) -> str:
        """SHA-256 over names, shapes and bits in order of name: equal on every rank, device and system."""
        sha = hashlib.sha256()
        for name in sorted(self._masks):
            mask = self._masks[name]
            sha.update(f"{name}\0{tuple(mask.shape)}\0".encode())
            sha.update(pack_bits(mask))
        return "sha256:" + sha.hexdigest()

    def to(self, device: torch.device | str) -> Masks:
        """The same masks on another device."""
        return Masks({name: mask.to(device) for name, mask in self._masks.items()})

    def check(self, model: nn.Module) -> None:
        """Verify that every pruned weight of `model` is exactly zero.

        Raises:
            MaskError: naming the first tensor with a missing name, another shape, or a weight that came back.
        """
        parameters = self.match(model)
        for name, mask in self._masks.items():
            weight = parameters[name]
            revived = int((local_part(weight)[~local_mask(mask, weight)] != 0).sum())
            if revived:
                raise MaskError(
                    f"{revived} pruned weights of {name!r} are no longer zero. "
                    "Train inside keep_masks(model, optimizer, masks)."
                )

    def match(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The parameters of `model` that the masks name.

        Raises:
            MaskError: if one is missing or has another shape.
        """
        parameters = parameters_by_name(model)
        for name, mask in self._masks.items():
            if name not in parameters:
                raise MaskError(
                    f"the model has no parameter {name!r}; these masks were made for another model."
                )
            if parameters[name].shape != mask.shape:
                shapes = f"{tuple(mask.shape)}, the parameter {tuple(parameters[name].shape)}"
                raise MaskError(f"mask {name!r} has shape {shapes}; these masks were made for another model.")
        return {name: parameters[name] for name in self._masks}


def apply_masks(model: nn.Module, masks: Masks) -> None:
    """Set every pruned weight of `model` to exactly +0.0, in place.

    Raises:
        MaskError: if the masks do not fit; the model is untouched then.
    """
    check_kind("masks", masks, Masks, "what allocate or cut returns, or Masks({name: mask})")
    with torch.no_grad():
        for name, parameter in masks.match(model).items():
            local_part(parameter).masked_fill_(~local_mask(masks[name], parameter), 0.0)


def local_part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor that FSDP2 or tensor parallelism has sharded; else the tensor itself.

    Detached, over the same memory: writing to it writes to the tensor.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        from torch.distributed.tensor import DTensor

        if isinstance(tensor, DTensor):
            return tensor.to_local().detach()
    return tensor.detach()


def local_mask(mask: Tensor, parameter: Tensor) -> Tensor:
    """The part of `mask` that belongs to `local_part` of `parameter`, on its device and laid out like it.

    With another layout, channels-last weights would be masked several times slower.
    """
    mask = mask.to(parameter.device)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        from torch.distributed.tensor import DTensor, distribute_tensor

        if isinstance(parameter, DTensor):
            # As bytes: not every backend can send booleans.
            mask = distribute_tensor(mask.byte(), parameter.device_mesh, parameter.placements).to_local()
    return torch.empty_like(local_part(parameter), dtype=torch.bool).copy_(mask)


def masks_from_zeros(model: nn.Module, names: Mapping[str, object]) -> Masks:
    """Masks that keep exactly the weights of `model` that are not zero, for the given parameter names."""
    parameters = parameters_by_name(model)
    return Masks({name: parameters[name].detach() != 0 for name in names})


def pack_bits(mask: Tensor) -> bytes:
    """A boolean tensor as ``ceil(n / 8)`` bytes: flattened in C order, first element in the lowest bit."""
    return np.packbits(mask.detach().cpu().numpy().reshape(-1), bitorder="little").tobytes()


def unpack_bits(data: bytes, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `pack_bits`.

    Raises:
        MaskError: if the number of bytes does not fit the shape, or a bit past the end is set.
    """
    n = int(np.prod(shape, dtype=np.int64))
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    if len(data) != -(-n // 8) or bits[n:].any():
        raise MaskError(f"{len(data)} packed bytes do not hold a mask of shape {shape} ({n} bits).")
    return torch.from_numpy(bits[:n].astype(bool).reshape(shape))
