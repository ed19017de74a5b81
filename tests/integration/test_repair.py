"""How fast, and in which mode, the steps after a cut go; and when they are undone or taken again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from integration.calibration_helpers import STEPS, cut_copy, inputs, loss_of, network, same, state_of
from secateur.calibration import CalibrationRecovery, distil_on_inputs, noise_of
from secateur.cutting import cut
from secateur.errors import TrainingError
from secateur.scores import Magnitude
from secateur.stages import Stage

CAREFREE = replace(STEPS, cautious=False)


def test_noise_is_what_batch_statistics_make() -> None:
    x = torch.cat(inputs())
    plain = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    dropping = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, 3))
    for model in (plain, dropping):
        assert noise_of(model, x, STEPS) == pytest.approx(0.0, abs=1e-6)
    normalised = network()
    before = state_of(normalised)
    small, large = (noise_of(normalised, x, replace(STEPS, batch_size=size)) for size in (4, 32))
    assert small > large > 0
    assert same(state_of(normalised), before)
    assert not normalised.training
    assert noise_of(normalised, x, replace(STEPS, batchnorm="fixed")) == 0.0


def test_without_noise_caution_changes_nothing_that_helps() -> None:
    def student() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.ReLU(), nn.Linear(24, 3))

    found = []
    for recipe in (STEPS, CAREFREE):
        model = student()
        losses: list[Any] = []
        cut(
            model,
            inputs(),
            Magnitude(),
            sparsity=0.8,
            stages=2,
            recovery=recipe,
            on_stage=lambda stage, to=losses: to.append(stage.loss),
        )
        assert all(after < cut_ for _, cut_, after in losses)
        found.append(state_of(model))
    assert same(*found)


def test_steps_that_do_more_harm_than_the_cut_are_undone() -> None:
    harmful = {"steps": 3, "final_steps": 3, "lr": 1.0, "batch_size": 4}
    bare, dense, _ = cut_copy(Magnitude(), sparsity=0.02)
    spoilt, _, spoiling = cut_copy(Magnitude(), sparsity=0.02, recovery=replace(CAREFREE, **harmful))
    kept, _, keeping = cut_copy(Magnitude(), sparsity=0.02, recovery=replace(STEPS, **harmful))
    assert spoiling[-1].loss[2] > spoiling[-1].loss[1]  # type: ignore[index]
    assert keeping[-1].loss[2] <= keeping[-1].loss[1]  # type: ignore[index]
    assert loss_of(kept, dense) <= loss_of(bare, dense) + 1e-6 < loss_of(spoilt, dense)


def test_a_cut_that_did_little_harm_gets_a_lower_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []

    def recorded(*args: Any, share: float, **options: Any) -> object:
        shares.append(share)
        return distil_on_inputs(*args, share=share, **options)

    monkeypatch.setattr("secateur.repair.distil_on_inputs", recorded)
    _, _, seen = cut_copy(Magnitude(), stages=4, sparsity=0.9, recovery=STEPS)
    noise = noise_of(network(), torch.cat(inputs()), STEPS)
    expected = [stage.loss[1] / (stage.loss[1] + noise) for stage in seen]  # type: ignore[index]
    assert shares == pytest.approx(expected, rel=1e-5)
    assert 0 < shares[0] < shares[-1] < 1
    shares.clear()
    cut_copy(Magnitude(), stages=4, sparsity=0.9, recovery=CAREFREE)
    assert shares == [1.0] * 4


def regression(scale: float = 1.0) -> tuple[nn.Sequential, list[Tensor]]:
    """A network without noise of its own, and outputs in some unit."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
    with torch.no_grad():
        model[4].weight.mul_(scale)
    return model, [torch.randn(32, 12) for _ in range(4)]


def cut_regression(recipe: CalibrationRecovery, scale: float = 1.0) -> tuple[nn.Sequential, list[Stage]]:
    model, batches = regression(scale)
    seen: list[Stage] = []
    cut(
        model,
        batches,
        Magnitude(),
        sparsity=0.8,
        exclude=["4.weight"],
        stages=3,
        recovery=recipe,
        on_stage=seen.append,
    )
    return model, seen


REGRESSION = CalibrationRecovery(steps=30, final_steps=60, kd="mse", lr=0.003)


@pytest.mark.parametrize("lr", [1.0, 30.0])
def test_steps_at_too_high_a_rate_for_the_network_are_taken_again_at_a_lower_one(lr: float) -> None:
    with pytest.raises(TrainingError, match="Lower lr"):
        cut_regression(replace(REGRESSION, lr=30.0, cautious=False))
    model, seen = cut_regression(replace(REGRESSION, lr=lr))
    assert all(stage.loss[2] < stage.loss[1] for stage in seen)  # type: ignore[index]
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert seen[0].n_steps > 30  # those that were undone, too


@pytest.mark.parametrize("scale", [0.05, 1e3])
def test_outputs_in_any_unit_are_learnt(scale: float) -> None:
    _, seen = cut_regression(REGRESSION, scale)
    assert all(stage.loss[2] < 0.8 * stage.loss[1] for stage in seen)  # type: ignore[index]


def test_a_stage_with_hardly_anything_to_repair_does_not_slow_down_the_next() -> None:
    model, batches = regression()
    with torch.no_grad():  # what the first stage takes
        model[2].weight[:, :30] *= 1e-4
    seen: list[Stage] = []
    cut(model, batches, Magnitude(), sparsity=0.8, stages=2, recovery=REGRESSION, on_stage=seen.append)
    assert seen[0].loss[2] <= seen[0].loss[1] < 1e-3 * seen[1].loss[1]  # type: ignore[index]
    assert seen[1].loss[2] < 0.7 * seen[1].loss[1]  # type: ignore[index]


@pytest.mark.parametrize("momentum", [None, 0.001])
def test_running_averages_follow_the_steps_whatever_their_momentum(momentum: float | None) -> None:
    def after(momentum: float | None) -> dict[str, Tensor]:
        model = network()
        model[1].momentum = momentum
        model[1].num_batches_tracked.fill_(10_000)
        cut(model, inputs(), Magnitude(), sparsity=0.8, stages=2, recovery=STEPS)
        assert model[1].momentum == momentum
        return state_of(model)

    assert same(after(momentum), after(0.1))


def test_dropout_is_off_in_the_steps() -> None:
    def after(p: float) -> dict[str, Tensor]:
        model = nn.Sequential(*network(), nn.Dropout(p)).train()
        cut(model, inputs(), Magnitude(), sparsity=0.8, stages=2, recovery=STEPS)
        assert all(module.training for module in model.modules())
        return state_of(model)

    assert same(after(0.5), after(0.0))


class Counting(nn.Module):
    """A teacher that counts how often it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()
        self.register_buffer("asked", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.asked += 1
        return self.inner(x)


@pytest.mark.parametrize("augment", ["none", "flip-shift"])
def test_the_teacher_comes_back_as_it_was(augment: Any) -> None:
    teacher = Counting().train()
    cut_copy(Magnitude(), recovery=replace(STEPS, augment=augment), teacher=teacher)
    assert float(teacher.asked) == 0  # type: ignore[arg-type]
    assert teacher.training
