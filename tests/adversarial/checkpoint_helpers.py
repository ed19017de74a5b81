"""How the tests of bad checkpoints forge a file, and what they ask of every reader."""

import json

import pytest
import torch
from torch import nn

from secateur.checkpoint import load_sparse, verify_checkpoint
from secateur.checkpoint.container import pack, read
from secateur.errors import CheckpointError


def make_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Linear(8, 6))


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
