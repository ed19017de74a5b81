"""What the attributes of each operation may be: the table of `docs/plan.md` as code."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, cast

ACTIVATIONS = (
    "none",
    "relu",
    "relu6",
    "silu",
    "gelu",
    "gelu_tanh",
    "hardswish",
    "hardsigmoid",
    "sigmoid",
    "tanh",
    "exp",
    "log",
    "log1p",
    "sqrt",
    "erf",
    "sin",
    "cos",
    "floor",
    "round",
)
COMPARISONS = ("equal", "less", "less_equal")
"""Operations whose result is a condition: 1 where it holds, 0 where not."""
KERNELS = {
    "conv": ("dense", "winograd", "rows"),
    "linear": ("dense", "rows", "gather"),
}
"""Kernels that the format knows, by operation."""
WITH_ZEROS = ("dense", "winograd")
"""Kernels that multiply with zeros too."""
WEIGHTS_OF = ("weight", "bias", "scale", "shift")
"""Attributes that name weights."""
MAX_DIMS = 32
_MAX = 2**31 - 1
_MOST_PIXELS = 2**24
"""Of a window, a step of one, a dilation or a margin."""

Allows = Callable[[object], bool]


def is_int(low: int, high: int = _MAX) -> Allows:
    """Whole numbers in low … high."""
    return lambda x: type(x) is int and low <= x <= high


def is_list(allows: Allows, size: int | None = None) -> Allows:
    """Lists of such elements, of this length if it is given, of at most `MAX_DIMS` otherwise."""

    def check(x: object) -> bool:
        if not isinstance(x, list):
            return False
        items = cast("list[object]", x)
        return (len(items) == size if size is not None else len(items) <= MAX_DIMS) and all(
            map(allows, items)
        )

    return check


def is_shape(x: object, *, batch: bool) -> bool:
    """Whether a list is a shape: of dimensions ≥ 1 and, with `batch`, at most one −k; 0 only without."""
    low = -_MAX if batch else 0
    if not is_list(is_int(low))(x):
        return False
    dims = cast("list[int]", x)
    return not batch or (0 not in dims and sum(d < 0 for d in dims) <= 1)


def fields_of(content: object, keys: tuple[str, ...], what: str) -> dict[str, Any]:
    """A JSON object that has exactly these keys.

    Raises:
        ValueError: if it has others, or is no object.
    """
    if not isinstance(content, dict) or set(cast("dict[str, object]", content)) != set(keys):
        raise ValueError(f"{what} must be an object with the keys {', '.join(keys)}")
    return cast("dict[str, Any]", content)


def _is_number(x: object) -> bool:
    return is_int(-(2**63), 2**63 - 1)(x) or (type(x) is float and math.isfinite(x))


def _is_number_or_none(x: object) -> bool:
    return x is None or _is_number(x)


def _is_flag(x: object) -> bool:
    return isinstance(x, bool)


def _is_name(x: object) -> bool:
    return isinstance(x, str)


def _is_name_or_none(x: object) -> bool:
    return x is None or isinstance(x, str)


def _is_activation(x: object) -> bool:
    return x in ACTIVATIONS


def _is_type(x: object) -> bool:
    return x in ("f32", "i64")


def _kernels(op: str) -> Allows:
    def check(x: object) -> bool:
        pairs = cast("list[Any]", x) if isinstance(x, list) else []
        if not pairs or not all(
            isinstance(pair, list) and len(cast("list[Any]", pair)) == 2 for pair in pairs
        ):
            return False
        batches = [pair[0] for pair in pairs]
        named = all(isinstance(pair[1], str) and pair[1] in KERNELS[op] for pair in pairs)
        return named and all(map(is_int(1), batches)) and all(a < b for a, b in pairwise(batches))

    return check


def _measured(op: str) -> Allows:
    def check_one(x: object) -> bool:
        found = cast("dict[str, Any]", x) if isinstance(x, dict) else {}
        if (
            set(found) != {"batch", "us"}
            or not is_int(1)(found["batch"])
            or not isinstance(found["us"], dict)
        ):
            return False
        times = cast("dict[str, object]", found["us"])
        return all(kernel in KERNELS[op] and _is_number(t) for kernel, t in times.items())

    return is_list(check_one)


def _is_argument(x: object, depth: int = 0) -> bool:
    """An argument of a torch operator."""
    if x is None or isinstance(x, str | bool) or _is_number(x):
        return True
    if depth > 2:
        return False
    if isinstance(x, list):
        return all(_is_argument(item, depth + 1) for item in cast("list[object]", x))
    if not isinstance(x, dict):
        return False
    found = cast("dict[str, object]", x)
    return set(found) in ({"input"}, {"condition"}, {"batch"}) and all(
        is_int(0)(value) for value in found.values()
    )


def _is_keywords(x: object) -> bool:
    return isinstance(x, dict) and all(_is_argument(value) for value in cast("dict[str, object]", x).values())


_POSITIVE, _AMOUNT, _DIM = is_int(1), is_int(0), is_int(0, MAX_DIMS - 1)
_SIZES, _MARGIN = is_list(is_int(1, _MOST_PIXELS), 2), is_int(0, _MOST_PIXELS)
_MARGINS = is_list(_MARGIN, 4)
_BINARY: Mapping[str, Allows] = {"activation": _is_activation}

ATTRIBUTES: Mapping[str, Mapping[str, Allows]] = {
    "conv": {
        "weight": _is_name,
        "bias": _is_name_or_none,
        "stride": _SIZES,
        "padding": _MARGINS,
        "dilation": _SIZES,
        "groups": _POSITIVE,
        "activation": _is_activation,
        "kernels": _kernels("conv"),
        "measured": _measured("conv"),
    },
    "linear": {
        "weight": _is_name,
        "bias": _is_name_or_none,
        "activation": _is_activation,
        "kernels": _kernels("linear"),
        "measured": _measured("linear"),
    },
    "scale_shift": {"scale": _is_name, "shift": _is_name, "activation": _is_activation},
    "activate": {"activation": _is_activation},
    "clip": {"low": _is_number_or_none, "high": _is_number_or_none},
    "add": _BINARY,
    "sub": _BINARY,
    "mul": _BINARY,
    "div": _BINARY,
    **dict.fromkeys(COMPARISONS, cast("Mapping[str, Allows]", {})),
    "where": {},
    "convert": {"dtype": _is_type},
    "cumsum": {"dim": _DIM},
    "max_pool": {
        "kernel": _SIZES,
        "stride": _SIZES,
        "padding": _MARGINS,
    },
    "avg_pool": {
        "kernel": _SIZES,
        "stride": _SIZES,
        "padding": _MARGINS,
        "count_padding": _is_flag,
    },
    "adaptive_avg_pool": {"size": _SIZES},
    "mean": {"dims": is_list(_DIM), "keep": _is_flag},
    "sum": {"dims": is_list(_DIM), "keep": _is_flag},
    "softmax": {"dim": _DIM},
    "layer_norm": {
        "n_dims": is_int(1, MAX_DIMS),
        "scale": _is_name_or_none,
        "shift": _is_name_or_none,
        "eps": _is_number,
    },
    "matmul": {},
    "attention": {"factor": _is_number, "causal": _is_flag},
    "embedding": {"weight": _is_name},
    "reshape": {},
    "permute": {"dims": is_list(_DIM)},
    "slice": {"dim": _DIM, "start": _AMOUNT, "stop": _POSITIVE, "step": _POSITIVE},
    "cat": {"dim": _DIM},
    "pad": {"padding": is_list(is_list(_MARGIN, 2)), "value": _is_number_or_none},
    "expand": {},
    "constant": {"weight": _is_name},
    "torch": {
        "target": _is_name,
        "arguments": is_list(_is_argument),
        "keywords": _is_keywords,
        "dtype": _is_type,
    },
}
"""By operation, what each of its attributes may be."""
