"""Places of a dimension, constant or found at run time: what stands there, and where the largest stands."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from secateur.runtime.lowering.base import (
    Activation,
    Lowering,
    Operand,
    Sized,
    Unsupported,
    constant,
    dimension,
    lowers,
)
from secateur.runtime.lowering.composed import largest, smallest
from secateur.runtime.lowering.logic import both, differ, either, is_nan
from secateur.runtime.lowering.maths import add
from secateur.runtime.lowering.views import joined, permuted, sliced, taken

_LEAST = torch.iinfo(torch.int64).min
_MOST_ROUNDS = 64
"""How many numbers may be looked for one after the other; each takes a few operations."""


@lowers("index_select.default")
def index_select(low: Lowering, x: Operand, dim: int, index: Operand) -> Activation:
    """Constant places of a dimension, or rows of a constant."""
    if not isinstance(x, Activation):
        return _rows(low, constant(x, "table"), dim, index)
    dim = dimension(dim, x.shape)
    places = [int(p) % x.shape[dim] for p in constant(index, "index").flatten()]
    if not places:
        raise Unsupported("its index is empty")
    return low.reshape(taken(low, x, dim, places), low.shapes[0])


_Index = TypeVar("_Index")


def only_index(indices: Sequence[_Index | None]) -> tuple[int, _Index]:
    """The one dimension that is indexed, and by what.

    Raises:
        Unsupported: if there are more.
    """
    given = [(dim, index) for dim, index in enumerate(indices) if index is not None]
    if len(given) != 1:
        raise Unsupported(f"its index must be of one dimension, not of {len(given)}")
    return given[0]


@lowers("index.Tensor")
def index(low: Lowering, x: Operand, indices: Sequence[Operand | Sized | None]) -> Activation:
    """Constant places of one dimension; rows of a constant; places of each image, if it counts the batch."""
    if isinstance(x, Activation) and isinstance(indices[0], Sized) and indices[0].is_range():
        return _of_each_image(low, x, indices[0], indices[1:])
    dim, places = only_index(indices)
    if isinstance(places, Sized):
        raise Unsupported("its index depends on the batch size")
    if isinstance(places, Tensor) and places.dtype == torch.bool:
        raise Unsupported("its index is a mask")
    return index_select(low, x, dim, places)


def _of_each_image(
    low: Lowering, x: Activation, batch: Sized, others: Sequence[Operand | Sized | None]
) -> Activation:
    """x[b, i, j, …] where b counts the images."""
    if x.shape[0] != -1:
        raise Unsupported("its index depends on the batch size")
    if len(others) == 1 and isinstance(others[0], Activation) and batch.at[0].ndim == 1:
        return _found_place(low, x, others[0])
    places = [constant(index, "index") for index in others]
    # The images must have a dimension to themselves, the first of the result.
    n = batch.at[0].ndim
    if any(p.dtype == torch.bool or p.ndim > n or (p.ndim == n and p.shape[0] != 1) for p in places):
        raise Unsupported("its indices are not of a kind that a plan knows")
    sizes = x.shape[1 : 1 + len(places)]
    flat = torch.zeros((), dtype=torch.int64)
    for place, size in zip(places, sizes, strict=True):
        flat = flat * size + place % size
    rows = low.reshape(x, (-1, math.prod(sizes), *x.shape[1 + len(places) :]))
    return low.reshape(taken(low, rows, 1, flat.flatten().tolist()), low.shapes[0])


def _found_place(low: Lowering, x: Activation, place: Activation) -> Activation:
    """x[b, i], i found at run time: all of x hidden but that place, and the largest of it taken."""
    n = x.shape[1]
    if low.dtype(place) != torch.int64 or place.shape != (-1,):
        raise Unsupported("its indices are not of a kind that a plan knows")
    from_start = low.choose(low.compare("less", place, 0), add(low, place, n, 1), place)
    # Rows of an identity: an engine refuses places outside.
    row = low.add("embedding", [from_start], weight=low.weight(torch.eye(n), "places"))
    there = replace(low.reshape(row, (-1, n, *(1 for _ in x.shape[2:]))), is_condition=True)
    hidden = low.choose(there, x, -math.inf if low.dtype(x) == torch.float32 else _LEAST)
    return largest(low, hidden, [1], keepdim=False)


@lowers("gather.default")
def gather(low: Lowering, x: Operand, dim: int, index: Operand, sparse_grad: bool) -> Activation:
    """Numbers of a vector at places that are given at run time: of a constant, or of each image."""
    if isinstance(x, Activation) and isinstance(index, Activation) and x.value not in low.filled:
        return _gathered(low, x, dim, index)
    table = low.filled.get(x.value) if isinstance(x, Activation) else x
    is_vector = isinstance(table, Tensor) and table.numel() == table.shape[dim]
    if not is_vector or not isinstance(index, Activation):
        raise Unsupported("it gathers places of what is no constant vector")
    return _rows(low, constant(table, "table").flatten(), 0, index)


def _gathered(low: Lowering, x: Activation, dim: int, index: Activation) -> Activation:
    """x[b, i[b, k]], one k after the other."""
    if len(x.shape) != 2 or x.shape[0] != -1 or dim % 2 != 1 or index.shape[1] > _MOST_ROUNDS:
        raise Unsupported(f"it gathers other than at most {_MOST_ROUNDS} places of a vector for each image")
    places = (sliced(low, index, 1, k, k + 1) for k in range(index.shape[1]))
    found = [_found_place(low, x, low.reshape(place, (-1,))) for place in places]
    return joined(low, [low.reshape(number, (-1, 1)) for number in found], 1)


def _rows(low: Lowering, table: Tensor, dim: int, indices: Operand) -> Activation:
    """Rows of a constant at indices that are given at run time: an embedding."""
    if dim % table.ndim != 0:
        raise Unsupported("it looks up in another dimension of a constant than the first")
    numbers = table if table.dtype.is_floating_point else table.float()
    if not table.dtype.is_floating_point and not torch.equal(numbers.to(table.dtype), table):
        raise Unsupported("its numbers are too large to be looked up as floats")
    name = low.weight(numbers if table.ndim == 2 else numbers.reshape(table.shape[0], -1), "weight")
    if not table.dtype.is_floating_point:
        low.graph.exact.add(name)
    found = low.add("embedding", [indices], weight=name)
    return low.as_activation(low.to(low.reshape(found, low.shapes[0]), low.dtypes[0]))


@lowers("argmax.default")
def place_of_largest(low: Lowering, x: Activation, dim: int | None, keepdim: bool) -> Activation:
    """The first place of the largest number, or of NaN, along a dimension."""
    return _place_of(largest, low, x, dim, keepdim=keepdim)


@lowers("argmin.default")
def place_of_smallest(low: Lowering, x: Activation, dim: int | None, keepdim: bool) -> Activation:
    """The first place of the smallest number, or of NaN, along a dimension."""
    return _place_of(smallest, low, x, dim, keepdim=keepdim)


@lowers("one_hot.default")
def one_hot(low: Lowering, x: Activation, num_classes: int) -> Activation:
    """1 at a place of a new dimension, 0 elsewhere."""
    there = low.compare("equal", low.reshape(x, (*x.shape, 1)), torch.arange(num_classes))
    return low.as_activation(low.to(there, torch.int64))


@lowers("diagonal.default")
def diagonal(low: Lowering, x: Activation, offset: int, dim1: int, dim2: int) -> Activation:
    """What has the same place along two dimensions, or places so far apart."""
    first, second = dimension(dim1, x.shape), dimension(dim2, x.shape)
    kept = [d for d in range(len(x.shape)) if d not in (first, second)]
    rows, columns = x.shape[first], x.shape[second]
    flat = low.reshape(
        permuted(low, x, [*kept, first, second]), (*(x.shape[d] for d in kept), rows * columns)
    )
    places = [i * columns + i + offset for i in range(rows) if 0 <= i + offset < columns]
    return taken(low, flat, len(kept), places)


@lowers("unfold.default")
def windows(low: Lowering, x: Activation, size: int, step: int, **where: int) -> Activation:
    """Windows of a dimension, the places of each in a new one at the end."""
    dim = dimension(where["dimension"], x.shape)
    starts = range(0, x.shape[dim] - size + 1, step)
    found = taken(low, x, dim, [start + i for start in starts for i in range(size)])
    apart = low.reshape(found, (*x.shape[:dim], len(starts), size, *x.shape[dim + 1 :]))
    order = [d for d in range(len(apart.shape)) if d != dim + 1]
    return permuted(low, apart, [*order, dim + 1])


@lowers("topk.default")
def largest_few(low: Lowering, x: Activation, k: int, dim: int, **options: bool) -> list[Activation]:
    """The largest numbers along a dimension, or the smallest, and their places, found one after the other."""
    if k > _MOST_ROUNDS or low.dtype(x) != torch.float32:
        raise Unsupported(f"it takes {k} numbers; at most {_MOST_ROUNDS}, of floats, can be taken")
    dim = dimension(dim, x.shape)
    extreme, worst = (largest, -math.inf) if options["largest"] else (smallest, math.inf)
    places = torch.arange(x.shape[dim]).reshape(-1, *(1 for _ in x.shape[dim + 1 :]))
    found: list[tuple[Activation, Activation]] = []
    left: Operand = torch.ones((1,) * len(x.shape), dtype=torch.bool)
    for _ in range(k):
        value = extreme(low, low.choose(left, x, worst), [dim], keepdim=True)
        here = both(low, left, either(low, low.compare("equal", x, value), is_nan(low, x)))
        place = smallest(low, low.choose(here, places, x.shape[dim]), [dim], keepdim=True)
        left = both(low, left, differ(low, place, places))
        found.append((value, place))
    return [joined(low, parts, dim) for parts in zip(*found, strict=True)]


@lowers("max.dim")
def largest_and_place(low: Lowering, x: Activation, dim: int, keepdim: bool) -> list[Activation]:
    """Largest number along a dimension, and its place; what is not used drops out of the plan."""
    return [largest(low, x, [dim], keepdim), _place_of(largest, low, x, dim, keepdim=keepdim)]


@lowers("min.dim")
def smallest_and_place(low: Lowering, x: Activation, dim: int, keepdim: bool) -> list[Activation]:
    """Smallest number along a dimension, and its place."""
    return [smallest(low, x, [dim], keepdim), _place_of(smallest, low, x, dim, keepdim=keepdim)]


def _place_of(
    extreme: Callable[..., Activation], low: Lowering, x: Activation, dim: int | None, *, keepdim: bool
) -> Activation:
    if dim is None:
        raise Unsupported("it gives a place among all numbers")
    dim = dimension(dim, x.shape)
    size = x.shape[dim]
    here = low.compare("equal", x, extreme(low, x, [dim], keepdim=True))
    if low.dtype(x) == torch.float32:
        here = either(low, here, is_nan(low, x))
    places = torch.arange(size).reshape(-1, *(1 for _ in x.shape[dim + 1 :]))
    return smallest(low, low.choose(here, places, size), [dim], keepdim=keepdim)
