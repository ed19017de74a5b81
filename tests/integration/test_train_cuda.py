"""Training on a GPU: recorded and compiled steps train as ordinary ones, and no step waits for the device."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers import assert_positive_zero, make_cnn
from integration.train_helpers import GUIDED, PLAIN, pruned
from secateur.data import Augmentation, ImageLoader, ImageSplit
from secateur.enforce import keep_masks
from secateur.errors import DataError, SecateurWarning
from secateur.evaluate import evaluate
from secateur.models import build_model
from secateur.teacher_cache import TeacherLogits
from secateur.train import TrainState, fit

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda", 0)


def loader(n: int = 400, batch_size: int = 16) -> ImageLoader:
    """25 whole batches an epoch, and for other sizes a small one at its end."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(n) % 3
    images = torch.randint(0, 200, (n, 1, 6, 6), dtype=torch.uint8, generator=generator)
    images[torch.arange(n), 0, labels] += 55  # a brighter row says the class
    made = ImageLoader(
        ImageSplit(images, labels),
        batch_size=batch_size,
        mean=(0.5,),
        std=(0.3,),
        augmentation=Augmentation(0, flip=True),
        shuffle=True,
    )
    return made.to(CUDA)


def student(*, dropout: float = 0) -> nn.Sequential:
    return make_cnn(dropout=dropout).to(CUDA)


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning", "error::secateur.errors.SecateurWarning"
)
@pytest.mark.parametrize(
    ("execution", "views", "precision", "n"),
    [
        *itertools.product(["graph"], [0, 2], ["fp32", "bf16"], [400, 410]),
        ("compile", 2, "fp32", 410),
        ("compile", 0, "bf16", 400),
    ],
)
def test_all_ways_train_the_same(execution: Any, views: int, precision: Any, n: int) -> None:
    """A warning that a step ran eagerly after all would fail this test."""
    recipe = replace(GUIDED, epochs=4, lr=0.02, precision=precision, teacher_views=views)
    found = []
    for way in ("eager", execution):
        model, state = student(), TrainState()
        masks = pruned(model)
        run = fit(
            model, loader(n), recipe, masks=masks, teacher=make_cnn(1).to(CUDA), state=state, execution=way
        )
        curve = list(run)
        for name, mask in masks.items():
            assert_positive_zero(model.get_parameter(name)[~mask])
            assert_positive_zero(state.momentum[name][~mask.cpu()])
        found.append(([epoch.loss for epoch in curve], model.state_dict()))
    rough = 0.05 if precision == "bf16" else 2e-3
    assert found[0][0] == pytest.approx(found[1][0], rel=rough)
    for name, value in found[0][1].items():
        torch.testing.assert_close(found[1][1][name].float(), value.float(), rtol=rough, atol=5 * rough)
    assert found[1][0][-1] < found[1][0][0]


@pytest.mark.parametrize("execution", ["eager", "graph"])
@pytest.mark.parametrize("views", [0, 1])
def test_no_step_waits_for_the_device(execution: Any, views: int) -> None:
    """From the end of an epoch's first step to the end of its last, the loader's work included."""
    data = loader(410)
    model = student()
    masks = pruned(model)
    n_steps = 0

    def on_step() -> None:
        nonlocal n_steps
        n_steps += 1
        torch.cuda.set_sync_debug_mode("default" if n_steps % len(data) == 0 else "error")

    try:
        recipe = replace(GUIDED, epochs=4, teacher_views=views)
        list(
            fit(
                model,
                data,
                recipe,
                masks=masks,
                teacher=make_cnn(1).to(CUDA),
                execution=execution,
                on_step=on_step,
            )
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert n_steps == 4 * len(data)


def test_dropout_draws_anew_in_each_replay_and_follows_the_seed() -> None:
    recipe = replace(PLAIN, epochs=4, lr=0.0, teacher_views=0)
    still = replace(loader(), augmentation=None, shuffle=False)
    torch.manual_seed(5)
    before = torch.cuda.get_rng_state()

    def losses(seed: int) -> list[float]:
        run = fit(student(dropout=0.5), still, recipe, seed=seed, execution="graph")
        return [epoch.loss for epoch in run]

    first = losses(1)
    assert len(set(first)) == 4
    assert losses(1) == pytest.approx(first, rel=1e-4)
    assert losses(2) != pytest.approx(first, rel=1e-4)
    assert torch.equal(torch.cuda.get_rng_state(), before)


class Reads(nn.Module):
    """Looks at a value in Python, as a recording cannot."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (1.0 if float(x.detach().abs().max()) > 0 else 2.0)


def test_a_model_that_reads_values_back_trains_eagerly_and_says_so() -> None:
    model = nn.Sequential(Reads(), student(dropout=0.3))
    twin = copy.deepcopy(model)
    with pytest.warns(SecateurWarning, match="reads a value back"):
        curve = list(fit(model, loader(), PLAIN, execution="auto"))
    plain = list(fit(twin, loader(), PLAIN, execution="eager"))
    assert [e.loss for e in curve] == pytest.approx([e.loss for e in plain], rel=2e-3)


def test_trainings_one_after_the_other_share_what_the_teacher_said() -> None:
    data = loader()
    guide = TeacherLogits(make_cnn(1).to(CUDA), data)
    recipe = replace(GUIDED, epochs=4)
    found = []
    for _ in range(3):
        model = student()
        list(fit(model, data, recipe, teacher=guide, execution="graph"))
        found.append(model.state_dict())
    for other in found[1:]:
        for name, value in found[0].items():
            torch.testing.assert_close(other[name].float(), value.float(), rtol=2e-3, atol=5e-3)


def test_data_on_the_host_trains_too() -> None:
    host = loader().to("cpu")
    found = []
    for data in (host, loader()):
        model = student()
        list(fit(model, data, replace(PLAIN, lr=0.02), execution="graph"))
        found.append(model.state_dict())
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name].float(), value.float(), rtol=2e-3, atol=5e-3)


@pytest.mark.parametrize("make", [lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), torch.optim.AdamW])
def test_masks_are_kept_against_nan(make: Callable[[Any], torch.optim.Optimizer]) -> None:
    model = student()
    optimizer, masks = make(model.parameters()), pruned(model)
    x, y = torch.randn(8, 1, 6, 6, device=CUDA), torch.randint(3, (8,), device=CUDA)
    with keep_masks(model, optimizer, masks):
        F.cross_entropy(model(x), y).backward()
        with torch.no_grad():
            for name, mask in masks.items():
                model.get_parameter(name)[~mask] = math.nan
        optimizer.step()
        for name, mask in masks.items():
            assert_positive_zero(model.get_parameter(name)[~mask])
            assert_positive_zero(model.get_parameter(name).grad[~mask])


def test_evaluation_is_that_of_the_cpu_and_checks_its_inputs() -> None:
    model, data = student().eval(), loader()
    here = evaluate(model, data)
    there = evaluate(model.cpu(), data.to("cpu"))
    assert (here.accuracy, here.n_samples) == (pytest.approx(there.accuracy, abs=0.01), there.n_samples)
    assert here.loss == pytest.approx(there.loss, rel=1e-3)
    batches = [(x.clone(), y) for x, y in data]
    batches[3][0][2] = math.nan
    with pytest.raises(DataError, match="NaN or infinity"):
        evaluate(model.to(CUDA), batches)


def test_a_resnet_with_channels_last_weights_is_recorded() -> None:
    """Among them those of 1×1 convolutions, whose strides have more than one spelling."""
    split = ImageSplit(torch.randint(0, 256, (256, 3, 32, 32), dtype=torch.uint8), torch.arange(256) % 10)
    data = ImageLoader(split, batch_size=32, mean=(0.5,) * 3, std=(0.3,) * 3, shuffle=True).to(CUDA)
    for name in ("resnet20", "resnet18"):
        model = build_model(name, num_classes=10, in_channels=3).to(CUDA)
        masks = pruned(model, 0.9)
        curve = list(fit(model, data, replace(PLAIN, epochs=12, lr=0.02), masks=masks, execution="graph"))
        assert curve[-1].loss < curve[0].loss
        assert not torch.backends.cudnn.benchmark
