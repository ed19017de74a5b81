"""Damaged files of ``torch.save``: refused in words or read, never with an error out of torch's insides."""

from __future__ import annotations

import random
import re
from io import BytesIO
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import nn

from secateur.checkpoint import save_sparse
from secateur.errors import CheckpointError, ModelError
from secateur.models import load_weights


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4))


def saved(*, as_zip: bool) -> bytes:
    file = BytesIO()
    torch.save(network().state_dict(), file, _use_new_zipfile_serialization=as_zip)
    return file.getvalue()


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Cut short, or with a few other bytes at the beginning, where the names and shapes are."""
    if draw.random() < 0.25:
        return content[: draw.randrange(len(content))]
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 5))):
        changed[draw.randrange(min(len(content), 1500))] = draw.randrange(256)
    return bytes(changed)


def refusal(model: nn.Module, path: Path) -> str | None:
    """What the file is refused with, if it is."""
    try:
        load_weights(model, path)
    except ModelError as error:
        return str(error)
    return None


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("as_zip", [True, False])
def test_a_damaged_file_is_read_whole_or_refused(tmp_path: Path, as_zip: bool) -> None:
    content, draw, n_refused = saved(as_zip=as_zip), random.Random(0), 0
    path = tmp_path / "weights.pt"
    for _ in range(400):
        path.write_bytes(damaged(content, draw))
        model = network()
        message = refusal(model, path)
        if message is not None:
            n_refused += 1
            assert str(path) in message
            before = network().state_dict()
            assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert n_refused > 100


def test_a_lazy_layer_that_has_seen_no_input_is_not_filled(tmp_path: Path) -> None:
    made = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8))
    torch.save(made.state_dict(), tmp_path / "dense.pt")
    save_sparse(made, tmp_path / "sparse.safetensors")
    (tmp_path / "dense.safetensors").write_bytes(save(made.state_dict()))
    for name in ("dense.pt", "dense.safetensors", "sparse.safetensors"):
        for lazy, missing in (
            (nn.Sequential(nn.LazyLinear(8), nn.BatchNorm1d(8)), "0.weight"),
            (nn.Sequential(nn.Linear(3, 8), nn.LazyBatchNorm1d(affine=False)), "1.running_mean"),
        ):
            says = f"'{missing}' of Sequential has no shape yet.*Run one batch through the model first"
            with pytest.raises((ModelError, CheckpointError), match=says):
                load_weights(lazy, tmp_path / name)


@pytest.mark.parametrize("as_zip", [True, False])
def test_a_pickled_model_is_refused_in_our_own_words(tmp_path: Path, as_zip: bool) -> None:
    torch.save(network(), tmp_path / "model.pt", _use_new_zipfile_serialization=as_zip)
    message = refusal(network(), tmp_path / "model.pt")
    assert message is not None
    assert re.search(r"model\.pt' is not a file of plain tensors: .* a whole model", message)
    assert "\x1b" not in message
    assert "weights_only" not in message


def test_a_model_without_memory_is_not_filled(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "dense.pt")
    save_sparse(network(), tmp_path / "sparse.safetensors")
    for name in ("dense.pt", "sparse.safetensors"):
        with pytest.raises((ModelError, CheckpointError), match="meta"):
            load_weights(network().to("meta"), tmp_path / name)
