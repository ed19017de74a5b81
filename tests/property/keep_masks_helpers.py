"""Optimizers, steps and checks that the tests of `keep_masks` share."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from helpers import assert_positive_zero, vectors
from secateur.enforce import keep_masks
from secateur.masks import Masks

STEPS = 20
EXCLUDED = {"Optimizer": "the base class", "SparseAdam": "takes sparse gradients only"}
OPTIMIZERS = {
    name: found
    for name, found in vars(torch.optim).items()
    if inspect.isclass(found) and issubclass(found, Optimizer) and name not in EXCLUDED
}
NEVER_ZERO = {"Adamax": {"exp_inf"}, "Rprop": {"step_size"}}
"""State that has a floor of its own, and multiplies a zero: Adamax adds eps, Rprop has a smallest step."""

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in OPTIMIZERS},
    "SGD momentum": ("SGD", {"momentum": 0.9}),
    "SGD nesterov": ("SGD", {"momentum": 0.9, "nesterov": True}),
    "SGD dampening": ("SGD", {"momentum": 0.9, "dampening": 0.5}),
    "SGD maximize foreach": ("SGD", {"momentum": 0.9, "maximize": True, "foreach": True}),
    "SGD fused": ("SGD", {"momentum": 0.9, "fused": True}),
    "RMSprop centered": ("RMSprop", {"momentum": 0.9, "centered": True}),
    "Adam amsgrad": ("Adam", {"amsgrad": True}),
    "Adam foreach": ("Adam", {"foreach": True}),
    "Adam fused": ("Adam", {"fused": True}),
    "AdamW amsgrad fused": ("AdamW", {"amsgrad": True, "fused": True}),
    "NAdam decoupled": ("NAdam", {"decoupled_weight_decay": True}),
    "RAdam decoupled": ("RAdam", {"decoupled_weight_decay": True}),
    "Adagrad warm": ("Adagrad", {"initial_accumulator_value": 0.1}),
}
CLIPPINGS: dict[str, Callable[[nn.Module], object]] = {
    "unclipped": lambda model: None,
    "norm": lambda model: nn.utils.clip_grad_norm_(model.parameters(), 0.1),
    "value": lambda model: nn.utils.clip_grad_value_(model.parameters(), 0.01),
}


def build(variant: str, model: nn.Module, **options: Any) -> Optimizer:
    name, more = VARIANTS[variant]
    parameters = [p for p in model.parameters() if name != "Muon" or p.ndim == 2]  # Muon takes matrices only
    return OPTIMIZERS[name](parameters, lr=0.05, **more, **options)


def masks_for(model: nn.Module, density: float = 0.4, seed: int = 3) -> Masks:
    """Random masks in which every input of a layer still feeds something, so that all that is kept trains."""
    generator = torch.Generator().manual_seed(seed)
    masks: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            mask = torch.rand(parameter.shape, generator=generator) < density
            rows, columns = mask.shape[:2]
            mask[torch.arange(columns) % rows, torch.arange(columns)] = True
            masks[name] = mask
    return Masks(masks)


def step(
    model: nn.Module,
    optimizer: Optimizer,
    batch: tuple[Tensor, Tensor],
    *,
    clip: Callable[[nn.Module], object] = CLIPPINGS["unclipped"],
    bf16: bool = False,
) -> None:
    def closure() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        clip(model)
        return loss

    if isinstance(optimizer, torch.optim.LBFGS):
        optimizer.step(closure)  # type: ignore[arg-type]
    else:
        closure()
        optimizer.step()


def assert_kept(model: nn.Module, masks: Masks) -> None:
    for name, parameter in masks.match(model).items():
        assert_positive_zero(parameter[~masks[name]])
        if parameter.grad is not None:
            assert_positive_zero(parameter.grad[~masks[name]])


def assert_state_is_zero(model: nn.Module, optimizer: Optimizer, masks: Masks) -> None:
    """Every remembered tensor shaped like a weight is zero where the weight is pruned."""
    for name, parameter in masks.match(model).items():
        for key, value in optimizer.state.get(parameter, {}).items():
            like = isinstance(value, Tensor) and value.shape == parameter.shape
            if like and key not in NEVER_ZERO.get(type(optimizer).__name__, ()):
                assert bool((value[~masks[name]] == 0).all()), f"{key} of {name}"


def assert_trained(model: nn.Module, before: dict[str, Tensor], masks: Masks) -> None:
    """Nearly all kept weights have moved."""
    for name, parameter in masks.match(model).items():
        moved = parameter[masks[name]] != before[name][masks[name]]
        assert float(moved.float().mean()) > 0.9, name


def assert_training_keeps_masks(wrapped: nn.Module, model: nn.Module) -> None:
    """A few steps of `wrapped` keep the masks of the `model` in it, at every step, and train the rest."""
    optimizer = build("SGD nesterov", wrapped, weight_decay=0.1)
    masks = masks_for(model)
    before = copy.deepcopy(model.state_dict())
    with keep_masks(wrapped, optimizer, masks):
        for batch in vectors(STEPS):
            step(wrapped, optimizer, batch)
            assert_kept(model, masks)
            assert_state_is_zero(model, optimizer, masks)
    assert_trained(model, before, masks)
