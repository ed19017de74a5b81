"""Whatever trains inside `keep_masks`: a pruned weight is exactly +0.0 after every step."""

from __future__ import annotations

import copy
import inspect
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from helpers import SharedNet, Snapshot, assert_positive_zero, hooks_of, images, make_cnn, make_mlp, vectors
from secateur.enforce import keep_masks
from secateur.errors import MaskError
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
DECAYING = [
    variant
    for variant, (name, _) in VARIANTS.items()
    if "weight_decay" in inspect.signature(OPTIMIZERS[name]).parameters
]


def test_torch_has_the_optimizers_that_are_expected() -> None:
    assert {"SGD", "Adam", "AdamW", "LBFGS", "Rprop", "ASGD", "Adafactor"} <= set(OPTIMIZERS)


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


# What is attached, and that it goes


def attached(model: nn.Module, optimizer: Optimizer) -> int:
    return sum(hooks_of(model).values()) + len(optimizer._optimizer_step_post_hooks)


def test_nothing_is_renamed_and_every_hook_is_removed() -> None:
    model = make_cnn()
    optimizer = build("SGD", model)
    masks = masks_for(model)
    before = Snapshot.of(model)
    with keep_masks(model, optimizer, masks):
        assert attached(model, optimizer) == len(masks) + 1
        assert list(model.state_dict()) == before.flags["keys"]
        assert all(p is before.tensors[name][0] for name, p in model.named_parameters())
    assert attached(model, optimizer) == 0
    assert Snapshot.of(model).flags == before.flags


def test_an_exception_in_the_body_passes_and_leaves_no_hook() -> None:
    model = make_mlp()
    optimizer = build("SGD", model)

    def body() -> None:
        with keep_masks(model, optimizer, masks_for(model)):
            with torch.no_grad():
                model[0].weight.fill_(1.0)  # a violation must not hide the exception
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        body()
    assert attached(model, optimizer) == 0


def test_a_weight_written_after_the_last_step_is_found_on_exit() -> None:
    model = make_mlp()
    optimizer = build("SGD", model)
    masks = masks_for(model)

    def body() -> None:
        with keep_masks(model, optimizer, masks):
            step(model, optimizer, vectors()[0])
            with torch.no_grad():
                model[2].weight.fill_(1.0)

    with pytest.raises(MaskError, match=r"pruned weights of '2\.weight' are no longer zero"):
        body()
    assert attached(model, optimizer) == 0


def test_a_weight_written_between_steps_is_zero_after_the_next() -> None:
    model = make_mlp()
    optimizer = build("SGD", model)
    masks = masks_for(model)
    with keep_masks(model, optimizer, masks):
        with torch.no_grad():
            model[2].weight.fill_(1.0)
        step(model, optimizer, vectors()[0])
        assert_kept(model, masks)


def test_outside_the_block_pruned_weights_train_again() -> None:
    model = make_mlp()
    optimizer = build("SGD", model)
    masks = masks_for(model)
    with keep_masks(model, optimizer, masks):
        pass
    step(model, optimizer, vectors()[0])
    with pytest.raises(MaskError):
        masks.check(model)


def test_a_copy_made_inside_is_free() -> None:
    model = make_mlp()
    optimizer = build("SGD", model)
    masks = masks_for(model)
    with keep_masks(model, optimizer, masks):
        step(model, optimizer, vectors()[0])
        twin = copy.deepcopy(model)
        average = torch.optim.swa_utils.AveragedModel(model)
        average.update_parameters(model)
        assert hooks_of(twin) == {}
        masks.check(twin)
        masks.check(average.module)
        for other in (twin, average.module):
            free = build("SGD", other)
            step(other, free, vectors()[1])
            assert bool((other[2].weight[~masks["2.weight"]] != 0).any())
        assert_kept(model, masks)


def test_what_is_saved_inside_is_plain(tmp_path: Path) -> None:
    model = make_mlp()
    optimizer = build("Adam", model)
    masks = masks_for(model)
    with keep_masks(model, optimizer, masks):
        step(model, optimizer, vectors()[0])
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "x.pt")
    found = torch.load(tmp_path / "x.pt", weights_only=True)
    twin = make_mlp(7)
    twin.load_state_dict(found["model"])
    build("Adam", twin).load_state_dict(found["optimizer"])
    masks.check(twin)


def test_blocks_can_be_nested_and_repeated() -> None:
    model = make_mlp()
    optimizer = build("SGD momentum", model)
    outer, inner = masks_for(model, seed=1), masks_for(model, seed=2)
    with keep_masks(model, optimizer, outer):
        with keep_masks(model, optimizer, inner):
            for batch in vectors(STEPS):
                step(model, optimizer, batch)
                assert_kept(model, outer & inner)
        step(model, optimizer, vectors()[0])
        assert_kept(model, outer)
    assert attached(model, optimizer) == 0


def test_frozen_weights_are_cut_and_left_alone() -> None:
    model = make_mlp()
    model[0].weight.requires_grad_(False)
    masks = masks_for(model)
    kept = model[0].weight[masks["0.weight"]].clone()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with keep_masks(model, optimizer, masks):
        step(model, optimizer, vectors()[0])
        assert_kept(model, masks)
    assert torch.equal(model[0].weight[masks["0.weight"]], kept)


def test_an_optimizer_of_another_model_is_refused() -> None:
    model = make_mlp()
    optimizer = build("SGD", copy.deepcopy(model))
    before = Snapshot.of(model)
    with (
        pytest.raises(MaskError, match="trains none of the masked weights"),
        keep_masks(model, optimizer, masks_for(model)),
    ):
        pytest.fail("the body must not run")
    before.assert_unchanged(model)


def test_masks_of_another_model_are_refused() -> None:
    model = make_mlp()
    optimizer = build("SGD", model)
    others = (make_mlp(width=9), make_cnn())
    before = Snapshot.of(model)
    for other in others:
        with (
            pytest.raises(MaskError, match="made for another model"),
            keep_masks(model, optimizer, masks_for(other)),
        ):
            pytest.fail("the body must not run")
    before.assert_unchanged(model)
    assert attached(model, optimizer) == 0


# Wrappers


def test_a_compiled_model_keeps_masks() -> None:
    model = make_mlp()
    compiled: Any = torch.compile(model, backend="aot_eager")
    optimizer = build("SGD nesterov", compiled, weight_decay=0.1)
    masks = masks_for(model)
    before = copy.deepcopy(model.state_dict())
    with keep_masks(compiled, optimizer, masks):
        for batch in vectors(STEPS):
            step(compiled, optimizer, batch)
            assert_kept(model, masks)
            assert_state_is_zero(model, optimizer, masks)
    assert_trained(model, before, masks)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # from inside torch's compiler
def test_a_model_compiled_to_native_code_keeps_masks() -> None:
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("torch.compile needs a C++ compiler on the CPU")
    model = make_mlp()
    compiled: Any = torch.compile(model)
    optimizer = build("Adam", compiled, weight_decay=0.1)
    masks = masks_for(model)
    with keep_masks(compiled, optimizer, masks):
        for batch in vectors(STEPS):
            step(compiled, optimizer, batch)
            assert_kept(model, masks)


@pytest.mark.parametrize("as_view", [False, True])
def test_a_distributed_model_keeps_masks(tmp_path: Path, as_view: bool) -> None:
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        pytest.skip("torch was built without gloo")
    torch.distributed.init_process_group(
        "gloo", init_method=(tmp_path / "rendezvous").as_uri(), rank=0, world_size=1
    )
    try:
        model = make_mlp()
        wrapped = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=as_view)
        optimizer = build("SGD nesterov", wrapped, weight_decay=0.1)
        masks = masks_for(model)
        before = copy.deepcopy(model.state_dict())
        with keep_masks(wrapped, optimizer, masks):
            for batch in vectors(STEPS):
                step(wrapped, optimizer, batch)
                assert_kept(model, masks)
                assert_state_is_zero(model, optimizer, masks)
        assert_trained(model, before, masks)
    finally:
        torch.distributed.destroy_process_group()
