"""What every criterion promises, whatever it computes. A new one joins through `CRITERIA` alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contract.scores_helpers import assert_scores, meets_contract, noisy_teacher, weird_cnn
from helpers import Snapshot, build, images, make_cnn, make_mlp, same_bits, takes_teacher, vectors
from secateur.errors import DataError, ScoreError
from secateur.scores import (
    CRITERIA,
    AbstractCriterion,
    GuidedScores,
    Magnitude,
    Random,
    ScoreInputs,
    TaskGradient,
    score,
)

ROOT = Path(__file__).parents[2]
NEEDS_TEACHER = sorted(key for key, criterion in CRITERIA.items() if takes_teacher(criterion))


def needs_data(key: str) -> bool:
    try:
        score(make_mlp(), None, build(CRITERIA[key], make_mlp(1)))
    except ScoreError:
        return True
    return False


NEEDS_DATA = sorted(key for key in CRITERIA if needs_data(key))
NEEDS_NO_DATA = sorted(set(CRITERIA) - set(NEEDS_DATA))


@pytest.mark.parametrize("key", CRITERIA)
def test_a_registered_criterion_meets_the_contract(key: str) -> None:
    teacher = noisy_teacher()
    meets_contract(build(CRITERIA[key], teacher), weird_cnn(), teacher)


@pytest.mark.parametrize("accumulate", ["mean", "ema"])
@pytest.mark.parametrize("saliency", ["grad", "grad*weight", "grad^2"])
def test_every_form_of_the_task_score_meets_the_contract(saliency: Any, accumulate: Any) -> None:
    meets_contract(TaskGradient(saliency=saliency, accumulate=accumulate), weird_cnn(), noisy_teacher())


class Bomb(nn.Module):
    """Raises in the second forward or backward pass."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        if self.passes < 2:
            return x
        if self.where == "forward":
            raise RuntimeError("bomb")
        return _BackwardBomb.apply(x) if self.where == "backward" else x  # type: ignore[no-untyped-call]


class _BackwardBomb(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError("bomb")


def bursting(batches: list[Any]) -> Iterator[Any]:
    yield batches[0]
    torch.rand(3)
    raise RuntimeError("bomb")


@pytest.mark.parametrize(
    ("key", "where"),
    [
        *product(NEEDS_DATA, ["forward", "backward", "loader", "loss"]),
        *product(NEEDS_TEACHER, ["teacher"]),
    ],
)
def test_an_exception_in_the_second_batch_leaves_nothing_behind(key: str, where: str) -> None:
    student, teacher = weird_cnn(), noisy_teacher()
    student.insert(4, Bomb(where))  # in the middle: some weights have their gradient when it goes off
    teacher.append(Bomb("forward" if where == "teacher" else "nowhere"))
    losses = iter([F.cross_entropy])

    def task_loss(outputs: Tensor, labels: Tensor) -> Tensor:
        loss = next(losses, None) if where == "loss" else F.cross_entropy
        if loss is None:
            raise RuntimeError("bomb")
        return loss(outputs, labels)

    batches = bursting(images()) if where == "loader" else images()
    before, teacher_before = Snapshot.of(student), Snapshot.of(teacher)
    with pytest.raises(RuntimeError, match="bomb"):
        score(student, batches, build(CRITERIA[key], teacher), task_loss=task_loss)
    before.assert_unchanged(student)
    teacher_before.assert_unchanged(teacher)


@pytest.mark.parametrize("key", CRITERIA)
def test_the_callers_grad_mode_does_not_matter(key: str) -> None:
    student, teacher = make_cnn(), make_cnn(1, width=6)
    criterion = build(CRITERIA[key], teacher)
    expected = score(student, images(), criterion)
    with torch.no_grad():
        scores = score(student, images(), criterion)
        assert not torch.is_grad_enabled()
    assert all(same_bits(scores[name], expected[name]) for name in expected)


@pytest.mark.parametrize("key", CRITERIA)
def test_the_callers_random_state_and_mode_do_not_matter(key: str) -> None:
    student, teacher = make_cnn(), make_cnn(1)
    criterion = build(CRITERIA[key], teacher)
    expected = score(student.train(), images(), criterion)
    torch.manual_seed(99)
    scores = score(student.eval(), images(), criterion)
    assert all(same_bits(scores[name], expected[name]) for name in expected)


@pytest.mark.parametrize("key", CRITERIA)
def test_a_compiled_model_is_scored_under_its_bare_names(key: str) -> None:
    student, teacher = make_cnn(), make_cnn(1)
    compiled = torch.compile(student, backend="eager")
    criterion = build(CRITERIA[key], teacher)
    before = Snapshot.of(student)
    scores = score(compiled, images(), criterion)  # type: ignore[arg-type]
    before.assert_unchanged(student)
    expected = score(student, images(), criterion)
    assert list(scores) == list(expected)
    assert all(torch.allclose(scores[name], expected[name], rtol=1e-4, atol=1e-7) for name in expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("key", CRITERIA)
def test_a_half_precision_model_is_scored_in_float32(key: str, dtype: torch.dtype) -> None:
    student, teacher = make_mlp().to(dtype), make_mlp(1).to(dtype)
    batches = [(x.to(dtype), y) for x, y in vectors()]
    criterion = build(CRITERIA[key], teacher)
    before = Snapshot.of(student)
    scores = score(student, batches, criterion)
    before.assert_unchanged(student)
    assert_scores(scores, student)
    full = build(CRITERIA[key], teacher.float())
    expected = score(student.float(), [(x.float(), y) for x, y in batches], full)
    for name in expected:
        scale = float(expected[name].max())
        assert torch.allclose(scores[name], expected[name], rtol=0.05, atol=0.05 * scale)


def test_the_square_of_a_small_half_precision_gradient_is_not_zero() -> None:
    student = make_mlp().half()
    batches = [(1e-3 * x.half(), y) for x, y in vectors()]
    scores = score(student, batches, TaskGradient("grad^2"))
    assert bool((scores["0.weight"] > 0).all())


@pytest.mark.parametrize("key", ["magnitude", "task-gradient", "teacher-guided"])
def test_double_precision_stays(key: str) -> None:
    student, teacher = make_mlp().double(), make_mlp(1).double()
    scores = score(student, [(x.double(), y) for x, y in vectors()], build(CRITERIA[key], teacher))
    assert all(t.dtype == torch.float64 for t in scores.values())


@pytest.mark.parametrize("key", CRITERIA)
def test_include_and_exclude_limit_what_is_scored(key: str) -> None:
    student, teacher = make_cnn(), make_cnn(1)
    criterion = build(CRITERIA[key], teacher)
    assert list(score(student, images(), criterion, include=["[03].weight"])) == ["0.weight", "3.weight"]
    assert list(score(student, images(), criterion, exclude=["8.*"])) == ["0.weight", "3.weight"]


@pytest.mark.parametrize("key", NEEDS_DATA)
def test_data_that_is_needed_is_asked_for(key: str) -> None:
    student, teacher = make_cnn(), make_cnn(1)
    with pytest.raises(ScoreError, match="needs calibration batches"):
        score(student, None, build(CRITERIA[key], teacher))
    with pytest.raises(DataError, match="no batch"):
        score(student, [], build(CRITERIA[key], teacher))


@pytest.mark.parametrize("key", NEEDS_NO_DATA)
def test_data_that_is_not_needed_is_not_looked_at(key: str) -> None:
    student = make_cnn()
    scores = score(student, None, CRITERIA[key]())
    assert_scores(scores, student)


@pytest.mark.parametrize("key", CRITERIA)
def test_a_weight_used_twice_is_scored_once(key: str, shared_net: nn.Module) -> None:
    scores = score(shared_net, vectors(), build(CRITERIA[key], make_mlp(1)))
    assert list(scores) == ["first.weight", "head.weight"]


@pytest.mark.parametrize("key", NEEDS_DATA)
def test_the_student_may_be_its_own_teacher(key: str) -> None:
    student = weird_cnn()
    before = Snapshot.of(student)
    scores = score(student, images(), build(CRITERIA[key], student))
    before.assert_unchanged(student)
    assert_scores(scores, student)
    if isinstance(scores, GuidedScores):  # nothing to learn from oneself
        assert all(bool((t < 1e-6).all()) for t in scores.kd.values())


@pytest.mark.parametrize("key", CRITERIA)
def test_a_criterion_is_a_frozen_value(key: str) -> None:
    teacher = make_mlp()
    criterion = build(CRITERIA[key], teacher)
    assert criterion == build(CRITERIA[key], teacher)
    assert hash(criterion) == hash(build(CRITERIA[key], teacher))
    with pytest.raises((AttributeError, TypeError)):
        criterion.saliency = "grad"  # type: ignore[attr-defined]


@pytest.mark.parametrize("key", CRITERIA)
def test_a_registered_criterion_has_its_golden_row_and_its_docs_row(key: str) -> None:
    golden = json.loads((ROOT / "tests/golden/scores.json").read_text())
    assert key in golden, f"add {key!r} to tests/golden/scores.json"
    methods = (ROOT / "docs/methods.md").read_text(encoding="utf-8")
    assert f"`{key}`" in methods, f"add a row for `{key}` to docs/methods.md"


# What any criterion, also a foreign one, is held to


class Foreign(AbstractCriterion):
    """A criterion from outside that answers with what it was told."""

    def __init__(self, answer: dict[str, Tensor]) -> None:
        self.answer = answer

    def __call__(self, inputs: ScoreInputs) -> dict[str, Tensor]:
        return self.answer


def test_a_foreign_criterion_that_answers_wrongly_is_refused(tiny_mlp: nn.Sequential) -> None:
    good = {"0.weight": torch.ones(8, 6), "2.weight": torch.ones(3, 8)}
    assert list(score(tiny_mlp, None, Foreign(good))) == list(good)
    for wrong, message in (
        ({**good, "2.weight": torch.ones(8, 3)}, r"returned \(8, 3\) for '2\.weight', expected \(3, 8\)"),
        ({"0.weight": good["0.weight"]}, r"returned nothing for '2\.weight'"),
        ({**good, "0.bias": torch.ones(8)}, r"0\.bias, which must not be pruned"),
    ):
        with pytest.raises(ScoreError, match=message):
            score(tiny_mlp, None, Foreign(wrong))


def test_a_criterion_sees_an_eval_mode_model_without_gradients() -> None:
    seen: list[bool] = []

    class Spy(Foreign):
        def __call__(self, inputs: ScoreInputs) -> dict[str, Tensor]:
            seen.append(any(m.training for m in inputs.model.modules()))
            seen.append(any(p.grad is not None for p in inputs.model.parameters()))
            seen.append(not torch.is_grad_enabled())
            return {name: torch.ones_like(p) for name, p in inputs.targets.items()}

    score(weird_cnn(), None, Spy({}))
    assert seen == [False, False, False]


def test_no_gradient_outlives_its_layer() -> None:
    """While a loss is backpropagated, at most one weight holds a gradient at a time."""
    student = make_cnn()
    alive: list[int] = []

    class Watch(Magnitude):
        def __call__(self, inputs: ScoreInputs) -> Any:
            for p in inputs.targets.values():
                p.register_hook(lambda g: alive.append(sum(q.grad is not None for q in student.parameters())))
            return TaskGradient()(inputs)

    score(student, images(1), Watch())
    assert alive == [0, 0, 0]


def test_random_scores_follow_their_seed_and_nothing_else() -> None:
    first = score(make_mlp(), None, Random(seed=3))
    torch.manual_seed(1234)
    again = score(make_mlp(5), None, Random(seed=3))
    assert all(same_bits(first[name], again[name]) for name in first)
    other = score(make_mlp(), None, Random(seed=4))
    assert not any(torch.equal(first[name], other[name]) for name in first)
