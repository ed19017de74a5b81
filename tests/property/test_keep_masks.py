"""What `keep_masks` attaches to a model, that it goes again, and models inside wrappers."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from helpers import Snapshot, hooks_of, make_cnn, make_mlp, vectors
from property.keep_masks_helpers import (
    STEPS,
    assert_kept,
    assert_training_keeps_masks,
    build,
    masks_for,
    step,
)
from secateur.enforce import keep_masks
from secateur.errors import InvalidArgument, MaskError

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
        assert list(model.state_dict()) == before.flags["names in the state dict"]
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
    assert_training_keeps_masks(compiled, model)


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


def test_arguments_of_keep_masks_that_changed_places_are_told() -> None:
    model: Any = make_mlp()
    masks: Any = masks_for(model)
    optimizer: Any = torch.optim.SGD(model.parameters(), lr=0.1)
    for wrong, name in (
        ((model, masks, optimizer), "optimizer"),
        ((optimizer, model, masks), "model"),
        ((model, optimizer, model), "masks"),
    ):
        says = rf"^{name} must be an? .* in keep_masks\(model, optimizer, masks\), got "
        with pytest.raises(InvalidArgument, match=says), keep_masks(*wrong):
            pass
