"""The slow engine: every operation in plain NumPy, written to be read.

It is what the native engine is compared with, and what runs plans where there is no native engine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur.errors import InvalidArgument
from secateur.runtime.attributes import WEIGHTS_OF
from secateur.runtime.program import Op, Program
from secateur.runtime.weights import Weight

Array = NDArray[Any]
_Step = Callable[[Op, Sequence[Array], Mapping[str, Array]], Array]


class ReferenceEngine:
    """Runs a program, without operations of torch, in NumPy.

    Args:
        program: The program.
        weights: Its weights.
    """

    def __init__(self, program: Program, weights: Mapping[str, Weight]) -> None:
        self._program = program
        self._weights = {name: weight.to_dense() for name, weight in weights.items()}
        self._last_use = last_uses(program)

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """The outputs for inputs of the shapes in the program, with one batch size."""
        batch = inputs[0].shape[0]
        found = {value: x for (_, value), x in zip(self._program.inputs, inputs, strict=True)}
        for place, op in enumerate(self._program.ops):
            weights = {
                key: self._weights[name]
                for key, name in op.attributes.items()
                if key in WEIGHTS_OF and name is not None
            }
            shape = concrete(self._program.values[op.output].shape, batch)
            with np.errstate(all="ignore"):  # infinities and NaNs are results like others
                result = _run_op(op, [found[i] for i in op.inputs], weights, shape)
            found[op.output] = result
            for value in self._last_use.get(place, ()):
                del found[value]
        return [np.asarray(found[value], order="C") for _, value in self._program.outputs]


def last_uses(program: Program) -> dict[int, list[int]]:
    """By place of an operation, the values that nothing reads after it."""
    last = {i: place for place, op in enumerate(program.ops) for i in (*op.inputs, op.output)}
    kept = {value for _, value in program.outputs}
    uses: dict[int, list[int]] = {}
    for value, place in last.items():
        if value not in kept:
            uses.setdefault(place, []).append(value)
    return uses


def concrete(shape: Sequence[int], batch: int) -> tuple[int, ...]:
    """A shape for one batch size."""
    return tuple(d if d >= 0 else -d * batch for d in shape)


def _run_op(op: Op, inputs: Sequence[Array], weights: Mapping[str, Array], shape: tuple[int, ...]) -> Array:
    if op.kind == "reshape":
        return inputs[0].reshape(shape)
    if op.kind == "expand":
        return np.broadcast_to(inputs[0], shape)
    result = _STEPS[op.kind](op, inputs, weights)
    return _ACTIVATIONS[op.attributes.get("activation", "none")](result)


def _conv(op: Op, inputs: Sequence[Array], weights: Mapping[str, Array]) -> Array:
    weight, groups = weights["weight"], op.attributes["groups"]
    windows = _windows(inputs[0], weight.shape[2:], op, 0.0)
    batch, channels, rows, columns = windows.shape[:4]
    patches = windows.reshape(batch, groups, channels // groups, rows, columns, -1)
    patches = patches.transpose(1, 0, 3, 4, 2, 5).reshape(groups, batch * rows * columns, -1)
    filters = weight.reshape(groups, weight.shape[0] // groups, -1).transpose(0, 2, 1)
    found = (patches @ filters).reshape(groups, batch, rows, columns, -1)
    found = found.transpose(1, 0, 4, 2, 3).reshape(batch, -1, rows, columns)
    if "bias" in weights:
        found = found + weights["bias"][:, None, None]
    return found + inputs[1] if len(inputs) == 2 else found


def _linear(_: Op, inputs: Sequence[Array], weights: Mapping[str, Array]) -> Array:
    found = inputs[0] @ weights["weight"].T
    if "bias" in weights:
        found = found + weights["bias"]
    return found + inputs[1] if len(inputs) == 2 else found


def number_or(x: float | None, otherwise: float) -> np.float32:
    """A number of a plan, in which null stands for an infinite one."""
    return np.float32(otherwise if x is None else x)


def _clip(op: Op, inputs: Sequence[Array], _: Mapping[str, Array]) -> Array:
    low, high = number_or(op.attributes["low"], -np.inf), number_or(op.attributes["high"], np.inf)
    return np.minimum(np.maximum(inputs[0], low), high)


def _scale_shift(_: Op, inputs: Sequence[Array], weights: Mapping[str, Array]) -> Array:
    shape = (-1,) + (1,) * (inputs[0].ndim - 2)
    return inputs[0] * weights["scale"].reshape(shape) + weights["shift"].reshape(shape)


def _max_pool(op: Op, inputs: Sequence[Array], _: Mapping[str, Array]) -> Array:
    return _windows(inputs[0], op.attributes["kernel"], op, -np.inf).max(axis=(4, 5))


def _avg_pool(op: Op, inputs: Sequence[Array], _: Mapping[str, Array]) -> Array:
    kernel = op.attributes["kernel"]
    total = _windows(inputs[0], kernel, op, 0.0).sum(axis=(4, 5))
    if op.attributes["count_padding"]:
        return total / np.float32(math.prod(kernel))
    return total / _windows(np.ones_like(inputs[0][:1, :1]), kernel, op, 0.0).sum(axis=(4, 5))


def _adaptive_avg_pool(op: Op, inputs: Sequence[Array], _: Mapping[str, Array]) -> Array:
    x = inputs[0]
    rows, columns = (_adaptive_edges(x.shape[2 + axis], n) for axis, n in enumerate(op.attributes["size"]))
    pooled = [[x[:, :, a:b, c:d].mean(axis=(2, 3)) for c, d in columns] for a, b in rows]
    return np.stack([np.stack(row, axis=-1) for row in pooled], axis=-2)


def _adaptive_edges(size: int, n: int) -> list[tuple[int, int]]:
    return [(i * size // n, -(-(i + 1) * size // n)) for i in range(n)]


def _windows(x: Array, kernel: Sequence[int], op: Op, fill: float) -> Array:
    """Views of the windows of padded images: (N, C, rows, columns, kh, kw)."""
    top, left, bottom, right = op.attributes["padding"]
    dilation = op.attributes.get("dilation", (1, 1))
    if any((top, left, bottom, right)):
        x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)
    reach = tuple(d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True))
    views = np.lib.stride_tricks.sliding_window_view(x, reach, axis=(2, 3))
    stride = op.attributes["stride"]
    return views[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]


def _mean(op: Op, inputs: Sequence[Array], _: Mapping[str, Array]) -> Array:
    dims, keep = tuple(op.attributes["dims"]), op.attributes["keep"]
    return inputs[0].mean(axis=dims, keepdims=keep, dtype=np.float64).astype(np.float32)


def _sum(op: Op, inputs: Sequence[Array], _: Mapping[str, Array]) -> Array:
    dims, keep = tuple(op.attributes["dims"]), op.attributes["keep"]
    return inputs[0].sum(axis=dims, keepdims=keep, dtype=np.float64).astype(np.float32)


def softmax(x: Array, dim: int) -> Array:
    """Softmax along a dimension; a row of −∞ alone gives NaN, as in torch."""
    powers = np.exp(x - x.max(axis=dim, keepdims=True))
    return powers / powers.sum(axis=dim, keepdims=True)


def _layer_norm(op: Op, inputs: Sequence[Array], weights: Mapping[str, Array]) -> Array:
    x, dims = inputs[0], tuple(range(-op.attributes["n_dims"], 0))
    variance = x.var(axis=dims, keepdims=True)
    found = (x - x.mean(axis=dims, keepdims=True)) / np.sqrt(variance + np.float32(op.attributes["eps"]))
    return found * weights.get("scale", np.float32(1)) + weights.get("shift", np.float32(0))


def _attention(op: Op, inputs: Sequence[Array], _: Mapping[str, Array]) -> Array:
    q, k, v = inputs[:3]
    scores = np.float32(op.attributes["factor"]) * (q @ np.swapaxes(k, -1, -2))
    if op.attributes["causal"]:
        seen = np.tri(*scores.shape[-2:], dtype=np.bool_)
        scores = np.where(seen, scores, np.float32(-np.inf))
    if len(inputs) == 4:
        scores = scores + inputs[3]
    blind = np.isneginf(scores).all(axis=-1, keepdims=True)
    return np.where(blind, np.float32(0), softmax(scores, -1)) @ v


def _convert(op: Op, inputs: Sequence[Array], _: Mapping[str, Array]) -> Array:
    """To a type; to whole numbers towards 0, the nearest there is for what is too large, 0 for NaN."""
    x = inputs[0]
    if op.attributes["dtype"] == "f32":
        return x.astype(np.float32)
    if x.dtype == np.int64:
        return x
    limits = np.iinfo(np.int64)
    inside = np.where(np.abs(x) < np.float32(2**63), x, 0).astype(np.int64)
    return np.where(x >= 2**63, limits.max, np.where(x <= -(2**63), limits.min, inside))


def _cumsum(op: Op, inputs: Sequence[Array], _: Mapping[str, Array]) -> Array:
    x = inputs[0]
    wide = np.int64 if x.dtype == np.int64 else np.float64
    return np.cumsum(x, axis=op.attributes["dim"], dtype=wide).astype(x.dtype)


def _embedding(op: Op, inputs: Sequence[Array], weights: Mapping[str, Array]) -> Array:
    indices, size = inputs[0], weights["weight"].shape[0]
    if indices.size and (indices.min() < 0 or indices.max() >= size):
        raise InvalidArgument(f"an index for {op.name!r} lies outside 0 … {size - 1}; check the input.")
    return weights["weight"][indices]


def _slice(op: Op, inputs: Sequence[Array], _: Mapping[str, Array]) -> Array:
    dim, *part = (op.attributes[key] for key in ("dim", "start", "stop", "step"))
    return inputs[0][(slice(None),) * dim + (slice(*part),)]


def _cat(op: Op, inputs: Sequence[Array], _: Mapping[str, Array]) -> Array:
    return np.concatenate(list(inputs), axis=op.attributes["dim"])


def _pad(op: Op, inputs: Sequence[Array], _: Mapping[str, Array]) -> Array:
    value = number_or(op.attributes["value"], -np.inf)
    return np.pad(inputs[0], op.attributes["padding"], constant_values=value)


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def _erf(x: Array) -> Array:
    return np.asarray(np.frompyfunc(math.erf, 1, 1)(x), np.float32)


def _gelu(x: Array) -> Array:
    return x * np.float32(0.5) * (1 + _erf(x * np.float32(math.sqrt(0.5))))


def _gelu_tanh(x: Array) -> Array:
    inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
    return x * np.float32(0.5) * (1 + np.tanh(inner))


def _hardsigmoid(x: Array) -> Array:
    return np.clip(x + 3, 0, 6) / np.float32(6)


_ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "none": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "silu": lambda x: x * _sigmoid(x),
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "hardswish": lambda x: x * _hardsigmoid(x),
    "hardsigmoid": _hardsigmoid,
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
    "exp": np.exp,
    "log": np.log,
    "log1p": np.log1p,
    "sqrt": np.sqrt,
    "erf": _erf,
    "sin": np.sin,
    "cos": np.cos,
    "floor": np.floor,
    "round": np.round,
}
_STEPS: Mapping[str, _Step] = {
    "conv": _conv,
    "linear": _linear,
    "scale_shift": _scale_shift,
    "activate": lambda op, x, w: np.asarray(x[0]),
    "clip": _clip,
    "add": lambda op, x, w: x[0] + x[1],
    "sub": lambda op, x, w: x[0] - x[1],
    "mul": lambda op, x, w: x[0] * x[1],
    "div": lambda op, x, w: x[0] / x[1],
    "equal": lambda op, x, w: (x[0] == x[1]).astype(np.float32),
    "less": lambda op, x, w: (x[0] < x[1]).astype(np.float32),
    "less_equal": lambda op, x, w: (x[0] <= x[1]).astype(np.float32),
    "where": lambda op, x, w: np.where(x[0] != 0, x[1], x[2]),
    "convert": _convert,
    "cumsum": _cumsum,
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "adaptive_avg_pool": _adaptive_avg_pool,
    "mean": _mean,
    "sum": _sum,
    "softmax": lambda op, x, w: softmax(x[0], op.attributes["dim"]),
    "layer_norm": _layer_norm,
    "matmul": lambda op, x, w: x[0] @ x[1],
    "attention": _attention,
    "embedding": _embedding,
    "permute": lambda op, x, w: np.transpose(x[0], op.attributes["dims"]),
    "slice": _slice,
    "cat": _cat,
    "pad": _pad,
    "constant": lambda op, x, w: w["weight"],
}
