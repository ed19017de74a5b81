"""The bytes of version 1 never change, and docs/format.md tells the truth about them."""

import os
import re
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from reference.checkpoint import content_digest, read_sparse, split_file
from secateur import Magnitude, build_model, cut, load_weights
from secateur.checkpoint import inspect_checkpoint, load_sparse, save_sparse, verify_checkpoint
from secateur.masks import Masks

GOLDEN = Path(__file__).parent / "checkpoint_v1.safetensors"
DOC = Path(__file__).parents[2] / "docs" / "format.md"
DATA = Path(os.environ.get("SECATEUR_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
RESNET20 = DATA / "resnet20-cifar10.safetensors"
KEPT = {5: 0.5, 20: -0.25, 21: 0.75, 30: 0.5}


def golden_model() -> nn.Linear:
    model = nn.Linear(8, 4)
    with torch.no_grad():
        model.weight.zero_()
        for position, value in KEPT.items():
            model.weight[position // 8, position % 8] = value
        model.bias.copy_(torch.tensor([1.0, 0.0, 0.0, -2.0]))
    return model


def test_the_golden_model_gives_the_golden_bytes(tmp_path):
    model = golden_model()
    masks = Masks({"weight": model.weight.detach() != 0})
    save_sparse(model, tmp_path / "x", masks=masks, recipe={"criterion": "magnitude"}, sparsity_asked=0.875)
    assert (tmp_path / "x").read_bytes() == GOLDEN.read_bytes()


def test_the_golden_bytes_give_the_golden_model():
    fresh = nn.Linear(8, 4)
    found = load_sparse(GOLDEN, into=fresh)
    assert torch.equal(fresh.weight, golden_model().weight)
    assert torch.equal(fresh.bias, golden_model().bias)
    assert found.masks["weight"].reshape(-1).nonzero().reshape(-1).tolist() == list(KEPT)
    assert found.metadata.recipe == {"criterion": "magnitude"}
    assert verify_checkpoint(GOLDEN).ok


def test_a_slow_reader_reads_the_golden_bytes():
    header, payload = split_file(GOLDEN.read_bytes())
    assert header["__metadata__"]["content_digest"] == content_digest(header, payload)
    weight = read_sparse(GOLDEN.read_bytes())["weight"]
    assert {i: value for i, value in enumerate(weight.weights) if weight.mask[i]} == KEPT


def test_the_worked_example_is_the_golden_file():
    """The header as JSON and the data as hexadecimal, in this order, are all there is."""
    example = DOC.read_text().split("## Worked example")[1].split("\n## ")[0]
    (header,) = re.findall(r"```json\n(.*)\n```", example)
    (table,) = re.findall(r"```hex\n(.*?)```", example, re.DOTALL)
    data = bytes.fromhex("".join(line.split("|")[0] for line in table.splitlines()))
    text = header.encode() + b" " * (-len(header.encode()) % 8)
    assert struct.pack("<Q", len(text)) + text + data == GOLDEN.read_bytes()


@pytest.mark.skipif(not RESNET20.is_file(), reason="no pretrained ResNet-20 at hand")
def test_a_90_percent_sparse_resnet20_is_much_smaller_than_dense(tmp_path):
    model = build_model("resnet20", num_classes=10, in_channels=3)
    load_weights(model, RESNET20)
    masks = cut(model, None, Magnitude(), sparsity=0.9)
    save_sparse(model, tmp_path / "s.safetensors", masks=masks)
    save_file(model.state_dict(), tmp_path / "d.safetensors")
    sparse, dense = ((tmp_path / f"{kind}.safetensors").stat().st_size for kind in "sd")
    assert dense / sparse >= 6.5
    assert inspect_checkpoint(tmp_path / "s.safetensors").dense_size_bytes == dense
    values = sum(
        row.size_bytes for row in inspect_checkpoint(tmp_path / "s.safetensors").rows if row.name in masks
    )
    assert values <= 5.1 * masks.n_keep
