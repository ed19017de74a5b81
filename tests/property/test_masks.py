"""Masks: checked, immutable, hashable, the same bits everywhere."""

from __future__ import annotations

import copy
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor, nn

from helpers import SharedNet, assert_positive_zero, make_cnn, make_mlp, same_bits
from secateur.errors import MaskError
from secateur.masks import Masks, apply_masks, masks_from_zeros, pack_bits, unpack_bits

shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)


@st.composite
def bit_tensors(draw: st.DrawFn, shape: st.SearchStrategy[Any] = shapes) -> Tensor:
    size = draw(shape)
    n = int(torch.tensor(size).prod()) if size else 1
    return torch.tensor(draw(st.lists(st.booleans(), min_size=n, max_size=n)), dtype=torch.bool).view(size)


@st.composite
def masks(draw: st.DrawFn) -> Masks:
    names = draw(st.lists(st.sampled_from("abcd"), min_size=1, unique=True))
    return Masks({name: draw(bit_tensors(st.just((2, 3)))) for name in names})


def half_masks(model: nn.Module, seed: int = 0) -> Masks:
    generator = torch.Generator().manual_seed(seed)
    return Masks(
        {
            name: torch.rand(p.shape, generator=generator) < 0.5
            for name, p in model.named_parameters()
            if p.ndim > 1
        }
    )


@given(mask=bit_tensors())
def test_packing_is_undone(mask: Tensor) -> None:
    data = pack_bits(mask)
    assert len(data) == -(-mask.numel() // 8)
    assert torch.equal(unpack_bits(data, tuple(mask.shape)), mask)


@given(mask=bit_tensors(st.just((3, 5))), extra=st.binary(min_size=1, max_size=3))
def test_packed_bits_that_do_not_fit_are_refused(mask: Tensor, extra: bytes) -> None:
    data = pack_bits(mask)
    for wrong in (data + extra, data[:-1], b"", bytes([data[0], data[1] | 0x80])):
        with pytest.raises(MaskError, match=r"packed bytes do not hold a mask of shape \(3, 5\)"):
            unpack_bits(wrong, (3, 5))


@given(a=masks(), b=masks(), c=masks())
def test_intersection_is_an_algebra(a: Masks, b: Masks, c: Masks) -> None:
    assert (a & a) == a
    assert (a & b) == (b & a)
    assert ((a & b) & c) == (a & (b & c))
    both = a & b
    assert set(both) == set(a) | set(b)
    for name in both:
        expected = a[name] & b[name] if name in a and name in b else (a if name in a else b)[name]
        assert torch.equal(both[name], expected)


@given(a=masks())
def test_counts_agree(a: Masks) -> None:
    assert a.n_keep + a.n_prune == a.numel == 6 * len(a)
    assert a.n_keep == sum(sum(mask.reshape(-1).tolist()) for mask in a.values())
    assert a.sparsity == a.n_prune / a.numel
    for name in a:
        assert a.density(name) == sum(a[name].reshape(-1).tolist()) / 6


@given(a=masks(), name=st.sampled_from("abcd"), place=st.integers(0, 5))
def test_the_digest_is_that_of_names_shapes_and_bits(a: Masks, name: str, place: int) -> None:
    backwards = Masks({key: a[key] for key in reversed(list(a))})
    assert backwards == a
    assert hash(backwards) == hash(a)
    assert backwards.digest == a.digest
    changed = {key: mask.clone() for key, mask in a.items()}
    changed.setdefault(name, torch.ones(2, 3, dtype=torch.bool)).view(-1)[place] ^= True
    assert Masks(changed) != a
    assert Masks({**changed, name: changed[name].view(3, 2)}) != Masks(changed)


def test_memory_layout_does_not_change_the_digest() -> None:
    mask = torch.rand(4, 3, 2, 2) < 0.5
    other = mask.contiguous(memory_format=torch.channels_last)
    assert pack_bits(other) == pack_bits(mask)
    assert Masks({"x": other}).digest == Masks({"x": mask}).digest
    assert Masks({"x": mask.transpose(0, 1)}) == Masks({"x": mask.transpose(0, 1).contiguous()})


def test_masks_are_a_mapping_that_cannot_be_changed() -> None:
    source = {"x": torch.ones(4, dtype=torch.bool)}
    made = Masks(source)
    assert made["x"].data_ptr() == source["x"].data_ptr()  # taken over, as documented: no copy
    source["y"] = source["x"]
    assert list(made) == ["x"]
    with pytest.raises(TypeError):
        made["x"] = source["x"]  # type: ignore[index]
    assert made != "x"
    assert repr(made) == "Masks(1 tensors, sparsity=0.0000, 4 of 4 kept)"


def test_copies_are_equal() -> None:
    made = half_masks(make_mlp())
    assert copy.deepcopy(made) == made
    assert made.to("cpu") == made
    assert {made: 1}[copy.deepcopy(made)] == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.int64])
def test_masks_must_be_boolean(dtype: torch.dtype) -> None:
    with pytest.raises(MaskError, match=r"mask 'x' must be torch\.bool, got torch\..*True means keep"):
        Masks({"x": torch.ones(3, dtype=dtype)})


def test_masks_must_name_something() -> None:
    with pytest.raises(MaskError, match="at least one"):
        Masks({})


def test_masks_of_two_models_do_not_intersect() -> None:
    a = Masks({"x": torch.ones(3, 1, dtype=torch.bool)})
    b = Masks({"x": torch.ones(1, 3, dtype=torch.bool)})
    with pytest.raises(MaskError, match=r"'x' have shapes \(3, 1\) and \(1, 3\)"):
        a & b


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_applying_masks_writes_positive_zeros_and_nothing_else(layout: torch.memory_format) -> None:
    model = make_cnn().to(memory_format=layout)  # type: ignore[call-overload]
    made = half_masks(model)
    before = copy.deepcopy(model.state_dict())
    pointers = [p.data_ptr() for p in model.parameters()]
    with torch.no_grad():
        model[0].weight.neg_()
    before["0.weight"].neg_()
    apply_masks(model, made)
    for name, value in model.state_dict().items():
        if name in made:
            assert_positive_zero(value[~made[name]])
            assert same_bits(value[made[name]], before[name][made[name]])
        else:
            assert same_bits(value, before[name])
    assert pointers == [p.data_ptr() for p in model.parameters()]
    made.check(model)
    assert masks_from_zeros(model, made) == made


def test_frozen_and_shared_weights_are_masked_too() -> None:
    model = SharedNet().requires_grad_(False)
    made = half_masks(model)
    assert list(made) == ["first.weight", "head.weight"]
    apply_masks(model, made)
    assert_positive_zero(model.second.weight[~made["first.weight"]])


@pytest.mark.parametrize("value", [1e-30, -1.0, float("nan"), float("inf"), 2.0**-149])
def test_a_weight_that_came_back_is_found(value: float) -> None:
    model = make_mlp()
    made = half_masks(model)
    apply_masks(model, made)
    made.check(model)
    with torch.no_grad():
        model[2].weight[~made["2.weight"]] = value
    n = int((~made["2.weight"]).sum())
    with pytest.raises(MaskError, match=rf"{n} pruned weights of '2\.weight' are no longer zero"):
        made.check(model)


def test_masks_of_another_model_are_refused_and_it_stays_as_it_was() -> None:
    model = make_mlp()
    before = copy.deepcopy(model.state_dict())
    good = half_masks(model)
    cases = [
        ({**good, "9.weight": good["0.weight"]}, r"no parameter '9\.weight'; these masks were made"),
        ({**good, "2.weight": good["2.weight"][:, :4]}, r"'2\.weight' has shape \(3, 4\), the parameter"),
    ]
    for wrong, message in cases:
        for use in (apply_masks, lambda model, made: made.check(model)):
            with pytest.raises(MaskError, match=message):
                use(model, Masks(wrong))
    assert all(same_bits(value, before[name]) for name, value in model.state_dict().items())


def test_wrapped_models_are_found_by_their_bare_names() -> None:
    model = make_mlp()
    made = half_masks(model)
    apply_masks(torch.compile(model, backend="eager"), made)  # type: ignore[arg-type]
    made.check(model)
    assert masks_from_zeros(torch.compile(model, backend="eager"), made) == made  # type: ignore[arg-type]


def test_a_mask_of_everything_and_of_nothing() -> None:
    model = make_mlp()
    everything = Masks({"0.weight": torch.zeros(8, 6, dtype=torch.bool)})
    assert everything.sparsity == 1.0
    assert everything.density("0.weight") == 0.0
    apply_masks(model, everything)
    assert_positive_zero(model[0].weight)
    assert Masks({"0.weight": torch.ones(8, 6, dtype=torch.bool)}).sparsity == 0.0
    empty = Masks({"x": torch.ones(0, 3, dtype=torch.bool)})
    assert (empty.sparsity, empty.density("x"), pack_bits(empty["x"])) == (0.0, 1.0, b"")
