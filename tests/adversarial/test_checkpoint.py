"""Malformed, damaged and hostile checkpoints are refused with an error, and models stay as they were."""

import json
import math
import struct
import tracemalloc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import nn

from secateur.checkpoint import inspect_checkpoint, load_sparse, save_sparse, verify_checkpoint
from secateur.checkpoint.container import pack, read
from secateur.errors import CheckpointError, InvalidArgument, MaskError, RunError, TargetError
from secateur.masks import Masks, apply_masks


def make_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Linear(8, 6))


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    """A valid file: its path, its model and its masks."""
    model = make_model()
    generator = torch.Generator().manual_seed(5)
    masks = Masks(
        {
            name: torch.rand(model.get_parameter(name).shape, generator=generator) < density
            for name, density in {"0.weight": 0.2, "2.weight": 0.6}.items()
        }
    )
    apply_masks(model, masks)
    path = tmp_path_factory.mktemp("valid") / "student.safetensors"
    save_sparse(model, path, masks=masks, recipe={"lr": 0.1}, sparsity_asked=masks.sparsity)
    return path, model, masks


def refuse(path, message):
    """Every reader refuses the file, and `verify_checkpoint` says so."""
    with pytest.raises(CheckpointError, match=message) as error:
        load_sparse(path)
    assert path.name in str(error.value)
    found = verify_checkpoint(path)
    assert not found.ok
    return found


def forge(valid, path, *, metadata=None, entries=None, layout=None, drop=()):
    """A copy of the valid file with some things changed and the content digest made right again."""
    container = read(valid[0])
    strings = {key: value for key, value in container.metadata.items() if key != "content_digest"}
    layouts = json.loads(strings["tensors"])
    layouts["0.weight"].update(layout or {})
    strings["tensors"] = json.dumps(layouts)
    strings.update(metadata or {})
    tensors = {**container.tensors, **(entries or {})}
    for key in drop:
        strings.pop(key, None)
        tensors.pop(key, None)
    path.write_bytes(pack(tensors, strings))
    return path


def layout_of(valid, name="0.weight"):
    return json.loads(read(valid[0]).metadata["tensors"])[name]


def entry_of(valid, name="0.weight"):
    return read(valid[0]).tensors[name]


def test_the_forge_alone_breaks_nothing(valid, tmp_path):
    assert load_sparse(forge(valid, tmp_path / "x")).masks == valid[2]


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


@settings(max_examples=300)
@given(data=st.data())
def test_forged_parts_are_refused(valid, tmp_path_factory, data):
    """With a right content digest, so that the decoder has to notice, or at last the masks' digest."""
    entry = bytearray(entry_of(valid).numpy().tobytes())
    layout = layout_of(valid)
    coded = layout["index"][1] + layout["heads"][1]
    at = data.draw(st.integers(0, coded - 1))
    entry[at] ^= data.draw(st.integers(1, 255))
    forged = torch.frombuffer(entry, dtype=torch.uint8)
    path = forge(valid, tmp_path_factory.getbasetemp() / "forged", entries={"0.weight": forged})
    try:
        found = load_sparse(path)
    except CheckpointError:
        return
    # Another table or another code of heads can be a valid file of other weights, never of other masks.
    assert at >= layout["index"][1]
    assert found.masks == valid[2]


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


HUGE = {"shape": [10**6, 10**6]}


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (HUGE, "too short for 1000000000000 weights"),
        ({"shape": [2**62, 4]}, "too large for a tensor"),
        ({"shape": [0, 2**62, 2]}, "too large for a tensor"),
        ({"shape": [1] * 33}, "too large for a tensor"),
        ({"shape": [-4, -18]}, "list of whole numbers"),
        ({"shape": [72.0]}, "list of whole numbers"),
        ({"shape": [True, 72]}, "list of whole numbers"),
        ({"shape": "72"}, "list of whole numbers"),
        ({"shape": None}, "list of whole numbers"),
        ({"shape": [80]}, "the index"),
        ({"shape": [1]}, "do not fit 1 weights"),
        ({"dtype": "F8"}, "must be one of F64, F32, F16, BF16"),
        ({"dtype": ["F32"]}, "must be one of"),
        ({"dtype": "I32"}, "must be one of"),
        ({"value_dtype": "F64"}, "cannot be stored as F64"),
        ({"value_dtype": 1}, "cannot be stored as 1"),
        ({"value_dtype": ["F16"]}, "cannot be stored as"),
        ({"dtype": "F16"}, "cannot be stored as F32"),
        ({"dtype": "BF16", "value_dtype": "F16"}, "cannot be stored as F16"),
        ({"index": [8, 1]}, "Rice parameter ≤ 7"),
        ({"index": [-1, 1]}, "list of whole numbers"),
        ({"index": [0]}, "number of bytes"),
        ({"index": [0, 10**9]}, "do not fit"),
        ({"index": [0, 2**70]}, "do not fit"),
        ({"heads": [7, 1]}, "'0.weight'"),
        ({"heads": [0, 10**9]}, "do not fit"),
        ({"more": 1}, "and nothing else"),
    ],
)
def test_bad_layouts_are_refused(valid, tmp_path, layout, message):
    found = refuse(forge(valid, tmp_path / "x", layout=layout), message)
    assert [check.name for check in found.checks] == ["decodes"]


def test_layouts_that_miss_a_field_or_are_no_object(valid, tmp_path):
    layouts = json.loads(read(valid[0]).metadata["tensors"])
    for entry in ({}, [], None, 1, "x"):
        text = json.dumps({**layouts, "0.weight": entry})
        refuse(
            forge(valid, tmp_path / "x", metadata={"tensors": text}),
            "the layout of '0.weight' must have shape",
        )


def test_huge_claims_take_no_memory(valid, tmp_path):
    path = forge(valid, tmp_path / "x", layout={**HUGE, "index": [7, layout_of(valid)["index"][1]]})
    tracemalloc.start()
    refuse(path, "too short")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000


def test_an_almost_empty_tensor_takes_bytes_in_proportion(tmp_path):
    model = nn.Linear(1024, 1024, bias=False)
    masks = Masks({"weight": torch.zeros(1024, 1024, dtype=torch.bool)})
    apply_masks(model, masks)
    save_sparse(model, tmp_path / "x", masks=masks)
    (row,) = inspect_checkpoint(tmp_path / "x").rows
    assert row.size_bytes == 1024 * 1024 / 2**7 / 8
    assert load_sparse(tmp_path / "x").masks == masks


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"tensors": "{"}, "'tensors' is not valid JSON"),
        ({"tensors": "[]"}, "'tensors' must be a JSON object"),
        ({"tensors": "{}"}, "at least one parameter"),
        ({"tensors": "[" * 100_000}, "'tensors' is not valid JSON: it is nested too deeply"),
        ({"tensors": '{"a": NaN}'}, "NaN is not a JSON number"),
        ({"tensors": '{"a": {}, "a": {}}'}, "'a' appears twice"),
        ({"aliases": '{"x": "0.bias", "x": "0.bias"}'}, "'x' appears twice"),
        ({"aliases": '{"0.bias": "2.bias"}'}, "alias '0.bias' of '2.bias' is not a new name"),
        ({"aliases": '{"x": "nowhere"}'}, "alias 'x' of 'nowhere'"),
        ({"aliases": '{"x": "y", "y": "x"}'}, "alias 'x' of 'y'"),
        ({"aliases": '{"x": "0.bias", "y": "x"}'}, "alias 'y' of 'x'"),
        ({"aliases": '{"x": 1}'}, "must map names to names"),
        ({"n_parameters": "-1"}, "must be a whole number"),
        ({"n_parameters": "1e3"}, "must be a whole number"),
        ({"n_parameters": "٣٠٠"}, "must be a whole number"),
        ({"n_parameters": "9" * 5000}, "must be a whole number"),
        ({"n_parameters": "10"}, "10 parameters, but 120 weights under masks"),
        ({"sparsity_asked": "1.0"}, r"must be in \[0, 1\)"),
        ({"sparsity_asked": "90"}, "must be a decimal number"),
        ({"sparsity_asked": "-0.5"}, r"must be in \[0, 1\)"),
        ({"sparsity_asked": "NaN"}, "NaN is not a JSON number"),
        ({"recipe": "pickle"}, "'recipe' is not valid JSON"),
        ({"extra": "x"}, r"unknown: \['extra'\]"),
        ({"mask_digest": "sha256:" + "0" * 64}, "digest of its masks"),
        ({"version": "2"}, "format version '2', this secateur reads '1'"),
        ({"version": "1.0"}, "format version '1.0'"),
        ({"format": "pt"}, r"plain safetensors file.*secateur\.models\.load_weights"),
    ],
)
def test_bad_metadata_is_refused(valid, tmp_path, metadata, message):
    refuse(forge(valid, tmp_path / "x", metadata=metadata), message)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("n_parameters", r"keys missing: \['n_parameters'\]"),
        ("mask_digest", r"keys missing: \['mask_digest'\]"),
        ("tensors", r"keys missing: \['tensors'\]"),
        ("version", "format version 'None'"),
        ("format", "plain safetensors file"),
    ],
)
def test_missing_metadata_is_refused(valid, tmp_path, key, message):
    refuse(forge(valid, tmp_path / "x", drop=[key]), message)


def test_a_file_without_content_digest_is_refused(valid, tmp_path):
    container = read(valid[0])
    metadata = {key: value for key, value in container.metadata.items() if key != "content_digest"}
    save_file(dict(container.tensors), tmp_path / "x", metadata=metadata)
    refuse(tmp_path / "x", r"keys missing: \['content_digest'\]")


@pytest.mark.parametrize("shape", [[71], [36, 2], [4, 2, 9], [4, 2, 3, 3, 1]])
def test_another_shape_of_as_many_bytes_has_another_mask_digest(valid, tmp_path, shape):
    refuse(forge(valid, tmp_path / "x", layout={"shape": shape}), "digest of its masks")


def test_bad_entries_are_refused(valid, tmp_path):
    entry = entry_of(valid)
    path = tmp_path / "x"
    refuse(forge(valid, path, drop=["0.weight"]), "'0.weight': it is missing")
    refuse(forge(valid, path, entries={"0.weight": entry.reshape(1, -1)}), "one row of U8")
    refuse(forge(valid, path, entries={"0.weight": entry.view(torch.int8)}), "one row of U8")
    refuse(forge(valid, path, entries={"0.weight": entry[:-1]}), "do not fit 72 weights")
    refuse(forge(valid, path, entries={"0.weight": entry[:-3]}), "the index|holds")
    refuse(forge(valid, path, entries={"0.weight": entry[:0]}), "do not fit")
    more = torch.cat([entry, entry.new_zeros(3 * 72)])
    refuse(forge(valid, path, entries={"0.weight": more}), "do not fit 72 weights")


def code_bits(numbers, rice, rest=0, extra_bits=()):
    """A Rice code with any parameter, as lists of bits, for codes that the writer would never choose."""
    unary = [bit for number in numbers for bit in [0] * (number >> rice) + [1]] + [0] * (rest >> rice)
    low = [number >> k & 1 for number in numbers for k in range(rice)]
    parts = [unary, [*low, *extra_bits]]
    packed = [bits + [0] * (-len(bits) % 8) for bits in parts]
    return bytes(sum(bit << k for k, bit in enumerate(byte)) for bits in packed for byte in batched(bits))


def batched(bits):
    return [bits[i : i + 8] for i in range(0, len(bits), 8)]


def forge_entry(valid, path, *, index=None, index_rice=None, heads=None, heads_rice=None):
    """The valid file with another index or other heads of its first tensor."""
    layout, entry = layout_of(valid), entry_of(valid).numpy().tobytes()
    split = [layout["index"][1], layout["index"][1] + layout["heads"][1]]
    parts = [index or entry[: split[0]], heads or entry[split[0] : split[1]], entry[split[1] :]]
    rices = [
        layout[key][0] if rice is None else rice
        for key, rice in (("index", index_rice), ("heads", heads_rice))
    ]
    new = {"index": [rices[0], len(parts[0])], "heads": [rices[1], len(parts[1])]}
    data = torch.frombuffer(bytearray(b"".join(parts)), dtype=torch.uint8)
    return forge(valid, path, layout=new, entries={"0.weight": data})


def gaps_of(valid):
    mask = valid[2]["0.weight"].reshape(-1)
    positions = mask.nonzero().reshape(-1).tolist()
    assert 2 * len(positions) <= mask.numel()
    return [b - a - 1 for a, b in zip([-1, *positions], positions, strict=False)], 71 - positions[-1]


def test_only_the_shortest_index_is_taken(valid, tmp_path):
    (gaps, rest), best = gaps_of(valid), layout_of(valid)["index"][0]
    path = tmp_path / "x"
    exact = code_bits(gaps, best, rest)
    assert load_sparse(forge_entry(valid, path, index=exact)).masks == valid[2]
    for rice in range(8):
        if rice != best:
            longer = code_bits(gaps, rice, rest)
            refuse(forge_entry(valid, path, index=longer, index_rice=rice), "the shortest code has")
    refuse(forge_entry(valid, path, index=exact + b"\0"), "the index|asks for|holds")
    refuse(forge_entry(valid, path, index=b"\0" + exact), "outside|the index|holds")
    beyond = code_bits([*gaps[:-1], gaps[-1] + rest + 1], best)
    refuse(forge_entry(valid, path, index=beyond), "outside the 72 weights")
    refuse(forge_entry(valid, path, index=code_bits(gaps[:-1], best, rest + gaps[-1])), "numbers|too short")
    refuse(forge_entry(valid, path, index=code_bits([*gaps, 0], best, rest)), "numbers|shortest")


def test_padding_bits_must_be_zero(valid, tmp_path):
    gaps, rest = gaps_of(valid)
    best = layout_of(valid)["index"][0]
    free = -len(gaps) * best % 8
    assert free
    forged = code_bits(gaps, best, rest, extra_bits=[0] * (free - 1) + [1])
    refuse(forge_entry(valid, tmp_path / "x", index=forged), "a padding bit is set")


def test_only_the_canonical_heads_are_taken(valid, tmp_path):
    layout, entry = layout_of(valid), entry_of(valid).numpy().tobytes()
    start, size = layout["index"][1], layout["heads"][1]
    heads = entry[start : start + size]
    entries = heads[0] + 1
    table, code = heads[1 : 1 + entries], heads[1 + entries :]
    path = tmp_path / "x"
    assert load_sparse(forge_entry(valid, path, heads=heads)).masks == valid[2]
    assert entries > 2
    wrong = {
        "unused": bytes([entries]) + table + b"\xff" + code,
        "twice": bytes([entries - 1]) + table[:-1] + table[:1] + code,
        "short": bytes([entries - 2]) + table[:-1] + code,
        "swapped": bytes([entries - 1]) + table[::-1] + code,
        "no code": heads[: 1 + entries],
        "cut table": b"\xff" + table,
        "long": heads + b"\0",
    }
    for forged in wrong.values():
        refuse(forge_entry(valid, path, heads=forged), "tensor '0.weight'")
    refuse(
        forge_entry(valid, path, heads=wrong["no code"], heads_rice=7), "0 bytes of parameter 7 cannot hold"
    )


def test_values_without_heads_and_heads_without_values(tmp_path):
    model = nn.Linear(8, 8, bias=False)
    masks = Masks({"weight": torch.zeros(8, 8, dtype=torch.bool)})
    apply_masks(model, masks)
    save_sparse(model, tmp_path / "empty", masks=masks)
    container = read(tmp_path / "empty")
    strings = {key: value for key, value in container.metadata.items() if key != "content_digest"}
    layout = json.loads(strings["tensors"])["weight"]
    for heads, extra in (([0, 1], 1), ([1, 0], 0)):
        strings["tensors"] = json.dumps({"weight": {**layout, "heads": heads}})
        data = torch.cat([container.tensors["weight"], torch.zeros(extra, dtype=torch.uint8)])
        (tmp_path / "x").write_bytes(pack({"weight": data}, strings))
        refuse(tmp_path / "x", "there are heads, but no values")


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


def test_a_wrong_mask_digest_fails_its_own_check(valid, tmp_path):
    found = refuse(forge(valid, tmp_path / "x", metadata={"mask_digest": "none"}), "digest of its masks")
    assert [check.name for check in found.checks if not check.ok] == ["mask digest"]


def test_verification_finds_what_is_not_finite(tmp_path):
    model = make_model()
    with torch.no_grad():
        model[1].running_var[1] = math.inf
    save_sparse(model, tmp_path / "x")
    (bad,) = [check for check in verify_checkpoint(tmp_path / "x").checks if not check.ok]
    assert bad.name == "finite"
    assert "1.running_var" in bad.detail
    assert json.loads(json.dumps(verify_checkpoint(tmp_path / "x").to_dict()))["ok"] is False


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
    for recipe in ({"a": math.nan}, {"a": torch.ones(1)}, {"a": "\ud800"}):
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
    ],
)
def test_states_that_the_format_cannot_hold(tmp_path, model, message):
    with pytest.raises(CheckpointError, match=message):
        save_sparse(model, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


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
