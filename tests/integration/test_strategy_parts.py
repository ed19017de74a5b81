"""A budget in parts: what a part holds, how many there are, and how they are shared out."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import indexed_vectors
from secateur.errors import TrainingError
from secateur.naming import IndexedBatch, IndexedLoader
from secateur.strategies.parts import Parts, divide, place_in, split_evenly


def same(a: list[IndexedBatch], b: list[IndexedBatch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.inputs, y.inputs) and torch.equal(x.indices, y.indices) and x.view == y.view
        for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("first", [0, 1, 3])
def test_parts_are_the_stream_of_batches_cut_up(length: int, first: int) -> None:
    loader = indexed_vectors(30)  # four batches, the last one smaller
    stream = [batch for number in range(20) for batch in loader.epoch(number)]
    parts = Parts(loader, length, first)
    assert isinstance(parts, IndexedLoader)
    assert (len(parts), parts.n_samples) == (length, 30)
    for number in range(3):
        begin = (first + number) * length
        assert same(list(parts.epoch(number)), stream[begin : begin + length])
    assert same(list(parts.epoch(1, start=1, stop=3)), list(parts.epoch(1))[1:3])
    assert same(list(parts.epoch(1, stop=length + 5)), list(parts.epoch(1)))
    x, y = next(iter(parts))
    assert torch.equal(x, stream[first * length].inputs)  # type: ignore[arg-type]
    assert torch.equal(y, stream[first * length].labels)  # type: ignore[arg-type]


def test_views_come_back_with_the_epoch_they_lie_in() -> None:
    parts = Parts(indexed_vectors(30), 3, views=2)
    seen = [batch.view for number in range(8) for batch in parts.epoch(number)]
    assert seen == [0] * 4 + [1] * 4 + [0] * 4 + [1] * 4 + [0] * 4 + [1] * 4
    assert {batch.view for batch in parts.epoch(5, view=7)} == {7}
    endless = Parts(indexed_vectors(30), 4, first=3)
    assert [next(endless.epoch(number)).view for number in range(3)] == [3, 4, 5]


@pytest.mark.parametrize(
    ("n_batches", "epochs", "least", "expected"),
    [
        (10, 4, 1, (4, 10)),
        (10, 4, 4, (4, 10)),
        (10, 4, 5, (5, 8)),
        (10, 2, 7, (10, 2)),  # not (7, …): 20 batches make 10 parts of 2 without a rest
        (11, 1, 2, (2, 5)),  # one batch is left out
        (11, 1, 11, (11, 1)),
        (7, 2, 3, (3, 4)),
        (389, 1, 2, (2, 194)),
        (352, 40, 60, (64, 220)),
        (10, 0, 5, (0, 10)),
    ],
)
def test_a_budget_is_divided(n_batches: int, epochs: int, least: int, expected: tuple[int, int]) -> None:
    assert divide(n_batches, epochs, least=least) == expected


@given(st.integers(1, 500), st.integers(1, 50), st.integers(1, 100))
def test_no_part_is_lost(n_batches: int, epochs: int, least: int) -> None:
    if least > n_batches * epochs:
        with pytest.raises(TrainingError, match=f"need at least {least} training batches"):
            divide(n_batches, epochs, least=least)
        return
    parts, length = divide(n_batches, epochs, least=least)
    assert parts >= least
    assert 0 <= n_batches * epochs - parts * length < length


@given(st.integers(0, 300), st.integers(1, 30))
def test_shares_are_even(parts: int, n: int) -> None:
    shares = split_evenly(parts, n)
    assert (len(shares), sum(shares)) == (n, parts)
    assert shares == sorted(shares)
    assert shares[-1] - shares[0] <= 1


@given(st.integers(1, 400), st.integers(1, 100), st.floats(0.01, 1))
def test_places_a_part_apart_are_never_the_same(parts: int, n: int, end: float) -> None:
    if parts * end < n:
        return
    places = [place_in(parts, end * k / n) for k in range(n + 1)]
    assert all(a < b for a, b in itertools.pairwise(places))
    assert places[-1] <= parts
    assert place_in(10, 0.3) == 3
