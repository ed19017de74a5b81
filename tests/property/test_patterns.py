"""N:M patterns: exactly n of every m along the input, the highest ones, and never fewer on the way there."""

from __future__ import annotations

from itertools import combinations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor, nn

from reference import allocate as oracle
from secateur.allocate import ERK, NM, Global, Groups, Layerwise, Unstructured, allocate
from secateur.counts import n_prune
from secateur.errors import InvalidArgument, LeftDenseWarning, ScoreError
from secateur.masks import Masks
from secateur.targets import select_targets

patterns = st.integers(2, 6).flatmap(lambda m: st.builds(NM, st.integers(1, m - 1), st.just(m)))


@st.composite
def patterned(draw: st.DrawFn) -> tuple[NM, dict[str, Tensor]]:
    """A pattern, and tensors it fits, as linear layers and convolutions have; many ties among them."""
    pattern = draw(patterns)
    scores: dict[str, Tensor] = {}
    for place in range(draw(st.integers(1, 3))):
        kernel = draw(st.sampled_from([(), (2,), (1, 3), (2, 2)]))
        shape = (draw(st.integers(1, 3)), pattern.m * draw(st.integers(1, 3)), *kernel)
        picks = st.lists(st.integers(-2, 3), min_size=(n := torch.Size(shape).numel()), max_size=n)
        scores[f"t{place}"] = torch.tensor(draw(picks), dtype=torch.float32).view(shape)
    return pattern, scores


def as_lists(masks: Masks | dict[str, Tensor]) -> dict[str, list[bool]]:
    return {name: mask.reshape(-1).tolist() for name, mask in masks.items()}


def groups_of(tensor: Tensor, m: int) -> Tensor:
    """All groups, shape (number, m), by the slow way: slices along dimension 1."""
    slices = tensor.split(m, dim=1)
    return torch.cat([part.transpose(1, -1).reshape(-1, m) for part in slices])


@given(case=patterned())
def test_the_highest_n_of_every_m_stay(case: tuple[NM, dict[str, Tensor]]) -> None:
    pattern, scores = case
    masks = allocate(scores, pattern=pattern)
    assert list(masks) == list(scores)
    for name, mask in masks.items():
        assert mask.shape == scores[name].shape
        kept, values = groups_of(mask, pattern.m), groups_of(scores[name], pattern.m)
        assert (kept.sum(dim=1) == pattern.n).all()
        for stays, group in zip(kept, values, strict=True):
            best = max(sum(c) for c in combinations(group.tolist(), pattern.n))
            assert float(group[stays].sum()) == best
    assert masks.n_prune * pattern.m == masks.numel * (pattern.m - pattern.n)
    assert allocate(scores, sparsity=masks.sparsity, pattern=pattern) == masks


@given(case=patterned(), parts=st.lists(st.fractions(0, 1), min_size=1, max_size=3))
def test_on_the_way_no_group_loses_more_than_it_may(
    case: tuple[NM, dict[str, Tensor]], parts: list[float]
) -> None:
    pattern, scores = case
    scope, final = pattern.scope_for(None), pattern.sparsity_for(None)
    numel = sum(tensor.numel() for tensor in scores.values())
    before: dict[str, Tensor] | None = None
    for sparsity in [*sorted(float(part) * final for part in parts), final]:
        masks = scope(scores, sparsity)
        n_lost = n_prune(numel, sparsity)
        assert as_lists(masks) == oracle.with_groups(scores, n_lost, pattern.n, pattern.m)
        assert before is None or all(bool((~masks[n] | before[n]).all()) for n in masks)
        before = masks
    assert before is not None
    assert Masks(before) == allocate(scores, pattern=pattern)


def test_a_group_runs_along_the_input_at_one_place_of_the_kernel() -> None:
    scores = torch.zeros(1, 4, 1, 2)
    scores[0, :, 0, 0] = torch.tensor([4.0, 1, 3, 2])
    scores[0, :, 0, 1] = torch.tensor([1.0, 2, 3, 4])
    mask = allocate({"conv": scores}, pattern=NM(2, 4))["conv"]
    assert mask[0, :, 0, 0].tolist() == [True, False, True, False]
    assert mask[0, :, 0, 1].tolist() == [False, False, True, True]


def test_of_equal_scores_the_first_go() -> None:
    scores = torch.tensor([[0.0, -0.0, 0.0, -0.0], [1.0, 0.0, 1.0, 1.0]])
    mask = allocate({"w": scores}, pattern=NM(2, 4))["w"]
    assert mask.tolist() == [[False, False, True, True], [False, False, True, True]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_and_memory_layout_change_nothing(dtype: torch.dtype) -> None:
    scores = torch.randint(-9, 9, (3, 8, 2, 2)).float()
    expected = allocate({"w": scores}, pattern=NM(2, 4))
    last = scores.to(dtype).contiguous(memory_format=torch.channels_last)
    assert allocate({"w": last}, pattern=NM(2, 4)) == expected


def test_what_groups_do_not_fill_stays_dense_and_is_named() -> None:
    scores = {"first": torch.rand(8, 3, 3, 3), "wide": torch.rand(4, 8), "depthwise": torch.rand(8, 1, 3, 3)}
    with pytest.warns(LeftDenseWarning, match=r"2:4 leaves first \(8, 3, 3, 3\), depthwise \(8, 1"):
        masks = allocate(scores, pattern=NM(2, 4))
    assert masks == allocate({"wide": scores["wide"]}, pattern=NM(2, 4))


@pytest.mark.parametrize("shape", [(8, 3, 3, 3), (8, 6), (4,), (0, 4)])
def test_a_pattern_that_fits_nothing_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidArgument, match=r"2:4 fits no tensor: .* multiple of 4, and there are w \("):
        allocate({"w": torch.rand(shape)}, pattern=NM(2, 4))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_scores_that_are_no_numbers_are_refused(bad: float) -> None:
    scores = torch.rand(2, 4)
    scores[1, 2] = bad
    with pytest.raises(ScoreError, match="1 scores of 'w' are NaN or infinite"):
        allocate({"fine": torch.rand(2, 4), "w": scores}, pattern=NM(2, 4))


@pytest.mark.parametrize(("n", "m"), [(0, 4), (4, 4), (5, 4), (-1, 4), (1, 1), (0, 0)])
def test_only_patterns_that_remove_some_and_keep_some(n: int, m: int) -> None:
    with pytest.raises(InvalidArgument, match=rf"keeps n of m weights with 1 ≤ n < m, got {n}:{m}"):
        NM(n, m)


def test_a_sparsity_that_disagrees_is_refused_with_the_one_that_goes() -> None:
    scores = {"w": torch.rand(4, 8)}
    for asked in (0.4, 0.75, 0.0):
        with pytest.raises(InvalidArgument, match=rf"sparsity={asked:g} does not go .* 2:4, .* exactly 0\.5"):
            allocate(scores, sparsity=asked, pattern=NM(2, 4))
    with pytest.raises(InvalidArgument, match=r"did you mean 0\.5"):
        allocate(scores, sparsity=50, pattern=NM(2, 4))
    assert allocate(scores, sparsity=0.75, pattern=NM(2, 8)).n_prune == 24
    with pytest.raises(InvalidArgument, match=r"sparsity is missing.*NM\(2, 4\)"):
        allocate(scores)
    with pytest.raises(InvalidArgument, match=r"Ask for at most 0\.5"):
        Groups(2, 4)(scores, 0.6)


def test_thirds_need_not_be_written_out() -> None:
    assert allocate({"w": torch.rand(100, 33)}, pattern=NM(1, 3)).n_keep == 1100
    assert NM(1, 3).sparsity_for(2 / 3) == 2 / 3


@pytest.mark.parametrize("scope", [Layerwise(), ERK(), Global(min_density=0.1)])
def test_a_scope_that_could_change_nothing_is_refused(scope: Layerwise | ERK | Global) -> None:
    with pytest.raises(InvalidArgument, match=r"does not go with the pattern 2:4.*Leave scope out"):
        allocate({"w": torch.rand(4, 8)}, scope=scope, pattern=NM(2, 4))
    assert allocate({"w": torch.rand(4, 8)}, scope=Global(), pattern=NM(2, 4)).n_keep == 16


def test_transposed_convolutions_stay_dense() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 1), nn.ConvTranspose2d(8, 4, 3))
    targets = select_targets(model)
    assert Unstructured().fitting(targets, model) == targets
    with pytest.warns(LeftDenseWarning, match=r"leaves 1\.weight \(8, 4, 3, 3\) dense: .* must be the input"):
        assert list(NM(2, 4).fitting(targets, model)) == ["0.weight"]
    with pytest.raises(InvalidArgument, match=r"fits no tensor: .* there are weight \(8"):
        NM(2, 4).fitting(select_targets(model[1]), model[1])
