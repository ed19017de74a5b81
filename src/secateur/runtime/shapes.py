"""The shape and type that each operation gives, and what it asks of its inputs.

A dimension −k stands for k times the batch size. A dimension that must be known before the program
runs is called fixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from secateur.runtime.attributes import COMPARISONS

Shape = tuple[int, ...]
Signature = tuple[Shape, str]
"""Shape and type of a value or weight; floats of all widths are "f32" here."""
_Rule = Callable[[Mapping[str, Any], Sequence[Shape], Mapping[str, Shape], Shape], Shape]


def output_of(
    kind: str,
    attributes: Mapping[str, Any],
    inputs: Sequence[Signature],
    weights: Mapping[str, Signature],
    stated: Shape,
) -> Signature:
    """What an operation gives.

    Args:
        kind: The operation.
        attributes: Its attributes, each of which is allowed by itself.
        inputs: Shape and type of its inputs.
        weights: Shape and type of its weights, by attribute.
        stated: The shape that the program states; what `reshape`, `expand` and `torch` go by.

    Raises:
        ValueError: if inputs, weights and attributes do not fit each other.
    """
    low, high = _N_INPUTS.get(kind, (1, 1))
    if not low <= len(inputs) <= high:
        raise ValueError(f"it has {len(inputs)} inputs")
    dtype = _type_of(
        kind, attributes, [found for _, found in inputs], [found for _, found in weights.values()]
    )
    shapes = [shape for shape, _ in inputs]
    shape = _RULES[kind](attributes, shapes, {key: shape for key, (shape, _) in weights.items()}, stated)
    return shape, dtype


def _type_of(kind: str, attributes: Mapping[str, Any], inputs: Sequence[str], weights: Sequence[str]) -> str:
    """The type that an operation gives, "f32" or "i64"."""
    if kind == "where":
        _need(inputs[0] == "f32", "its condition must be f32")
        inputs = inputs[1:]
    if kind in _ANY_TYPE and attributes.get("activation", "none") == "none":
        types = {*inputs, *weights}
        _need(len(types) == 1, "its inputs are of different types")
        (found,) = types
        return attributes["dtype"] if kind == "convert" else "f32" if kind in COMPARISONS else found
    wanted = "i64" if kind == "embedding" else "f32"
    if kind == "torch":
        return attributes["dtype"]
    _need(all(found == wanted for found in inputs), f"its inputs must be {wanted}")
    _need(all(found == "f32" for found in weights), "its weights must be floats")
    return "f32"


def broadcast(a: Shape, b: Shape) -> Shape:
    """The shape of a ∘ b as in NumPy.

    Raises:
        ValueError: if they do not go together for every batch size.
    """
    n = max(len(a), len(b))
    pairs = zip((1,) * (n - len(a)) + a, (1,) * (n - len(b)) + b, strict=True)
    dims: list[int] = []
    for x, y in pairs:
        if x != y and 1 not in (x, y):
            raise ValueError(f"shapes {list(a)} and {list(b)} do not broadcast")
        dims.append(y if x == 1 else x)
    if sum(d < 0 for d in dims) > 1:
        raise ValueError(f"shapes {list(a)} and {list(b)} broadcast to two batch dimensions")
    return tuple(dims)


def window_output(size: int, *, kernel: int, stride: int, before: int, after: int, dilation: int = 1) -> int:
    """How many windows fit into `size` pixels.

    Raises:
        ValueError: if none does.
    """
    n = (size + before + after - dilation * (kernel - 1) - 1) // stride + 1
    if n < 1:
        raise ValueError(f"a window of {dilation * (kernel - 1) + 1} does not fit {size} pixels")
    return n


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _fixed(shape: Shape, dim: int) -> int:
    _need(dim < len(shape) and shape[dim] > 0, f"dimension {dim} of {list(shape)} must be fixed")
    return shape[dim]


def _image(shape: Shape) -> Shape:
    _need(len(shape) == 4 and all(d > 0 for d in shape[1:]), f"{list(shape)} is no batch of images")
    return shape


def _check_bias(weights: Mapping[str, Shape], n: int) -> None:
    _need(weights.get("bias", (n,)) == (n,), f"its bias must have the shape [{n}]")


def _check_residual(inputs: Sequence[Shape], output: Shape) -> None:
    _need(inputs[1:] in ([], [output], (), (output,)), f"its residual must have the shape {list(output)}")


def _conv(
    attributes: Mapping[str, Any], inputs: Sequence[Shape], weights: Mapping[str, Shape], _: Shape
) -> Shape:
    n, channels, *size = _image(inputs[0])
    weight, groups = weights["weight"], attributes["groups"]
    _need(len(weight) == 4 and min(weight) > 0, "its weight must have four dimensions")
    _need(
        channels == weight[1] * groups and weight[0] % groups == 0,
        f"a weight of {list(weight)} in {groups} groups does not fit {channels} channels",
    )
    _check_bias(weights, weight[0])
    top, left, bottom, right = attributes["padding"]
    reach = [d * (k - 1) + 1 for d, k in zip(attributes["dilation"], weight[2:], strict=True)]
    _need(
        max(top, bottom) < reach[0] and max(left, right) < reach[1], "its padding is larger than its window"
    )
    rows, columns = (
        window_output(s, kernel=k, stride=t, before=b, after=a, dilation=d)
        for s, k, t, b, a, d in zip(
            size,
            weight[2:],
            attributes["stride"],
            (top, left),
            (bottom, right),
            attributes["dilation"],
            strict=True,
        )
    )
    output = (n, weight[0], rows, columns)
    _check_residual(inputs, output)
    return output


def _linear(_: Mapping[str, Any], inputs: Sequence[Shape], weights: Mapping[str, Shape], __: Shape) -> Shape:
    x, weight = inputs[0], weights["weight"]
    _need(len(weight) == 2 and min(weight) > 0, "its weight must have two dimensions")
    _need(bool(x) and x[-1] == weight[1], f"a weight of {list(weight)} does not fit {list(x)}")
    _check_bias(weights, weight[0])
    output = (*x[:-1], weight[0])
    _check_residual(inputs, output)
    return output


def _scale_shift(
    _: Mapping[str, Any], inputs: Sequence[Shape], weights: Mapping[str, Shape], __: Shape
) -> Shape:
    n = _fixed(inputs[0], 1)
    _need(weights["scale"] == weights["shift"] == (n,), f"scale and shift must have the shape [{n}]")
    return inputs[0]


def _same(_: Mapping[str, Any], inputs: Sequence[Shape], __: Mapping[str, Shape], ___: Shape) -> Shape:
    return inputs[0]


def _binary(_: Mapping[str, Any], inputs: Sequence[Shape], __: Mapping[str, Shape], ___: Shape) -> Shape:
    return broadcast(*inputs)


def _where(_: Mapping[str, Any], inputs: Sequence[Shape], __: Mapping[str, Shape], ___: Shape) -> Shape:
    return broadcast(broadcast(inputs[0], inputs[1]), inputs[2])


def _pool(attributes: Mapping[str, Any], inputs: Sequence[Shape], _: Mapping[str, Shape], __: Shape) -> Shape:
    n, channels, *size = _image(inputs[0])
    padding = attributes["padding"]
    result = [n, channels]
    for axis, s in enumerate(size):
        kernel, stride = attributes["kernel"][axis], attributes["stride"][axis]
        before, after = padding[axis], padding[axis + 2]
        windows = window_output(s, kernel=kernel, stride=stride, before=before, after=after)
        last = (windows - 1) * stride - before
        _need(before < kernel and last < s, "a window lies in the padding alone")
        result.append(windows)
    return tuple(result)


def _adaptive(
    attributes: Mapping[str, Any], inputs: Sequence[Shape], _: Mapping[str, Shape], __: Shape
) -> Shape:
    return (*_image(inputs[0])[:2], *attributes["size"])


def _reduced(
    attributes: Mapping[str, Any], inputs: Sequence[Shape], _: Mapping[str, Shape], __: Shape
) -> Shape:
    x, dims = inputs[0], attributes["dims"]
    _need(bool(dims) and len(set(dims)) == len(dims), "its dims must differ, and be at least one")
    for dim in dims:
        _fixed(x, dim)
    if attributes["keep"]:
        return tuple(1 if i in dims else d for i, d in enumerate(x))
    return tuple(d for i, d in enumerate(x) if i not in dims)


def _along(
    attributes: Mapping[str, Any], inputs: Sequence[Shape], _: Mapping[str, Shape], __: Shape
) -> Shape:
    _fixed(inputs[0], attributes["dim"])
    return inputs[0]


def _layer_norm(
    attributes: Mapping[str, Any], inputs: Sequence[Shape], weights: Mapping[str, Shape], _: Shape
) -> Shape:
    x, n = inputs[0], attributes["n_dims"]
    _need(n <= len(x) and all(d > 0 for d in x[-n:]), f"the last {n} dimensions of {list(x)} must be fixed")
    _need(all(w == x[-n:] for w in weights.values()), f"scale and shift must have the shape {list(x[-n:])}")
    _need(attributes["eps"] >= 0, "its eps must not be negative")
    return x


def _matmul(_: Mapping[str, Any], inputs: Sequence[Shape], __: Mapping[str, Shape], ___: Shape) -> Shape:
    a, b = inputs
    _need(min(len(a), len(b)) >= 2 and a[-1] == b[-2], f"{list(a)} · {list(b)} is no matrix product")
    _need(a[-1] > 0, "the sum of a matrix product must not run over the batch")
    return _one_batch((*broadcast(a[:-2], b[:-2]), a[-2], b[-1]))


def _attention(_: Mapping[str, Any], inputs: Sequence[Shape], __: Mapping[str, Shape], ___: Shape) -> Shape:
    q, k, v = inputs[:3]
    _need(len(q) == len(k) == len(v) >= 2, "q, k and v must have the same number of dimensions, at least two")
    _need(q[-1] == k[-1] and k[-2] == v[-2], f"{list(q)}, {list(k)} and {list(v)} do not fit each other")
    _need(q[:-2] == k[:-2] == v[:-2], "q, k and v differ in their leading dimensions")
    _need(min(q[-2:] + k[-2:] + v[-2:]) > 0, "the last two dimensions of q, k and v must be fixed")
    if len(inputs) == 4:
        scores = (*q[:-1], k[-2])
        _need(
            broadcast(inputs[3], scores) == scores, f"a mask of {list(inputs[3])} does not fit {list(scores)}"
        )
    return (*q[:-1], v[-1])


def _embedding(
    _: Mapping[str, Any], inputs: Sequence[Shape], weights: Mapping[str, Shape], __: Shape
) -> Shape:
    _need(len(weights["weight"]) == 2, "its weight must have two dimensions")
    return (*inputs[0], weights["weight"][1])


def _reshape(_: Mapping[str, Any], inputs: Sequence[Shape], __: Mapping[str, Shape], stated: Shape) -> Shape:
    _need(
        math.prod(inputs[0]) == math.prod(stated), f"{list(inputs[0])} cannot have the shape {list(stated)}"
    )
    return stated


def _permute(
    attributes: Mapping[str, Any], inputs: Sequence[Shape], _: Mapping[str, Shape], __: Shape
) -> Shape:
    dims = attributes["dims"]
    _need(
        sorted(dims) == list(range(len(inputs[0]))), f"dims {dims} is no order of {len(inputs[0])} dimensions"
    )
    return tuple(inputs[0][d] for d in dims)


def _slice(
    attributes: Mapping[str, Any], inputs: Sequence[Shape], _: Mapping[str, Shape], __: Shape
) -> Shape:
    dim, start, stop, step = (attributes[key] for key in ("dim", "start", "stop", "step"))
    size = _fixed(inputs[0], dim)
    _need(start < stop <= size, f"{start} … {stop} is no part of {size}")
    return (*inputs[0][:dim], -(-(stop - start) // step), *inputs[0][dim + 1 :])


def _cat(attributes: Mapping[str, Any], inputs: Sequence[Shape], _: Mapping[str, Shape], __: Shape) -> Shape:
    dim, first = attributes["dim"], inputs[0]
    total = sum(_fixed(x, dim) for x in inputs)
    rest = {(*x[:dim], *x[dim + 1 :]) for x in inputs}
    _need(len(rest) == 1, f"its inputs differ in more than dimension {dim}")
    return (*first[:dim], total, *first[dim + 1 :])


def _pad(attributes: Mapping[str, Any], inputs: Sequence[Shape], _: Mapping[str, Shape], __: Shape) -> Shape:
    x, padding = inputs[0], attributes["padding"]
    _need(len(padding) == len(x), f"{len(padding)} pairs of padding do not fit {len(x)} dimensions")
    _need(all(d > 0 or p == [0, 0] for d, p in zip(x, padding, strict=True)), "the batch cannot be padded")
    return tuple(d + sum(p) for d, p in zip(x, padding, strict=True))


def _expand(_: Mapping[str, Any], inputs: Sequence[Shape], __: Mapping[str, Shape], stated: Shape) -> Shape:
    x = inputs[0]
    _need(
        len(x) == len(stated) and all(a in (1, b) for a, b in zip(x, stated, strict=True)),
        f"{list(x)} does not expand to {list(stated)}",
    )
    return stated


def _constant(_: Mapping[str, Any], __: Sequence[Shape], weights: Mapping[str, Shape], ___: Shape) -> Shape:
    return weights["weight"]


def _torch(_: Mapping[str, Any], __: Sequence[Shape], ___: Mapping[str, Shape], stated: Shape) -> Shape:
    return stated


def _one_batch(shape: Shape) -> Shape:
    _need(sum(d < 0 for d in shape) <= 1, f"{list(shape)} has two batch dimensions")
    return shape


MOVES = ("reshape", "permute", "slice", "cat", "expand", "constant")
"""Operations that move numbers and compute nothing."""
_ANY_TYPE = {*MOVES, *COMPARISONS, "add", "sub", "mul", "where", "convert", "cumsum"}
"""Operations that take floats or whole numbers, but not both; sums and products, without an activation."""
_MANY = 10_000
_N_INPUTS = {
    "conv": (1, 2),
    "linear": (1, 2),
    **dict.fromkeys(("add", "sub", "mul", "div", "matmul", *COMPARISONS), (2, 2)),
    "where": (3, 3),
    "attention": (3, 4),
    "cat": (1, _MANY),
    "constant": (0, 0),
    "torch": (1, _MANY),
}
"""Fewest and most inputs, where they are not one."""
_RULES: Mapping[str, _Rule] = {
    "conv": _conv,
    "linear": _linear,
    "scale_shift": _scale_shift,
    "activate": _same,
    "clip": _same,
    "add": _binary,
    "sub": _binary,
    "mul": _binary,
    "div": _binary,
    **dict.fromkeys(COMPARISONS, _binary),
    "where": _where,
    "convert": _same,
    "cumsum": _along,
    "max_pool": _pool,
    "avg_pool": _pool,
    "adaptive_avg_pool": _adaptive,
    "mean": _reduced,
    "sum": _reduced,
    "softmax": _along,
    "layer_norm": _layer_norm,
    "matmul": _matmul,
    "attention": _attention,
    "embedding": _embedding,
    "reshape": _reshape,
    "permute": _permute,
    "slice": _slice,
    "cat": _cat,
    "pad": _pad,
    "expand": _expand,
    "constant": _constant,
    "torch": _torch,
}
