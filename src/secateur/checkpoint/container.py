"""safetensors files with metadata in a fixed order and a digest over all of their content.

The safetensors package writes metadata in random order (safetensors/safetensors#584), so the same
network would give another file each time. Here the package writes the tensors, and the metadata
is put into its header in the order given.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from secateur.errors import CheckpointError
from secateur.files import parse_json

DIGEST = "content_digest"
_METADATA = "__metadata__"
_ALIGNMENT = 8
_MOST_HEADER = 100_000_000
"""What safetensors reads."""


@dataclass(frozen=True)
class Container:
    """What a safetensors file holds.

    Attributes:
        metadata: Its metadata, empty if there is none.
        dtypes: The safetensors code of each tensor's type, by name, such as "F32".
        tensors: The tensors by name.
        content_digest: SHA-256 over the header, less the digest it may hold, and the data.
        size_bytes: Size of the file.
    """

    metadata: Mapping[str, str]
    dtypes: Mapping[str, str]
    tensors: Mapping[str, Tensor]
    content_digest: str
    size_bytes: int


def pack(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a safetensors file, equal for equal input; the content digest is added last.

    Args:
        tensors: Contiguous tensors that share no memory, by name.
        metadata: In the order to be written.

    Raises:
        CheckpointError: if safetensors has no code for the type of a tensor, or cannot read what it writes.
    """
    try:
        plain = save(dict(tensors))
        for dtype in {tensor.dtype for tensor in tensors.values()}:
            load(save({"": torch.empty(0, dtype=dtype)}))
    except (SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"safetensors cannot hold this state dict: {error}. Convert such tensors to a type that it knows."
        ) from error
    start = 8 + int.from_bytes(plain[:8], "little")
    header = {_METADATA: dict(metadata), **json.loads(plain[8:start])}
    data = memoryview(plain)[start:]
    header[_METADATA][DIGEST] = _digest(header, data)
    text = _compact(header)
    text += b" " * (-len(text) % _ALIGNMENT)
    if len(text) > _MOST_HEADER:
        raise CheckpointError(
            f"names and metadata take {len(text)} bytes, a safetensors file has room for {_MOST_HEADER}. "
            "Store a shorter recipe."
        )
    return b"".join((len(text).to_bytes(8, "little"), text, data))


def read(path: Path) -> Container:
    """Everything in a safetensors file.

    Raises:
        CheckpointError: if there is no such file, or it is not a well-formed safetensors file.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {str(path)!r}; check the path.")
    try:
        content = path.read_bytes()
        tensors = load(content)
        start = 8 + int.from_bytes(content[:8], "little")
        header = cast("dict[str, dict[str, str]]", parse_json(content[8:start]))
        metadata = header.get(_METADATA) or {}  # null is none to safetensors
        return Container(
            metadata=metadata,
            dtypes={name: entry["dtype"] for name, entry in header.items() if name != _METADATA},
            tensors=tensors,
            content_digest=_digest({**header, _METADATA: metadata}, memoryview(content)[start:]),
            size_bytes=len(content),
        )
    # A damaged header takes the reader to any of these: it leaves shapes and types to torch.
    except (
        SafetensorError,
        OSError,
        ValueError,
        TypeError,
        LookupError,
        ArithmeticError,
        RuntimeError,
    ) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{str(path)!r} is not a readable safetensors file ({reason}). Fetch or save it again."
        ) from error


def _digest(header: Mapping[str, Mapping[str, object]], data: memoryview) -> str:
    metadata = {key: value for key, value in header[_METADATA].items() if key != DIGEST}
    sha = hashlib.sha256(_compact({**header, _METADATA: metadata}, sort_keys=True))
    sha.update(data)
    return "sha256:" + sha.hexdigest()


def _compact(value: object, *, sort_keys: bool = False) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, sort_keys=sort_keys).encode()
