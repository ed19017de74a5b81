"""What every strategy promises, whatever it does: checked on the digits, for all that are registered."""

from __future__ import annotations

import copy
import re
from dataclasses import FrozenInstanceError, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from helpers import assert_positive_zero, hooks_of, same_state
from secateur.counts import n_prune
from secateur.data import Data, DataOptions, load_data
from secateur.errors import TrainingError
from secateur.evaluate import evaluate
from secateur.models import build_model
from secateur.recovery import Recovery
from secateur.strategies import STRATEGIES, AbstractStrategy, Outcome, carry_out
from secateur.teacher_cache import TeacherLogits
from secateur.train import fit
from strategy_helpers import CountingStore, FailingStore, Killed, run_folder, without_seconds

PLAIN = Recovery(epochs=2, kd_weight=0, precision="fp32", lr=0.05)
QUICK: dict[str, dict[str, Any]] = {
    "imp": {"rounds": 3},
    "gradual": {"updates": 4},
    "rigl": {"updates": 4},
    "set": {"updates": 4},
    "egp": {"min_density": 0.02},
    "colt": {"fraction": 0.3},
}
"""Fewer rounds than by default, so that they fit into two epochs."""
DOCS = Path(__file__).parents[2] / "docs" / "strategies.md"


def quick(name: str) -> AbstractStrategy:
    return STRATEGIES[name](**QUICK.get(name, {}))


@cache
def digits() -> Data:
    return load_data(DataOptions(data="digits", batch_size=48, n_calibration=96), seed=0)


@cache
def trained() -> nn.Module:
    torch.manual_seed(0)
    model = build_model("small-cnn", num_classes=10, in_channels=1, width=0.25)
    list(fit(model, digits().train, replace(PLAIN, epochs=3)))
    return model


def run(name: str, student: nn.Module, *, sparsity: float = 0.7, **options: Any) -> Outcome:
    data = digits()
    given: dict[str, Any] = {
        "recipe": PLAIN,
        "train": data.train,
        "calibration": data.calibration,
        "validation": data.val,
        "seed": 5,
        **options,
    }
    return carry_out(quick(name), student, sparsity=sparsity, **given)


@cache
def reference(name: str) -> tuple[nn.Module, Outcome, int]:
    """A student, what became of it, and how many steps that took."""
    student, steps = copy.deepcopy(trained()), []
    out = run(name, student, on_step=lambda: steps.append(None))
    return student, out, len(steps)


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_sparsity_is_exact_and_what_is_pruned_is_zero(name: str) -> None:
    student, out, _ = reference(name)
    if name == "dense":
        assert out.masks is None
        return
    assert out.masks is not None
    assert out.masks.n_prune == n_prune(out.masks.numel, 0.7)
    assert set(out.masks) == {n for n, p in student.named_parameters() if p.ndim > 1}
    for weight, mask in ((student.get_parameter(n), m) for n, m in out.masks.items()):
        assert_positive_zero(weight[~mask])
        # what is grown last may not have moved yet, but hardly ever
        assert float((weight[mask] != 0).float().mean()) > 0.99


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_budget_is_spent_to_the_last_part(name: str) -> None:
    _, out, n_steps = reference(name)
    n_batches = len(digits().train)  # type: ignore[arg-type]
    assert out.epochs * n_batches == pytest.approx(n_steps)
    assert 0 <= 2 * n_batches - n_steps < out.epochs_per_part * n_batches
    assert out.curve[-1][1].val_accuracy is not None
    assert out.train_s > 0
    assert out.score_s > 0


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_student_still_works(name: str) -> None:
    """Chance is 0.1; two epochs after a cut of 70 % are enough to be far from it."""
    student, _, _ = reference(name)
    assert evaluate(student, digits().test).accuracy > 0.6


@pytest.mark.parametrize("name", STRATEGIES)
def test_it_is_deterministic(name: str) -> None:
    student, out, _ = reference(name)
    torch.manual_seed(77)
    state = torch.get_rng_state()
    again = copy.deepcopy(trained())
    found = run(name, again)
    assert same_state(again.state_dict(), student.state_dict())
    assert found.masks == out.masks
    assert without_seconds(found.curve) == without_seconds(out.curve)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_killed_run_is_played_again_from_its_store(name: str, tmp_path: Path) -> None:
    student, out, _ = reference(name)
    counting = CountingStore()
    run(name, copy.deepcopy(trained()), store=counting)
    n_saved = len(counting.stages)
    for lives in sorted({1, n_saved // 2, n_saved}):
        folder = run_folder(tmp_path / str(lives))
        with pytest.raises(Killed):
            run(name, copy.deepcopy(trained()), store=FailingStore(folder, lives))
        again = copy.deepcopy(trained())
        found = run(name, again, store=folder)
        assert same_state(again.state_dict(), student.state_dict())
        assert found.masks == out.masks
        assert without_seconds(found.curve) == without_seconds(out.curve)


@pytest.mark.parametrize("name", STRATEGIES)
def test_without_epochs_it_does_what_needs_none_or_says_so(name: str) -> None:
    student = copy.deepcopy(trained())
    recipe = replace(PLAIN, epochs=0)
    if quick(name).in_rounds:
        with pytest.raises(TrainingError, match=r"prunes while it trains, but there are 0 epochs"):
            run(name, student, recipe=recipe)
        assert same_state(student.state_dict(), trained().state_dict())
    else:
        assert run(name, student, recipe=recipe).curve == []


@pytest.mark.parametrize("name", STRATEGIES)
def test_too_small_a_budget_is_refused_before_anything_is_trained(name: str) -> None:
    strategy = quick(name)
    if strategy.least_parts(0.7) == 1:
        return
    student = copy.deepcopy(trained())
    one_batch = replace(digits().train, batch_size=2000)  # type: ignore[type-var]
    with pytest.raises(TrainingError, match=r"need at least \d+ training batches, 1 epochs of 1 have 1"):
        run(name, student, train=one_batch, recipe=replace(PLAIN, epochs=1))
    assert same_state(student.state_dict(), trained().state_dict())


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "dense"])
def test_a_sparsity_of_nothing_keeps_everything(name: str) -> None:
    student = copy.deepcopy(trained())
    out = run(name, student, sparsity=0.0, recipe=replace(PLAIN, epochs=1))
    assert out.masks is not None
    assert out.masks.n_prune == 0


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "dense"])
def test_only_what_is_included_is_pruned(name: str) -> None:
    student = copy.deepcopy(trained())
    out = run(name, student, exclude=("classifier.*",))
    assert out.masks is not None
    assert set(out.masks) == {"features.0.weight", "features.4.weight", "features.8.weight"}
    assert out.masks.n_prune == n_prune(out.masks.numel, 0.7)
    assert bool((student.get_parameter("classifier.weight") != 0).all())


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_student_is_left_as_training_leaves_it(name: str) -> None:
    student, _, _ = reference(name)
    assert [m.training for m in student.modules()] == [m.training for m in trained().modules()]
    assert hooks_of(student) == {}
    assert all(p.is_contiguous() and p.grad is not None for p in student.parameters())
    assert trained().state_dict().keys() == student.state_dict().keys()


@pytest.mark.parametrize("name", STRATEGIES)
def test_it_works_with_a_teacher(name: str) -> None:
    student, teacher = copy.deepcopy(trained()), copy.deepcopy(trained()).eval()
    recipe = replace(PLAIN, kd_weight=0.7, teacher_views=1)
    guide = TeacherLogits(teacher, digits().train)  # type: ignore[arg-type]
    out = run(name, student, recipe=recipe, teacher=guide)
    assert out.epochs > 1.9
    if out.masks is not None:
        out.masks.check(student)


@pytest.mark.parametrize("name", STRATEGIES)
def test_it_is_a_frozen_value_with_defaults(name: str) -> None:
    strategy = STRATEGIES[name]()
    assert strategy == STRATEGIES[name]()
    assert strategy.least_parts(0.9) >= 1
    for field in fields(strategy):  # type: ignore[arg-type]
        with pytest.raises(FrozenInstanceError):
            setattr(strategy, field.name, None)


@pytest.mark.parametrize("name", STRATEGIES)
def test_it_is_documented_with_its_options_and_defaults(name: str) -> None:
    strategy = STRATEGIES[name]()
    page = DOCS.read_text(encoding="utf-8")
    assert re.search(rf"^\| `{name}` \| `{type(strategy).__name__}` \|", page, re.MULTILINE)
    found = re.search(rf"^## [^\n]*`{name}`.*?(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert found, f"docs/strategies.md has no section on {name}"
    for field in fields(strategy):  # type: ignore[arg-type]
        value = getattr(strategy, field.name)
        default = f"{type(value).__name__}()" if hasattr(value, "__dataclass_fields__") else repr(value)
        row = f"| `{field.name}` | `{default}` |".replace("'", '"')
        assert row in found[0], f"{row} is not in the section on {name}"
