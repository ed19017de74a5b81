"""Small facts about a network: where it is, and which mode each part is in."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def modes_kept(model: nn.Module) -> Generator[None]:
    """Give every module back the training flag it had."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def device_of(model: nn.Module) -> torch.device:
    """Where the first parameter of `model` lives; the CPU for a model without any."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def share_weights(one: nn.Module, other: nn.Module) -> bool:
    """Whether any parameter of `one` is also one of `other`, as in a wrapper of it."""
    ours = {id(parameter) for parameter in one.parameters()}
    return any(id(parameter) in ours for parameter in other.parameters())
