"""The metadata of a sparse checkpoint: strings in the file, checked values in memory."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, cast

import torch

from secateur.checkpoint.coding import Part
from secateur.checkpoint.container import DIGEST
from secateur.checkpoint.rice import MAX_RICE
from secateur.counts import check_fraction
from secateur.errors import InvalidArgument
from secateur.files import parse_json

FORMAT = "secateur-sparse"
VERSION = "1"

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types that a pruned tensor may have, by their safetensors code."""
NARROW = ("F16", "BF16")
"""Types that its values may be stored in instead."""

_MAX_DIMS = 32
_REQUIRED = ("format", "version", "tensors", "n_parameters", "mask_digest", DIGEST)
_OPTIONAL = ("aliases", "sparsity_asked", "recipe")


@dataclass(frozen=True)
class SparseLayout:
    """How one pruned tensor is stored.

    Attributes:
        shape: Its shape.
        dtype: The safetensors code of its type when loaded, a key of `DTYPES`.
        value_dtype: The code of the type of its values in the file: the same, or a narrower one.
        index: Rice parameter and length in bytes of the index; parameter 0 is a flat bitmask.
        heads: The same of the heads of the values.
    """

    shape: tuple[int, ...]
    dtype: str
    value_dtype: str
    index: Part
    heads: Part

    @property
    def numel(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Metadata:
    """What a sparse checkpoint says about itself.

    Attributes:
        layouts: How each pruned tensor is stored, by state-dict name.
        n_parameters: Number of weights in all parameters of the model, a shared one once; buffers are none.
        mask_digest: ``Masks.digest`` of the masks.
        aliases: Further names of shared tensors, each with the name that the tensor is stored under.
        sparsity_asked: Sparsity that was asked for, in [0, 1); None if not recorded.
        recipe: How the model was made; None if not recorded.
    """

    layouts: Mapping[str, SparseLayout]
    n_parameters: int
    mask_digest: str
    aliases: Mapping[str, str] = field(default_factory=dict[str, str])
    sparsity_asked: float | None = None
    recipe: Mapping[str, Any] | None = None


def to_strings(metadata: Metadata) -> dict[str, str]:
    """The metadata as it stands in the file, without the content digest.

    Raises:
        InvalidArgument: if the recipe is not JSON.
    """
    layouts = {name: asdict(layout) for name, layout in metadata.layouts.items()}
    strings = {"format": FORMAT, "version": VERSION, "tensors": _compact(layouts)}
    if metadata.aliases:
        strings["aliases"] = _compact(metadata.aliases)
    strings |= {"n_parameters": str(metadata.n_parameters), "mask_digest": metadata.mask_digest}
    if metadata.sparsity_asked is not None:
        check_fraction("sparsity_asked", metadata.sparsity_asked, below_one=True)
        strings["sparsity_asked"] = repr(float(metadata.sparsity_asked))
    if metadata.recipe is not None:
        try:
            strings["recipe"] = _compact(dict(metadata.recipe))
            strings["recipe"].encode()
            _mapping("recipe", strings["recipe"])  # keys that are no text may become equal
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidArgument(
                f"the recipe must be JSON, got one that is not: {error}. Keep to text, finite numbers, lists "
                "and mappings."
            ) from error
    return strings


def from_strings(strings: Mapping[str, str]) -> Metadata:
    """The inverse of `to_strings`.

    Raises:
        ValueError: saying what is wrong with the metadata.
    """
    missing = [key for key in _REQUIRED if key not in strings]
    unknown = [key for key in strings if key not in _REQUIRED + _OPTIONAL]
    if missing or unknown:
        raise ValueError(f"metadata keys missing: {missing or 'none'}; unknown: {unknown or 'none'}")
    layouts = _mapping("tensors", strings["tensors"])
    aliases = _mapping("aliases", strings.get("aliases", "{}"))
    if not all(isinstance(name, str) for name in aliases.values()):
        raise ValueError("metadata 'aliases' must map names to names")
    "".join([*layouts, *aliases, *aliases.values()]).encode()  # a ValueError where they are no Unicode
    return Metadata(
        layouts={name: _layout(name, entry) for name, entry in layouts.items()},
        n_parameters=_count("n_parameters", strings["n_parameters"]),
        mask_digest=strings["mask_digest"],
        aliases=aliases,
        sparsity_asked=_sparsity(strings["sparsity_asked"]) if "sparsity_asked" in strings else None,
        recipe=_mapping("recipe", strings["recipe"]) if "recipe" in strings else None,
    )


def _layout(name: str, entry: object) -> SparseLayout:
    keys = [key.name for key in fields(SparseLayout)]
    if not isinstance(entry, dict) or sorted(cast("dict[str, object]", entry)) != sorted(keys):
        raise ValueError(f"the layout of {name!r} must have {', '.join(keys)}, and nothing else")
    shape, dtype, values, index, heads = (cast("dict[str, object]", entry)[key] for key in keys)
    sizes = _counts(name, "shape", shape)
    # An empty dimension hides the others from the count of weights, not from the strides of a tensor.
    if len(sizes) > _MAX_DIMS or math.prod(max(size, 1) for size in sizes) >= 2**63:
        raise ValueError(f"the shape of {name!r} is too large for a tensor")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"the type of {name!r} must be one of {', '.join(DTYPES)}, got {str(dtype)[:80]}")
    if values != dtype and (values not in NARROW or DTYPES[dtype].itemsize <= 2):
        raise ValueError(f"{dtype} values of {name!r} cannot be stored as {str(values)[:80]}")
    return SparseLayout(
        shape=sizes,
        dtype=dtype,
        value_dtype=cast("str", values),
        index=_part(name, "index", index),
        heads=_part(name, "heads", heads),
    )


def _part(name: str, key: str, value: object) -> Part:
    numbers = _counts(name, key, value)
    if len(numbers) != 2 or numbers[0] > MAX_RICE:
        raise ValueError(f"the {key} of {name!r} must be [Rice parameter ≤ {MAX_RICE}, number of bytes]")
    return numbers[0], numbers[1]


def _counts(name: str, key: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(_is_count(size) for size in cast("list[object]", value)):
        raise ValueError(f"the {key} of {name!r} must be a list of whole numbers, got {str(value)[:80]}")
    return tuple(cast("list[int]", value))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _mapping(key: str, text: str) -> dict[str, Any]:
    try:
        value = parse_json(text)
    except ValueError as error:
        raise ValueError(f"metadata {key!r} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"metadata {key!r} must be a JSON object")
    return cast("dict[str, Any]", value)


def _count(key: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ValueError(f"metadata {key!r} must be a whole number, got {text[:80]!r}")
    return int(text)


def _sparsity(text: str) -> float:
    value = parse_json(text)
    if not isinstance(value, float):
        raise ValueError(f"metadata 'sparsity_asked' must be a decimal number, got {text[:80]!r}")
    return check_fraction("metadata 'sparsity_asked'", value, below_one=True)


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
