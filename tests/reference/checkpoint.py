"""A slow reader of sparse checkpoints, bit by bit from docs/format.md; uses nothing of secateur."""

import hashlib
import json
import math
import struct
from dataclasses import dataclass

FLOATS = {"F64": "d", "F32": "f", "F16": "e"}
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


@dataclass
class ReferenceTensor:
    shape: list[int]
    mask: list[bool]
    weights: list[float]
    """As the float that the value bits stand for; 0.0 where pruned."""


def split_file(data: bytes) -> tuple[dict, bytes]:
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def content_digest(header: dict, payload: bytes) -> str:
    metadata = {key: value for key, value in header["__metadata__"].items() if key != "content_digest"}
    canonical = {**header, "__metadata__": metadata}
    text = json.dumps(canonical, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return "sha256:" + hashlib.sha256(text.encode() + payload).hexdigest()


def read_sparse(data: bytes) -> dict[str, ReferenceTensor]:
    header, payload = split_file(data)
    found = {}
    for name, layout in json.loads(header["__metadata__"]["tensors"]).items():
        start, end = header[name]["data_offsets"]
        found[name] = read_tensor(payload[start:end], layout)
    return found


def read_tensor(entry: bytes, layout: dict) -> ReferenceTensor:
    numel = math.prod(layout["shape"])
    size = SIZES[layout["value_dtype"]]
    (index_rice, index_bytes), (heads_rice, heads_bytes) = layout["index"], layout["heads"]
    index = entry[:index_bytes]
    heads = entry[index_bytes : index_bytes + heads_bytes]
    tails = entry[index_bytes + heads_bytes :]
    n_keep = len(tails) // (size - 1)
    values = read_values(heads, heads_rice, tails, layout["value_dtype"]) if n_keep else []
    lists_kept = n_keep <= numel - n_keep
    mask = [not lists_kept] * numel
    position = -1
    for gap in read_rice(index, index_rice, min(n_keep, numel - n_keep)):
        position += gap + 1
        mask[position] = lists_kept
    queue = iter(values)
    return ReferenceTensor(layout["shape"], mask, [next(queue) if keep else 0.0 for keep in mask])


def read_values(heads: bytes, rice: int, tails: bytes, dtype: str) -> list[float]:
    size = SIZES[dtype]
    table, code = heads[1 : heads[0] + 2], heads[heads[0] + 2 :]
    n_keep = len(tails) // (size - 1)
    values = []
    for i, rank in enumerate(read_rice(code, rice, n_keep)):
        tail = tails[i * (size - 1) : (i + 1) * (size - 1)]
        rotated = int.from_bytes(tail + table[rank : rank + 1], "little")
        bits = rotated >> 1 | (rotated & 1) << (8 * size - 1)
        values.append(read_float(bits, dtype))
    return values


def read_rice(code: bytes, rice: int, count: int) -> list[int]:
    low_bytes = math.ceil(count * rice / 8)
    unary = bits_of(code[: len(code) - low_bytes])
    low = bits_of(code[len(code) - low_bytes :])
    numbers = []
    at = 0
    for i in range(count):
        high = 0
        while not unary[at]:
            high += 1
            at += 1
        at += 1
        numbers.append(high << rice | sum(low[i * rice + k] << k for k in range(rice)))
    return numbers


def bits_of(data: bytes) -> list[int]:
    return [byte >> k & 1 for byte in data for k in range(8)]


def read_float(bits: int, dtype: str) -> float:
    if dtype == "BF16":
        return struct.unpack("<f", struct.pack("<I", bits << 16))[0]
    return struct.unpack("<" + FLOATS[dtype], bits.to_bytes(SIZES[dtype], "little"))[0]
