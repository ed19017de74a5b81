"""Places of a dimension, constant or found at run time: what stands there, and where the largest stands."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

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
from secateur.runtime.lowering.logic import either, is_nan
from secateur.runtime.lowering.maths import add
from secateur.runtime.lowering.views import taken

_LEAST = torch.iinfo(torch.int64).min


@lowers("index_select.default")
def index_select(low: Lowering, x: Operand, dim: int, index: Operand) -> Activation:
    """Constant places of a dimension, or rows of a constant."""
    if not isinstance(x, Activation):
        return _rows(low, constant(x, "table"), dim, index)
    dim = dimension(dim, x.shape)
    places = [int(p) % x.shape[dim] for p in constant(index, "index").flatten()]
    if not places:
        raise Unsupported("an empty index is")
    return low.reshape(taken(low, x, dim, places), low.shapes[0])


@lowers("index.Tensor")
def index(low: Lowering, x: Operand, indices: Sequence[Operand | Sized | None]) -> Activation:
    """Constant places of one dimension; rows of a constant; places of each image, if it counts the batch."""
    given = [(dim, index) for dim, index in enumerate(indices) if index is not None]
    if isinstance(x, Activation) and isinstance(indices[0], Sized) and indices[0].is_range():
        return _of_each_image(low, x, indices[0], indices[1:])
    if len(given) != 1:
        raise Unsupported(f"only an index of one dimension is, not of {len(given)}")
    dim, places = given[0]
    if isinstance(places, Sized):
        raise Unsupported("its index depends on the batch size")
    if isinstance(places, Tensor) and places.dtype == torch.bool:
        raise Unsupported("an index by a mask is")
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
        raise Unsupported("an index of this kind is")
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
        raise Unsupported("an index of this kind is")
    from_start = low.choose(low.compare("less", place, 0), add(low, place, n, 1), place)
    # Rows of an identity: an engine refuses places outside.
    row = low.add("embedding", [from_start], weight=low.weight(torch.eye(n), "places"))
    there = replace(low.reshape(row, (-1, n, *(1 for _ in x.shape[2:]))), is_condition=True)
    hidden = low.choose(there, x, -math.inf if low.dtype(x) == torch.float32 else _LEAST)
    return largest(low, hidden, [1], keepdim=False)


@lowers("gather.default")
def gather(low: Lowering, x: Operand, dim: int, index: Operand, sparse_grad: bool) -> Activation:
    """Numbers of a constant vector, or of one that is repeated, at places that are given at run time."""
    table = low.filled.get(x.value) if isinstance(x, Activation) else x
    is_vector = isinstance(table, Tensor) and table.numel() == table.shape[dim]
    if not is_vector or not isinstance(index, Activation):
        raise Unsupported("only places of a constant vector can be gathered, it")
    return _rows(low, constant(table, "table").flatten(), 0, index)


def _rows(low: Lowering, table: Tensor, dim: int, indices: Operand) -> Activation:
    """Rows of a constant at indices that are given at run time: an embedding."""
    if dim % table.ndim != 0:
        raise Unsupported("only the first dimension of a constant can be looked up, it")
    numbers = table if table.dtype.is_floating_point else table.float()
    if not table.dtype.is_floating_point and not torch.equal(numbers.to(table.dtype), table):
        raise Unsupported("its numbers are too large to be looked up as floats")
    flat = numbers if table.ndim == 2 else numbers.reshape(table.shape[0], -1)
    found = low.add("embedding", [indices], weight=low.weight(flat, "weight"))
    return low.as_activation(low.to(low.reshape(found, low.shapes[0]), low.dtypes[0]))


@lowers("argmax.default")
def place_of_largest(low: Lowering, x: Activation, dim: int | None, keepdim: bool) -> Activation:
    """The first place of the largest number, or of NaN, along a dimension."""
    return _place_of(largest, low, x, dim, keepdim=keepdim)


@lowers("argmin.default")
def place_of_smallest(low: Lowering, x: Activation, dim: int | None, keepdim: bool) -> Activation:
    """The first place of the smallest number, or of NaN, along a dimension."""
    return _place_of(smallest, low, x, dim, keepdim=keepdim)


def _place_of(
    extreme: Callable[..., Activation], low: Lowering, x: Activation, dim: int | None, *, keepdim: bool
) -> Activation:
    if dim is None:
        raise Unsupported("a place among all numbers is")
    dim = dimension(dim, x.shape)
    size = x.shape[dim]
    here = low.compare("equal", x, extreme(low, x, [dim], keepdim=True))
    if low.dtype(x) == torch.float32:
        here = either(low, here, is_nan(low, x))
    places = torch.arange(size).reshape(-1, *(1 for _ in x.shape[dim + 1 :]))
    return smallest(low, low.choose(here, places, size), [dim], keepdim=keepdim)
