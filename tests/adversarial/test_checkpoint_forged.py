"""Checkpoints with false contents under a right content digest are refused all the same."""

import json
import tracemalloc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from adversarial.checkpoint_helpers import entry_of, forge, layout_of, refuse
from secateur.checkpoint import inspect_checkpoint, load_sparse, save_sparse
from secateur.checkpoint.container import pack, read
from secateur.errors import CheckpointError
from secateur.masks import Masks, apply_masks


def test_the_forge_alone_breaks_nothing(valid, tmp_path):
    assert load_sparse(forge(valid, tmp_path / "x")).masks == valid[2]


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


def test_a_wrong_mask_digest_fails_its_own_check(valid, tmp_path):
    found = refuse(forge(valid, tmp_path / "x", metadata={"mask_digest": "none"}), "digest of its masks")
    assert [check.name for check in found.checks if not check.ok] == ["mask digest"]
