"""Assignments to parts of a tensor, of which export makes new tensors: what is written, beside the rest."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
from secateur.runtime.lowering.maths import add
from secateur.runtime.lowering.places import only_index
from secateur.runtime.lowering.views import broadcast, joined, range_of, ranges_of, sliced, taken


@lowers("copy.default")
def copy(low: Lowering, x: Operand, src: Operand, non_blocking: bool) -> Activation:
    """All of it written anew."""
    return broadcast(low, low.to(src, low.dtypes[0]), low.shapes[0])


@lowers("slice_scatter.default")
def slice_scatter(
    low: Lowering, x: Operand, src: Operand, dim: int, start: int | None, end: int | None, step: int
) -> Activation:
    """A range of a dimension written anew."""
    whole = low.as_activation(x)
    if isinstance(src, Activation) and src.shape == whole.shape and step == 1:
        return src
    dim = dimension(dim, whole.shape)
    return _written(low, whole, dim, range_of(start, end, step, whole.shape[dim]), src)


@lowers("select_scatter.default")
def select_scatter(low: Lowering, x: Operand, src: Operand, dim: int, index: int) -> Activation:
    """One place of a dimension written anew."""
    whole = low.as_activation(x)
    dim = dimension(dim, whole.shape)
    one = broadcast(low, src, (*whole.shape[:dim], *whole.shape[dim + 1 :]))
    place = int(number(index, "index"))
    return _written(low, whole, dim, [place], low.reshape(one, (*one.shape[:dim], 1, *one.shape[dim:])))


@lowers("index_put.default")
def index_put(
    low: Lowering, x: Operand, indices: Sequence[Operand | None], values: Operand, accumulate: bool
) -> Activation:
    """One number where a mask holds, or constant places of a dimension written anew or added to."""
    whole = low.as_activation(x)
    dim, index = only_index(indices)
    if isinstance(index, Activation) and index.is_condition and dim == 0 and not accumulate:
        return _where(low, whole, index, values)
    if not isinstance(index, Tensor) or index.dtype == torch.bool or index.ndim != 1:
        raise Unsupported("its indices are not of a kind that a plan knows")
    dim = dimension(dim, whole.shape)
    places = [int(p) % whole.shape[dim] for p in index]
    if accumulate and len(set(places)) < len(places):
        raise Unsupported("it adds to one place several times")
    if accumulate:
        values = add(low, taken(low, whole, dim, places), low.to(values, low.dtypes[0]), 1)
    return _written(low, whole, dim, places, values)


def _where(low: Lowering, x: Activation, mask: Activation, value: Operand) -> Activation:
    """`x[mask] = value`, the mask along the first dimensions."""
    size = math.prod(value.shape) if isinstance(value, Activation | Tensor) else 1
    if size != 1:
        raise Unsupported("it writes to the places of a mask one number for each, not one for all")
    one = low.to(value, low.dtypes[0])
    if isinstance(one, Activation):
        one = low.reshape(one, (1,) * len(x.shape))
    spread = low.reshape(mask, (*mask.shape, *(1 for _ in x.shape[len(mask.shape) :])))
    return low.choose(spread, one, x)


def _written(low: Lowering, x: Activation, dim: int, places: Sequence[int], values: Operand) -> Activation:
    """Numbers in the place of others, the last ones where a place comes twice."""
    if not places:
        return x
    size, kept = x.shape[dim], low.to(values, low.dtype(x))
    new = broadcast(low, kept, (*x.shape[:dim], len(places), *x.shape[dim + 1 :]))
    sources = list(range(size))
    for i, place in enumerate(places):
        sources[place % size] = size + i
    # No range runs from one to the other: the last place of x comes last.
    parts = [
        sliced(low, x, dim, first, stop) if first < size else sliced(low, new, dim, first - size, stop - size)
        for first, stop in ranges_of(sources)
    ]
    return joined(low, parts, dim)
