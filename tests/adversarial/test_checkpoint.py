"""Malformed, damaged and hostile checkpoints are refused with an error, and models stay as they were."""

import json
import math
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import nn

from adversarial.checkpoint_helpers import make_model, refuse
from secateur.checkpoint import inspect_checkpoint, load_sparse, save_sparse, verify_checkpoint
from secateur.checkpoint.container import pack, read
from secateur.errors import CheckpointError, InvalidArgument, MaskError, RunError, TargetError
from secateur.masks import Masks, apply_masks


@settings(max_examples=300)
@given(data=st.data())
def test_flipped_bytes_are_refused_or_mean_the_same(valid, tmp_path_factory, data):
    content = bytearray(valid[0].read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    check_same_or_refused(valid, tmp_path_factory.getbasetemp() / "flipped", bytes(content))


@settings(max_examples=100)
@given(data=st.data())
def test_cut_and_stretched_files_are_refused(valid, tmp_path_factory, data):
    content = valid[0].read_bytes()
    at, other = (data.draw(st.integers(0, len(content) - 1)) for _ in range(2))
    changed = data.draw(st.sampled_from([content[:at], content[:at] + content[other:], content + b"\0"]))
    check_same_or_refused(valid, tmp_path_factory.getbasetemp() / "cut", changed)


@settings(max_examples=100)
@given(content=st.binary(max_size=200))
def test_noise_is_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "noise"
    path.write_bytes(struct.pack("<Q", len(content)) + content)
    with pytest.raises(CheckpointError):
        load_sparse(path)


def check_same_or_refused(valid, path, content):
    path.write_bytes(content)
    try:
        found = load_sparse(path)
    except CheckpointError:
        assert not verify_checkpoint(path).ok
        return
    expected = load_sparse(valid[0])
    assert found.metadata == expected.metadata
    assert found.masks == expected.masks
    assert found.state_dict.keys() == expected.state_dict.keys()
    assert all(torch.equal(found.state_dict[name], tensor) for name, tensor in expected.state_dict.items())


def raw(header, payload=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + payload


ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\0",
        raw(b""),
        raw(b"{"),
        raw(b"\xff\xfe"),
        raw(b"[]"),
        raw(b'{"a":' + b"[" * 100_000 + b"}"),
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 100) + b"{}",
        raw({"a": ONE}),
        raw({"a": ONE}, bytes(8)),
        raw({"a": {**ONE, "shape": [2]}}, bytes(4)),
        raw({"a": {**ONE, "shape": [-1]}}, bytes(4)),
        raw({"a": {**ONE, "dtype": "X1"}}, bytes(4)),
        raw({"a": {**ONE, "data_offsets": [4, 0]}}, bytes(4)),
        raw({"a": ONE, "b": ONE}, bytes(4)),
        raw({"a": {"dtype": "F32", "shape": [2**32, 2**32, 4], "data_offsets": [0, 0]}}),
        raw({"a": {"dtype": "F32", "shape": [0, 2**64 - 1], "data_offsets": [0, 0]}}),
        raw({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, bytes(1)),
        raw({"__metadata__": {"format": 1}, "a": ONE}, bytes(4)),
        raw(b'{"a":' + json.dumps(ONE).encode() + b',"a":' + json.dumps(ONE).encode() + b"}", bytes(4)),
        raw(b'{"__metadata__":{"format":"a","format":"secateur-sparse"}}'),
        b"PK\x03\x04" + bytes(100),
        b"\x80\x04\x95",
    ],
)
def test_what_is_no_safetensors_file_is_refused(tmp_path, content):
    path = tmp_path / "student.safetensors"
    path.write_bytes(content)
    refuse(path, "is not a readable safetensors file")
    with pytest.raises(CheckpointError, match="not a readable"):
        inspect_checkpoint(path)


def test_missing_files_folders_and_dense_files(tmp_path):
    refuse(tmp_path / "nowhere", "there is no checkpoint '.*nowhere'; check the path")
    refuse(tmp_path, "there is no checkpoint")
    save_file({"a": torch.ones(3)}, tmp_path / "dense")
    refuse(tmp_path / "dense", r"plain safetensors file.*secateur\.models\.load_weights")


def test_a_damaged_payload_or_recipe_fails_its_own_check(valid, tmp_path):
    content = bytearray(valid[0].read_bytes())
    content[-1] ^= 1
    (tmp_path / "x").write_bytes(content)
    found = refuse(tmp_path / "x", "was damaged or changed.*digest of its content")
    assert [check.name for check in found.checks if not check.ok] == ["content digest"]
    (tmp_path / "y").write_bytes(valid[0].read_bytes().replace(rb"{\"lr\":0.1}", rb"{\"lr\":0.2}"))
    found = refuse(tmp_path / "y", "digest of its content")
    assert [check.name for check in found.checks if not check.ok] == ["content digest"]


def test_verification_finds_what_is_not_finite(tmp_path):
    model = make_model()
    with torch.no_grad():
        model[1].running_var[1] = math.inf
    save_sparse(model, tmp_path / "x")
    (bad,) = [check for check in verify_checkpoint(tmp_path / "x").checks if not check.ok]
    assert bad.name == "finite"
    assert "1.running_var" in bad.detail
    assert json.loads(json.dumps(verify_checkpoint(tmp_path / "x").to_dict()))["ok"] is False


def test_verification_takes_what_forbids_places_in_attention(tmp_path):
    """The file does not name its buffers; what is pruned, or more than they hold together, is none."""

    def finite(spoil=lambda model: None):
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        model.register_buffer("mask", torch.full((4, 4), -math.inf).triu(1))
        with torch.no_grad():
            model[0].weight[0] = 0.0
            spoil(model)
        save_sparse(model, tmp_path / "x")
        (found,) = [check for check in verify_checkpoint(tmp_path / "x").checks if check.name == "finite"]
        return found.ok, found.detail

    assert finite() == (True, "no NaN; −∞ in mask, as in a buffer that forbids places")
    for bad in (math.nan, math.inf):
        assert finite(lambda m, bad=bad: m.mask[0].fill_(bad)) == (False, "NaN or infinity in mask")
    spoilt = finite(lambda m: m[0].weight[1].fill_(-math.inf))
    assert spoilt == (False, "NaN or infinity in 0.weight, mask")
    spoilt = finite(lambda m: m[1].bias.fill_(-math.inf))
    assert spoilt == (False, "NaN or infinity in 1.bias, mask")


def snapshot(model):
    return save({name: tensor.clone() for name, tensor in model.state_dict().items()})


def tied(share):
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    if share:
        model[1].weight = model[0].weight
    return model


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)),
            "the model has no '2.bias', and 2 names",
        ),
        (lambda: nn.Sequential(*make_model(), nn.Linear(1, 1)), "the file has no '3.bias'"),
        (lambda: nn.Sequential(*list(make_model())[:2], nn.Linear(8, 7)), r"'2.weight'.*\(6, 8\).*\(7, 8\)"),
        (lambda: make_model(1).double(), "float32.*float64"),
        (lambda: make_model(1).to("meta"), "on meta"),
    ],
)
def test_a_model_that_does_not_fit_is_untouched(valid, other, message):
    model = other()
    before = None if message == "on meta" else snapshot(model)
    with pytest.raises(CheckpointError, match=message):
        load_sparse(valid[0], into=model)
    assert before is None or snapshot(model) == before


def test_a_damaged_file_leaves_the_model_untouched(valid, tmp_path):
    model = make_model(1)
    before = snapshot(model)
    (tmp_path / "x").write_bytes(valid[0].read_bytes()[:-1] + b"\x77")
    with pytest.raises(CheckpointError):
        load_sparse(tmp_path / "x", into=model)
    assert snapshot(model) == before


def test_untied_weights_do_not_go_into_a_tied_model(tmp_path):
    save_sparse(tied(share=False), tmp_path / "x")
    model = tied(share=True)
    before = snapshot(model)
    with pytest.raises(CheckpointError, match="are one shared tensor in the model, but differ"):
        load_sparse(tmp_path / "x", into=model)
    assert snapshot(model) == before
    save_sparse(tied(share=True), tmp_path / "x")
    load_sparse(tmp_path / "x", into=tied(share=False))


def test_saving_refuses_what_it_cannot_keep(tmp_path):
    path, model = tmp_path / "x", make_model()
    masks = Masks({"2.weight": torch.rand(6, 8) < 0.5})
    with pytest.raises(MaskError, match="no longer zero"):
        save_sparse(model, path, masks=masks)
    apply_masks(model, masks)
    with pytest.raises(InvalidArgument, match=r"value_dtype must be .* got torch\.int8"):
        save_sparse(model, path, masks=masks, value_dtype=torch.int8)
    with pytest.raises(InvalidArgument, match=r"did you mean 0\.9"):
        save_sparse(model, path, masks=masks, sparsity_asked=90)
    for recipe in ({"a": math.nan}, {"a": torch.ones(1)}, {"a": "\ud800"}, {1: "a", "1": "b"}):
        with pytest.raises(InvalidArgument, match="the recipe must be JSON"):
            save_sparse(model, path, masks=masks, recipe=recipe)
    with pytest.raises(TargetError):
        save_sparse(nn.BatchNorm2d(3), path)
    with pytest.raises(RunError, match="cannot write"):
        save_sparse(model, tmp_path / "nowhere" / "x", masks=masks)
    with torch.no_grad():
        model[2].weight[masks["2.weight"]] = 1e6
    with pytest.raises(InvalidArgument, match=r"'2.weight' is beyond the range of torch\.float16 \(±65504\)"):
        save_sparse(model, path, masks=masks, value_dtype=torch.float16)
    assert list(tmp_path.iterdir()) == []


class Odd(nn.Module):
    def __init__(self, extra: object) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.extra = extra

    def get_extra_state(self) -> object:
        return self.extra


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Odd({"a": 1}), "'_extra_state' is a dict, not a tensor"),
        (Odd(torch.ones(2).to_sparse()), r"has layout torch\.sparse_coo"),
        (Odd(torch.ones(2, device="meta")), "has no data"),
        (Odd(torch.ones(2, dtype=torch.complex128)), "safetensors cannot hold this state dict"),
        (Odd(torch.ones(2).to(torch.float8_e8m0fnu)), "safetensors cannot hold this state dict"),
        (Odd(torch.empty(2, dtype=torch.uint3)), r"has type torch\.uint3"),
    ],
)
def test_states_that_the_format_cannot_hold(tmp_path, model, message):
    with pytest.raises(CheckpointError, match=message):
        save_sparse(model, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_refused(tmp_path):
    model = Odd(torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]))
    with pytest.raises(CheckpointError, match="has layout nested"):
        save_sparse(model, tmp_path / "x")


def test_a_masked_weight_that_the_state_dict_leaves_out(tmp_path):
    model = nn.Linear(2, 2)
    model.register_state_dict_post_hook(lambda _, state, *__: state.__delitem__("weight"))
    with pytest.raises(CheckpointError, match="leaves out its masked parameter 'weight'"):
        save_sparse(model, tmp_path / "x")


def test_pruned_tensors_must_be_ordinary_floats(tmp_path):
    model = nn.Module()
    model.weight = nn.Parameter(torch.tensor([1, 0]), requires_grad=False)
    with pytest.raises(CheckpointError, match=r"has type torch\.int64; pruned tensors must be"):
        save_sparse(model, tmp_path / "x", masks=Masks({"weight": torch.tensor([True, False])}))


def test_8_bit_and_unsigned_tensors_pass_through(tmp_path):
    model = nn.Linear(4, 4)
    model.register_buffer("f8", torch.tensor([1.0, 0.0]).to(torch.float8_e4m3fn))
    model.register_buffer("u16", torch.tensor([1, 0], dtype=torch.uint16))
    model.register_buffer("flag", torch.tensor(True))
    model.register_buffer("phase", torch.tensor([1j]))
    model.register_buffer("none", torch.empty(0, 3))
    save_sparse(model, tmp_path / "x")
    assert verify_checkpoint(tmp_path / "x").ok
    rows = {row.name: (row.dtype, row.density) for row in inspect_checkpoint(tmp_path / "x").rows}
    assert rows["f8"] == ("F8_E4M3", 0.5)
    assert rows["u16"] == ("U16", 0.5)
    assert rows["flag"] == ("BOOL", 1.0)
    assert rows["none"] == ("F32", 1.0)
    found = load_sparse(tmp_path / "x").state_dict
    assert found["f8"].float().tolist() == [1.0, 0.0]
    assert found["phase"].tolist() == [1j]


def test_names_may_be_anything(tmp_path):
    model = nn.Module()
    model.add_module("a#index ☃\"'", nn.Linear(3, 3))
    model.add_module("__proto__", nn.Linear(3, 3))
    save_sparse(model, tmp_path / "x")
    assert load_sparse(tmp_path / "x").state_dict.keys() == model.state_dict().keys()
    reserved = nn.Linear(2, 2)
    reserved.register_buffer("__metadata__", torch.ones(1))
    with pytest.raises(CheckpointError, match="reserved by safetensors"):
        save_sparse(reserved, tmp_path / "y")


def test_views_that_negate_what_they_look_at_keep_their_signs(tmp_path):
    model, z = nn.Linear(2, 2), torch.tensor([1j, 2j])
    model.register_buffer("plain", z.imag)
    model.register_buffer("negated", z.conj().imag)
    save_sparse(model, tmp_path / "x")
    found = load_sparse(tmp_path / "x").state_dict
    assert (found["plain"].tolist(), found["negated"].tolist()) == ([1, 2], [-1, -2])


def test_a_header_with_null_for_its_metadata_is_refused(tmp_path):
    header = b'{"__metadata__":null}   '
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header)
    refuse(tmp_path / "x", "is a plain safetensors file")


def test_names_that_are_no_unicode_are_refused(valid, tmp_path):
    container = read(valid[0])
    strings = {key: value for key, value in container.metadata.items() if key != "content_digest"}
    strings["aliases"] = '{"\\ud800": "2.bias"}'
    (tmp_path / "x").write_bytes(pack(container.tensors, strings))
    refuse(tmp_path / "x", "surrogates not allowed")
