"""Read trained weights from a file into a model, all of them or none."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from secateur.checkpoint import load_sparse
from secateur.checkpoint.metadata import FORMAT
from secateur.errors import ModelError
from secateur.modules import check_has_shapes

_TORCH_SUFFIXES = (".pt", ".pth", ".th", ".bin")
_SHOWN = 5


def load_weights(model: nn.Module, path: Path | str) -> None:
    """Fill `model` from a file, in place.

    Safetensors files may be plain or secateur's sparse format. Files of ``torch.save``
    (``.pt``, ``.pth``, ``.th``, ``.bin``) are read without unpickling code; a dictionary inside
    "state_dict" or "model" is taken out, and the prefix "module." of DataParallel dropped.

    Every name and shape must fit. The one exception is ``num_batches_tracked``, a counter that
    older files lack: it may be missing, and then stays as it is.

    Args:
        model: The model; it is untouched if anything is wrong.
        path: The file.

    Raises:
        ModelError: if the file is missing or unreadable, or names or shapes differ from the model's,
            or a lazy layer of it has seen no input yet, or it has no memory (device meta).
        CheckpointError: if a sparse checkpoint is malformed or does not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"there is no weight file {str(path)!r}; check the path.")
    if path.suffix == ".safetensors" or (path.suffix in _TORCH_SUFFIXES and _is_safetensors(path)):
        if _metadata(path).get("format") == FORMAT:
            load_sparse(path, into=model)
            return
        state: Mapping[str, Tensor] = load_file(path)
    elif path.suffix in _TORCH_SUFFIXES:
        state = _read_torch(path)
    else:
        allowed = ", ".join((".safetensors", *_TORCH_SUFFIXES))
        raise ModelError(f"weight file {path.name!r} ends in {path.suffix!r}; the ending must be {allowed}.")
    _check(model, state, path)
    model.load_state_dict(state, strict=False)  # strict but for the counters, see _check


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins as one of safetensors does, whatever it is called: a length, and JSON of it."""
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def _metadata(path: Path) -> Mapping[str, str]:
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as cause:
        raise ModelError(
            f"{str(path)!r} is not a readable safetensors file ({cause}). Fetch or save it again."
        ) from cause


def _read_torch(path: Path) -> Mapping[str, Tensor]:
    try:
        found: object = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as cause:  # a damaged file can raise whatever its bytes make of torch.load
        if isinstance(cause, pickle.UnpicklingError):  # its text is torch's advice to run what is in the file
            raise ModelError(
                f"{str(path)!r} is not a file of plain tensors: it holds more, such as a whole model, whose "
                "code is not run, or is damaged. Fetch it again, or save model.state_dict() if you trust it."
            ) from cause
        reason = f"{type(cause).__name__}: {cause}".partition("\n")[0]
        raise ModelError(
            f"{str(path)!r} is not a file of plain tensors ({reason}). "
            "Fetch it again if it is damaged, or save model.state_dict() with torch.save or safetensors."
        ) from cause
    for key in ("state_dict", "model"):
        inner = cast("dict[str, object]", found).get(key) if isinstance(found, dict) else None
        found = inner if isinstance(inner, Mapping) else found
    if not isinstance(found, Mapping):
        raise ModelError(f"{str(path)!r} holds a {type(found).__name__}, not a dictionary of tensors.")
    state = cast("Mapping[str, object]", found)
    wrong = [str(name) for name, value in state.items() if not _is_entry(name, value)]
    if wrong:
        raise ModelError(f"{str(path)!r} holds entries that are not named tensors: {_some(wrong)}.")
    tensors = cast("Mapping[str, Tensor]", state)
    if tensors and all(name.startswith("module.") for name in tensors):
        return {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


def _is_entry(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor)


def _check(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    check_has_shapes(model, ModelError)
    own = model.state_dict()
    if without := [name for name, tensor in own.items() if isinstance(tensor, Tensor) and tensor.is_meta]:
        raise ModelError(
            f"{type(model).__name__} is on the device meta, where tensors have no memory to fill: "
            f"{_some(without)}. Build it on another device, or give it memory with to_empty(device='cpu')."
        )
    missing = [n for n in own if n not in state and n.rpartition(".")[2] != "num_batches_tracked"]
    unexpected = [n for n in state if n not in own]
    misshapen = [
        f"{n} {tuple(state[n].shape)} instead of {tuple(own[n].shape)}"
        for n in own
        if n in state and state[n].shape != own[n].shape
    ]
    lists = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    problems = [f"{len(names)} {word}: {_some(names)}" for word, names in lists.items() if names]
    if problems:
        raise ModelError(
            f"{str(path)!r} does not fit {type(model).__name__}. {'; '.join(problems)}. "
            "Build the model these weights were trained in, with the same number of classes and channels."
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
