"""Plan files at the level of bytes: a safetensors file read and written with NumPy alone."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from secateur.errors import PlanError
from secateur.files import atomic_path, parse_json

FORMAT, VERSION = "secateur-plan", "1"
_DTYPES = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "U8": np.dtype("u1"),
}
_ENTRY_KEYS = {"dtype", "shape", "data_offsets"}
_METADATA_KEYS = {"format", "version", "content_digest"}
PROGRAM = "__program__"
"""Entry that holds the program, compressed."""
MAX_PROGRAM_BYTES = 1 << 28
"""A program that unpacks to more is refused: 256 MiB."""
VALUES, INDEX = ".values", ".index"
"""Endings of the two entries of a weight that is stored without its zeros."""
_ALIGNMENT = 8

Entry = tuple[str, NDArray[Any]]
"""safetensors code of the type, such as "F32", and the numbers; of BF16 their bits."""


def write_container(path: str | os.PathLike[str], program: str, entries: Mapping[str, Entry]) -> None:
    """Write a plan file, wholly or not at all.

    Args:
        path: The file to create or replace; its folder must exist.
        program: The program as JSON text.
        entries: Arrays by name. They are written widest type first, then by name.

    Raises:
        RunError: if the file cannot be written.
    """
    code = np.frombuffer(zlib.compress(program.encode(), 9), np.uint8)
    entries = {**entries, PROGRAM: ("U8", code)}
    order = sorted(entries, key=lambda name: (-entries[name][1].itemsize, name))
    header: dict[str, object] = {}
    offset = 0
    for name in order:
        code, array = entries[name]
        ends = [offset, offset + array.nbytes]
        header[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": ends}
        offset = ends[1]
    blocks = [np.ascontiguousarray(entries[name][1]).astype(_DTYPES[entries[name][0]]) for name in order]
    digest = hashlib.sha256(b"".join(block.tobytes() for block in blocks)).hexdigest()
    metadata = {"format": FORMAT, "version": VERSION, "content_digest": f"sha256:{digest}"}
    text = json.dumps(
        {"__metadata__": metadata, **header}, separators=(",", ":"), ensure_ascii=False
    ).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for block in blocks:
            file.write(block.tobytes())


def read_container(path: str | os.PathLike[str]) -> tuple[str, dict[str, Entry]]:
    """The program text and the entries of a plan file. The arrays are read-only views of its bytes.

    Raises:
        PlanError: if there is no such file, or it is not a well-formed plan file of this version.
    """
    if not isinstance(path, str | os.PathLike):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise PlanError(f"a plan is read from a path, got {type(path).__name__}. Name its file.")
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise PlanError(f"cannot read {str(path)!r}: {error.strerror or error}. Check the path.") from error
    try:
        return _parsed(content)
    except ValueError as error:
        raise PlanError(
            f"{str(path)!r} is not a plan file of version {VERSION}: {error}. Compile or fetch it again."
        ) from error


def _parsed(content: bytes) -> tuple[str, dict[str, Entry]]:
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > len(content) - 8:
        raise ValueError("it ends within its header")
    header = parse_json(content[8 : 8 + length])
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    header = cast("dict[str, Any]", header)
    metadata = _checked_metadata(header.pop("__metadata__", None))
    data = memoryview(content)[8 + length :]
    entries: dict[str, Entry] = {}
    offset = 0
    for name, entry in header.items():
        entries[name] = _entry(name, entry, data, offset)
        offset += entries[name][1].nbytes
    if offset != len(data):
        raise ValueError(f"{len(data) - offset} bytes at its end belong to no entry")
    if metadata["content_digest"] != f"sha256:{hashlib.sha256(data).hexdigest()}":
        raise ValueError("its content does not agree with its digest")
    return _program(entries), entries


def _program(entries: dict[str, Entry]) -> str:
    """The text of the program; takes its entry away."""
    code, packed = entries.pop(PROGRAM, ("", np.empty(0, np.uint8)))
    if code != "U8":
        raise ValueError("it holds no program")
    unpacking = zlib.decompressobj()
    try:
        text = unpacking.decompress(packed.tobytes(), MAX_PROGRAM_BYTES)
    except zlib.error as error:
        raise ValueError(f"its program does not unpack: {error}") from error
    if not unpacking.eof or unpacking.unused_data:
        raise ValueError("its program is truncated, followed by something, or too long")
    return text.decode()


def _checked_metadata(metadata: object) -> dict[str, str]:
    if not isinstance(metadata, dict):
        raise ValueError("its header has no metadata")
    found = cast("dict[str, object]", metadata)
    if found.get("format") != FORMAT or found.get("version") != VERSION:
        raise ValueError(f"format and version are {found.get('format')!r} and {found.get('version')!r}")
    if set(found) != _METADATA_KEYS or not all(isinstance(value, str) for value in found.values()):
        raise ValueError(f"its metadata must be the texts {', '.join(sorted(_METADATA_KEYS))}")
    return cast("dict[str, str]", found)


def _entry(name: str, entry: object, data: memoryview, offset: int) -> Entry:
    """One entry, which must begin at `offset`: there are no gaps."""
    if not isinstance(entry, dict) or set(cast("dict[str, object]", entry)) != _ENTRY_KEYS:
        raise ValueError(f"entry {name!r} must have the keys {', '.join(sorted(_ENTRY_KEYS))}")
    fields = cast("dict[str, Any]", entry)
    code, shape, ends = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(code, str) or code not in _DTYPES:
        raise ValueError(f"entry {name!r} has the unknown type {code!r}")
    if not (_whole_numbers(shape) and len(shape) <= 32 and _whole_numbers(ends) and len(ends) == 2):
        raise ValueError(f"shape and offsets of entry {name!r} are no lists of whole numbers")
    size = _DTYPES[code].itemsize
    for n in shape:
        size *= n
    if ends != [offset, offset + size] or ends[1] > len(data):
        raise ValueError(f"entry {name!r} of {size} bytes does not lie at offset {offset}")
    array = np.frombuffer(data[ends[0] : ends[1]], _DTYPES[code])
    return code, array.reshape(shape)


def _whole_numbers(found: object) -> bool:
    return isinstance(found, list) and all(
        type(n) is int and 0 <= n < 2**48 for n in cast("list[object]", found)
    )
