"""Operators that move numbers and compute nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from secateur.runtime.lowering.base import (
    Activation,
    Lowering,
    Operand,
    Unsupported,
    dimension,
    lowers,
    number,
)
from secateur.runtime.shapes import Shape


@lowers(
    "clone.default",
    "contiguous.default",
    "alias.default",
    "detach.default",
    "lift_fresh_copy.default",
)
def same(low: Lowering, x: Activation, **_: object) -> Activation:
    """Operators that change nothing here."""
    return x


@lowers("dropout.default", "feature_dropout.default", "alpha_dropout.default")
def dropout(low: Lowering, input: Activation, **_: object) -> Activation:  # noqa: A002
    """Nothing: what draws random numbers is refused before."""
    return input


@lowers("_to_copy.default", "to.dtype", "to.device", "to.dtype_layout", "to.other", "type_as.default")
def convert(low: Lowering, x: Operand, **_: object) -> Activation:
    """Another type; int32 is taken for int64."""
    wanted = torch.int64 if low.dtypes[0] == torch.int32 else low.dtypes[0]
    if wanted not in (torch.float32, torch.int64, torch.bool):
        raise Unsupported(f"it converts to {wanted}")
    return low.as_activation(low.to(x, wanted))


@lowers(
    "view.default",
    "reshape.default",
    "_unsafe_view.default",
    "flatten.using_ints",
    "unflatten.int",
    "unsqueeze.default",
    "squeeze.default",
    "squeeze.dim",
    "squeeze.dims",
)
def view(low: Lowering, x: Activation, **_: object) -> Activation:
    """The same numbers in another shape."""
    return low.reshape(x, low.shapes[0])


def permuted(low: Lowering, x: Activation, dims: Sequence[int]) -> Activation:
    """Dimensions in another order; nothing if it is theirs."""
    order = [d % len(x.shape) for d in dims]
    return x if order == sorted(order) else low.add("permute", [x], dims=order)


@lowers("permute.default")
def permute(low: Lowering, x: Activation, dims: Sequence[int]) -> Activation:
    """Dimensions in another order."""
    return permuted(low, x, dims)


@lowers("transpose.int")
def transpose(low: Lowering, x: Activation, dim0: int, dim1: int) -> Activation:
    """Two dimensions exchanged."""
    dims = list(range(len(x.shape)))
    dims[dim0], dims[dim1] = dims[dim1], dims[dim0]
    return permuted(low, x, dims)


@lowers("t.default", "numpy_T.default")
def reverse(low: Lowering, x: Activation) -> Activation:
    """Dimensions in reverse order."""
    return permuted(low, x, range(len(x.shape))[::-1])


def sliced(low: Lowering, x: Activation, dim: int, start: int, stop: int, step: int = 1) -> Activation:
    """A range of a dimension; nothing if it is all of it."""
    size = x.shape[dim]
    if (start, stop, step) == (0, size, 1):
        return x
    return low.add("slice", [x], dim=dim, start=start, stop=stop, step=step)


def range_of(start: int | None, end: int | None, step: int, size: int) -> range:
    """The places that a slice takes of so many.

    Raises:
        Unsupported: if they depend on the batch size.
    """
    if isinstance(start, torch.SymInt) or isinstance(end, torch.SymInt):
        raise Unsupported("its range depends on the batch size")
    return range(*slice(start, end, step).indices(size))


def joined(low: Lowering, parts: Sequence[Operand], dim: int) -> Activation:
    """One behind the other along a dimension; nothing if there is one alone."""
    return low.as_activation(parts[0]) if len(parts) == 1 else low.add("cat", parts, dim=dim)


@lowers("slice.Tensor")
def part(
    low: Lowering, x: Activation, dim: int, start: int | None, end: int | None, step: int
) -> Activation | Tensor:
    """Every so many-th place of a range, a constant if it is empty; the batch can only be taken whole."""
    dim = dim % len(x.shape)
    if low.shapes[0] == x.shape and step == 1:
        return x
    dim = dimension(dim, x.shape)
    whole = range_of(start, end, step, x.shape[dim])
    first, stop = whole.start, whole.stop
    if first >= stop:
        return torch.zeros([0 if d == dim else abs(size) for d, size in enumerate(x.shape)])
    return sliced(low, x, dim, first, stop, step)


@lowers("select.int")
def select(low: Lowering, x: Activation, dim: int, index: int) -> Activation:
    """One place of a dimension, which goes away."""
    dim = dimension(dim, x.shape)
    place = int(number(index, "index")) % x.shape[dim]
    return low.reshape(sliced(low, x, dim, place, place + 1), low.shapes[0])


@lowers("unbind.int")
def unbind(low: Lowering, x: Activation, dim: int) -> list[Activation]:
    """All places of a dimension, one by one."""
    dim = dimension(dim, x.shape)
    shape = (*x.shape[:dim], *x.shape[dim + 1 :])
    return [low.reshape(sliced(low, x, dim, i, i + 1), shape) for i in range(x.shape[dim])]


@lowers("split.Tensor", "unsafe_split.Tensor", "split_with_sizes.default", "chunk.default")
def split(low: Lowering, x: Activation, dim: int, **_: object) -> list[Activation]:
    """Parts of a dimension, one behind the other; their sizes are those of the results."""
    dim = dimension(dim, x.shape)
    parts: list[Activation] = []
    start = 0
    for shape in low.shapes:
        parts.append(sliced(low, x, dim, start, start + shape[dim]))
        start += shape[dim]
    return parts


@lowers("cat.default")
def cat(low: Lowering, tensors: Sequence[Operand], dim: int) -> Activation:
    """One behind the other along a dimension; what is empty is left out."""
    dim = dimension(dim, low.shapes[0])
    parts = [x for x in tensors if not isinstance(x, Tensor) or x.numel()]
    return joined(low, parts, dim)


@lowers("stack.default")
def stack(low: Lowering, tensors: Sequence[Operand], dim: int) -> Activation:
    """One behind the other along a new dimension."""
    dim = dim % len(low.shapes[0])
    shape = tuple(1 if i == dim else d for i, d in enumerate(low.shapes[0]))
    return low.add("cat", [low.reshape(low.as_activation(x), shape) for x in tensors], dim=dim)


def broadcast(low: Lowering, x: Operand, shape: Shape) -> Activation:
    """Dimensions of size 1 repeated; nothing if there are none."""
    if isinstance(x, Tensor):
        return low.fill(
            x if x.ndim == len(shape) else x.reshape((1,) * (len(shape) - x.ndim) + x.shape), shape
        )
    found = low.as_activation(x)
    if found.shape == shape:
        return found
    full = low.reshape(found, (1,) * (len(shape) - len(found.shape)) + found.shape)
    return low.add("expand", [full], shape)


@lowers("expand.default", "expand_as.default", "broadcast_to.default")
def expand(low: Lowering, x: Operand, **_: object) -> Activation:
    """Dimensions of size 1 repeated."""
    return broadcast(low, x, low.shapes[0])


@lowers("roll.default")
def roll(low: Lowering, x: Activation, shifts: Sequence[int], dims: Sequence[int]) -> Activation:
    """Places moved along dimensions, those that leave at one end back in at the other."""
    if not dims:
        raise Unsupported("it runs over all dimensions at once")
    for shift, dim in zip(shifts, dims, strict=True):
        place = dimension(dim, x.shape)
        size = x.shape[place]
        x = taken(low, x, place, [(i - shift) % size for i in range(size)])
    return x


@lowers("repeat.default")
def repeat(low: Lowering, x: Activation, repeats: Sequence[int]) -> Activation:
    """The whole one behind the other, so many times along each dimension."""
    found = low.reshape(x, (1,) * (len(repeats) - len(x.shape)) + x.shape)
    for dim, times in enumerate(repeats):
        if times != 1:
            found = low.add("cat", [found] * times, dim=dimension(dim, found.shape))
    return found


@lowers("repeat_interleave.self_int")
def repeat_interleave(
    low: Lowering, x: Activation, repeats: int, dim: int | None, output_size: object
) -> Activation:
    """Each place of a dimension so many times, one behind the other."""
    if dim is None:
        raise Unsupported("without a dimension it runs over the batch")
    dim = dimension(dim, x.shape)
    return repeated(low, x, {dim: repeats})


def repeated(low: Lowering, x: Activation, times: Mapping[int, int]) -> Activation:
    """Each place of some dimensions so many times, one behind the other."""
    apart, spread, whole = list[int](), list[int](), list[int]()
    for dim, size in enumerate(x.shape):
        n = times.get(dim, 1)
        apart += [size, 1] if dim in times else [size]
        spread += [size, n] if dim in times else [size]
        whole.append(size * n)
    return low.reshape(broadcast(low, low.reshape(x, tuple(apart)), tuple(spread)), tuple(whole))


def ranges_of(places: Sequence[int]) -> list[tuple[int, int]]:
    """First and behind the last of the places that follow each other."""
    starts = [i for i, p in enumerate(places) if not i or p != places[i - 1] + 1]
    return [(places[a], places[b - 1] + 1) for a, b in pairwise([*starts, len(places)])]


def taken(low: Lowering, x: Activation, dim: int, places: Sequence[int]) -> Activation:
    """Some places of a dimension in any order: its ranges that stay together, one behind the other."""
    return joined(low, [sliced(low, x, dim, first, stop) for first, stop in ranges_of(places)], dim)


@lowers("flip.default")
def flip(low: Lowering, x: Activation, dims: Sequence[int]) -> Activation:
    """Dimensions backwards."""
    for dim in dims:
        place = dimension(dim, x.shape)
        x = taken(low, x, place, range(x.shape[place])[::-1])
    return x


@lowers("full_like.default", "new_full.default")
def full(low: Lowering, fill_value: float, **_: object) -> Activation | Tensor:
    """One number in every place, as many as the batch asks for."""
    shape = low.shapes[0]
    if not shape:
        return torch.tensor(number(fill_value, "value"), dtype=low.dtypes[0])
    return low.fill(torch.full((1,) * len(shape), number(fill_value, "value"), dtype=low.dtypes[0]), shape)


@lowers("zeros_like.default", "new_zeros.default")
def zeros(low: Lowering, **_: object) -> Activation | Tensor:
    """Zeros, as many as the batch asks for."""
    return full(low, 0)


@lowers("ones_like.default", "new_ones.default")
def ones(low: Lowering, **_: object) -> Activation | Tensor:
    """Ones, as many as the batch asks for."""
    return full(low, 1)


@lowers("constant_pad_nd.default", "pad.default")
def pad(
    low: Lowering, x: Activation, pad: Sequence[int], value: float | None = None, mode: str = "constant"
) -> Activation:
    """Places with one number before and after; negative padding cuts off."""
    pairs = [[0, 0]] * (len(x.shape) - len(pad) // 2)
    pairs += [[int(pad[i]), int(pad[i + 1])] for i in range(len(pad) - 2, -1, -2)]
    grown = [[max(0, before), max(0, after)] for before, after in pairs]
    if mode == "constant" and any(map(any, grown)):
        fill = float(value or 0)
        if fill == math.inf or math.isnan(fill):
            raise Unsupported(f"it pads with {fill:g}")
        x = low.add("pad", [x], padding=grown, value=None if fill == -math.inf else fill)
    for dim, (before, after) in enumerate(pairs):
        if mode != "constant" and max(before, after) > 0:
            x = _padded_by_itself(low, x, dimension(dim, x.shape), before, after, mode)
        elif min(before, after) < 0:
            size = x.shape[dimension(dim, x.shape)]
            x = sliced(low, x, dim, max(0, -before), size - max(0, -after))
    return x


def _padded_by_itself(
    low: Lowering, x: Activation, dim: int, before: int, after: int, mode: str
) -> Activation:
    """A dimension continued by its own places: mirrored, repeated at the edge, or from the other end."""
    size = x.shape[dim]
    if min(before, after) < 0:
        raise Unsupported(f"it pads by {mode} and cuts off as well")
    return taken(low, x, dim, [_source(place, size, mode) for place in range(-before, size + after)])


def _source(place: int, size: int, mode: str) -> int:
    """Where padding finds what it puts at a place that lies before 0 or behind the last."""
    if mode == "replicate":
        return min(max(place, 0), size - 1)
    if mode == "circular":
        return place % size
    return size - 1 - abs(size - 1 - abs(place))
