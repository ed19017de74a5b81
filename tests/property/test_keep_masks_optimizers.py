"""Whatever trains inside `keep_masks`: a pruned weight is exactly +0.0 after every step."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers import SharedNet, assert_positive_zero, images, make_cnn, make_mlp, vectors
from property.keep_masks_helpers import (
    CLIPPINGS,
    OPTIMIZERS,
    STEPS,
    VARIANTS,
    assert_kept,
    assert_state_is_zero,
    assert_trained,
    build,
    masks_for,
    step,
)
from secateur.enforce import keep_masks

DECAYING = [
    variant
    for variant, (name, _) in VARIANTS.items()
    if "weight_decay" in inspect.signature(OPTIMIZERS[name]).parameters
]


def test_torch_has_the_optimizers_that_are_expected() -> None:
    assert {"SGD", "Adam", "AdamW", "LBFGS", "Rprop", "ASGD", "Adafactor"} <= set(OPTIMIZERS)


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("clipping", CLIPPINGS)
@pytest.mark.parametrize(
    ("variant", "decay"),
    [*((variant, 0.0) for variant in VARIANTS), *((variant, 0.1) for variant in DECAYING)],
)
def test_every_optimizer_keeps_masks(variant: str, decay: float, clipping: str, bf16: bool) -> None:
    model = make_mlp()
    optimizer = build(variant, model, **({"weight_decay": decay} if variant in DECAYING else {}))
    batches = vectors(STEPS)
    for batch in batches[:3]:  # a dense start: weights, gradients and momentum that are not zero
        step(model, optimizer, batch)
    masks = masks_for(model)
    before = copy.deepcopy(model.state_dict())
    with keep_masks(model, optimizer, masks):
        assert_kept(model, masks)
        assert_state_is_zero(model, optimizer, masks)
        for batch in batches:
            step(model, optimizer, batch, clip=CLIPPINGS[clipping], bf16=bf16)
            assert_kept(model, masks)
            assert_state_is_zero(model, optimizer, masks)
    assert_trained(model, before, masks)
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("variant", ["SGD nesterov", "Adam", "Adafactor"])
def test_a_convolutional_network_keeps_masks(variant: str, layout: torch.memory_format) -> None:
    model = make_cnn().to(memory_format=layout)  # type: ignore[call-overload]
    optimizer = build(variant, model, weight_decay=0.1)
    masks = masks_for(model)
    before = copy.deepcopy(model.state_dict())
    with keep_masks(model, optimizer, masks):
        for batch in images(STEPS):
            step(model, optimizer, batch, bf16=True)
            assert_kept(model, masks)
            assert_state_is_zero(model, optimizer, masks)
    assert_trained(model, before, masks)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_keep_masks(dtype: torch.dtype) -> None:
    model = make_mlp().to(dtype)
    optimizer = build("SGD nesterov", model, weight_decay=0.1)
    masks = masks_for(model)
    with keep_masks(model, optimizer, masks):
        for x, y in vectors(STEPS):
            step(model, optimizer, (x.to(dtype), y))
            assert_kept(model, masks)


def test_a_shared_weight_keeps_its_mask() -> None:
    model = SharedNet()
    optimizer = build("Adam", model)
    masks = masks_for(model)
    with keep_masks(model, optimizer, masks):
        for batch in vectors(STEPS):
            step(model, optimizer, batch)
            assert_kept(model, masks)
            assert_positive_zero(model.second.weight[~masks["first.weight"]])


def test_training_equals_training_with_hand_masked_gradients_and_weights() -> None:
    """What is kept trains as if the pruned weights did not exist."""
    model = make_mlp()
    masks = masks_for(model)
    twin = copy.deepcopy(model)
    optimizer, other = build("SGD nesterov", model), build("SGD nesterov", twin)
    with torch.no_grad():
        for name, p in masks.match(twin).items():
            p.mul_(masks[name])
    with keep_masks(model, optimizer, masks):
        for x, y in vectors(STEPS):
            step(model, optimizer, (x, y))
            other.zero_grad()
            F.cross_entropy(twin(x), y).backward()
            for name, p in masks.match(twin).items():
                assert p.grad is not None
                p.grad.mul_(masks[name])
            other.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)


def test_clipping_sees_the_gradients_of_kept_weights_only() -> None:
    model = make_mlp()
    masks = masks_for(model)
    optimizer = build("SGD", model)
    (x, y), *_ = vectors()
    with keep_masks(model, optimizer, masks):
        F.cross_entropy(model(x), y).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1e9)
        kept = [p.grad[masks[name]] if name in masks else p.grad for name, p in model.named_parameters()]  # type: ignore[index]
        assert float(norm) == pytest.approx(float(torch.cat([g.reshape(-1) for g in kept]).norm()), rel=1e-6)  # type: ignore[union-attr]


def test_gradients_from_before_do_not_reach_the_optimizer() -> None:
    model = make_mlp()
    optimizer = build("SGD momentum", model)
    masks = masks_for(model)
    (x, y), *_ = vectors()
    F.cross_entropy(model(x), y).backward()
    with keep_masks(model, optimizer, masks):
        optimizer.step()
        assert_kept(model, masks)
        assert_state_is_zero(model, optimizer, masks)


def test_gradients_accumulated_over_batches_stay_masked() -> None:
    model = make_mlp()
    optimizer = build("Adam", model)
    masks = masks_for(model)
    with keep_masks(model, optimizer, masks):
        for place, (x, y) in enumerate(vectors(STEPS)):
            F.cross_entropy(model(x), y).backward()
            assert_kept(model, masks)
            if place % 4 == 3:
                optimizer.step()
                optimizer.zero_grad(set_to_none=False)
                assert_state_is_zero(model, optimizer, masks)


def test_lbfgs_never_looks_at_a_revived_weight_within_a_step() -> None:
    """Its history from before is dense; a direction made of it would revive weights between closures."""
    model = make_mlp()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.05)
    masks = masks_for(model)
    (x, y), *_ = vectors()
    inside = False

    def closure() -> Tensor:
        if inside:
            masks.check(model)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    with keep_masks(model, optimizer, masks):
        inside = True
        for _ in range(3):
            optimizer.step(closure)  # type: ignore[arg-type]


def test_a_gradient_scaler_works_also_when_it_skips_a_step() -> None:
    model = make_mlp()
    optimizer = build("SGD momentum", model, weight_decay=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    masks = masks_for(model)
    before = copy.deepcopy(model.state_dict())
    with keep_masks(model, optimizer, masks):
        for place, (x, y) in enumerate(vectors(STEPS)):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y) * (float("inf") if place == 2 else 1.0)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=False)
            scaler.step(optimizer)
            scaler.update()
            masks.check(model)
            assert_state_is_zero(model, optimizer, masks)
    assert scaler.get_scale() == 512.0
    assert_trained(model, before, masks)
