"""The selection is that of a stable ascending argsort of all scores, whatever the scores look like."""

from __future__ import annotations

import warnings
from unittest.mock import patch

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import example, given
from torch import Tensor

from reference import allocate as oracle
from secateur.allocate import allocate, select
from secateur.allocate.select import cut_at, find_threshold
from secateur.errors import EmptiedLayerWarning, ScoreError

TINY = 2.0**-149
"""The smallest subnormal float32."""
SPECIAL = [
    0.0,
    -0.0,
    TINY,
    -TINY,
    2 * TINY,
    2.0**-126,
    -(2.0**-126),
    1.0,
    -1.0,
    1.0 + 2.0**-23,
    3.4e38,
    -3.4e38,
]
"""Few values, so that ties are many, with all their neighbours in bits."""

values = st.sampled_from(SPECIAL) | st.floats(width=32, allow_nan=False, allow_infinity=False)
tied = st.sampled_from([0.0, -0.0, TINY, 1.0])


@st.composite
def rankings(draw: st.DrawFn, elements: st.SearchStrategy[float] = values) -> dict[str, Tensor]:
    """Up to four float32 tensors of up to three dimensions, empty and 0-dimensional ones among them."""
    shapes = draw(st.lists(st.lists(st.integers(0, 4), max_size=3).map(tuple), min_size=1, max_size=4))
    return {
        f"t{place}": torch.tensor(
            draw(st.lists(elements, min_size=n, max_size=n)), dtype=torch.float32
        ).reshape(shape)
        for place, shape in enumerate(shapes)
        for n in [int(np.prod(shape, dtype=int))]
    }


def selected(scores: dict[str, Tensor], n: int) -> dict[str, list[bool]]:
    masks = cut_at(scores, find_threshold(scores, n))
    assert all(masks[name].shape == scores[name].shape for name in scores)
    assert all(mask.dtype == torch.bool for mask in masks.values())
    return {name: mask.reshape(-1).tolist() for name, mask in masks.items()}


def size(scores: dict[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in scores.values())


@given(scores=rankings() | rankings(tied), data=st.data())
def test_selection_is_a_stable_argsort(scores: dict[str, Tensor], data: st.DataObject) -> None:
    n = data.draw(st.integers(0, size(scores)))
    assert selected(scores, n) == oracle.lowest(scores, n)


@given(scores=rankings(tied), data=st.data())
def test_selection_does_not_depend_on_the_size_of_chunks(
    scores: dict[str, Tensor], data: st.DataObject
) -> None:
    n = data.draw(st.integers(0, size(scores)))
    with patch.object(select, "_CHUNK", data.draw(st.integers(1, 5))):
        assert selected(scores, n) == oracle.lowest(scores, n)


@given(
    bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=30),
    share=st.floats(0, 1),
)
@example(bits=[0x7F7FFFFF, 0x00000001, 0x80000001, 0x80000000, 0x00000000], share=0.5)
@example(bits=[0xBF800001, 0xBF800003, 0xBF800002], share=0.5)  # negative, and alike in the high half
def test_selection_is_a_stable_argsort_of_any_bits(bits: list[int], share: float) -> None:
    array = np.array(bits, np.uint32).view(np.float32)
    scores = {"x": torch.from_numpy(array[np.isfinite(array)].copy())}
    n = int(share * size(scores))
    assert selected(scores, n) == oracle.lowest(scores, n)


def test_every_count_on_one_ranking() -> None:
    scores = {"a": torch.tensor(SPECIAL), "b": torch.tensor(SPECIAL[::-1])}
    for n in range(size(scores) + 1):
        assert selected(scores, n) == oracle.lowest(scores, n)


def test_ties_across_real_chunks() -> None:
    """More scores than a chunk holds, three different values: nearly everything is a tie."""
    generator = torch.Generator().manual_seed(0)
    scores = {
        "a": torch.randint(0, 3, (300_001,), generator=generator).float(),
        "b": torch.randint(0, 3, (700, 500), generator=generator).float(),
    }
    flat = torch.cat([t.reshape(-1) for t in scores.values()]).numpy()
    ranking = np.argsort(flat, kind="stable")
    for n in (0, 1, 200_000, 216_667, 400_123, 650_000, 650_001):
        expected = np.ones(len(flat), bool)
        expected[ranking[:n]] = False
        masks = cut_at(scores, find_threshold(scores, n))
        assert np.array_equal(torch.cat([m.reshape(-1) for m in masks.values()]).numpy(), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions_are_compared_as_float32(dtype: torch.dtype) -> None:
    scores = {"a": torch.randn(40, dtype=torch.float64).to(dtype), "b": torch.randn(3, 5).to(dtype)}
    for n in (0, 1, 17, 54, 55):
        assert selected(scores, n) == oracle.lowest(scores, n)


def layouts() -> dict[str, Tensor]:
    x = torch.randint(0, 4, (4, 6, 5, 3)).float()
    return {
        "contiguous": x,
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "transposed": x.transpose(0, 3),
        "sliced": x[::2, 1::2, :, 1:],
        "expanded": x[:1].expand(4, -1, -1, -1),
        "flipped": x.flip(2),
        "trainable": x.clone().requires_grad_(),
    }


@pytest.mark.parametrize("layout", layouts())
def test_memory_layout_does_not_matter(layout: str) -> None:
    tensor = layouts()[layout]
    scores = {"x": tensor, "y": torch.randint(0, 4, (7,)).float()}
    plain = {name: t.detach().clone(memory_format=torch.contiguous_format) for name, t in scores.items()}
    for n in range(0, size(scores), 17):
        masks = cut_at(scores, find_threshold(scores, n))
        expected = cut_at(plain, find_threshold(plain, n))
        assert all(torch.equal(masks[name], expected[name]) for name in masks)
        assert selected(plain, n) == oracle.lowest(plain, n)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.99])
def test_scores_that_are_not_finite_are_refused_by_name(
    bad: float, dtype: torch.dtype, sparsity: float
) -> None:
    scores = {"good": torch.rand(5, 5), "layer.weight": torch.rand(7, dtype=dtype)}
    scores["layer.weight"][3] = bad
    with pytest.raises(ScoreError, match=r"1 scores of 'layer\.weight' are NaN or infinite"):
        allocate(scores, sparsity=sparsity)


def test_every_pattern_of_nan_is_refused() -> None:
    for bits in (0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0xFF800001, 0xFFC00000, 0xFFFFFFFF):
        score = torch.from_numpy(np.array([bits], np.uint32).view(np.float32))
        with pytest.raises(ScoreError, match="1 scores of 'x'"):
            find_threshold({"x": score}, 0)


def test_a_double_that_overflows_float32_is_refused_and_one_that_underflows_is_zero() -> None:
    with pytest.raises(ScoreError, match="NaN or infinite"):
        allocate({"x": torch.tensor([1e300, 1.0], dtype=torch.float64)}, sparsity=0.5)
    masks = allocate({"x": torch.tensor([1e-300, 0.0, 1.0], dtype=torch.float64)}, sparsity=0.33)
    assert masks["x"].tolist() == [False, True, True]


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_scores_that_are_not_floating_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ScoreError, match=r"scores of 'x' must be floating, got torch\."):
        allocate({"x": torch.ones(4, dtype=dtype)}, sparsity=0.5)


def test_scores_are_not_written() -> None:
    scores = {"x": torch.tensor([-0.0, 0.0, 1.0]), "y": torch.rand(9)}
    before = {name: t.clone() for name, t in scores.items()}
    allocate(scores, sparsity=0.5)
    for name in scores:
        assert torch.equal(scores[name].view(torch.int32), before[name].view(torch.int32))


def test_a_cut_of_everything_takes_everything() -> None:
    scores = {"x": torch.rand(4), "y": torch.rand(3)}
    assert selected(scores, 7) == {"x": [False] * 4, "y": [False] * 3}
    with pytest.warns(EmptiedLayerWarning, match="no weight in x"):
        assert allocate({"x": torch.rand(4)}, sparsity=0.9).n_prune == 4  # 3.6 rounds to 4


def test_all_tied_scores_go_in_order() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EmptiedLayerWarning)
        masks = allocate({"b": torch.zeros(3), "a": torch.zeros(5)}, sparsity=0.5)
    assert masks["b"].tolist() == [False] * 3
    assert masks["a"].tolist() == [False, True, True, True, True]
