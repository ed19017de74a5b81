"""What every criterion promises, whatever it computes. A new one joins through `CRITERIA` alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from contract.scores_helpers import meets_essentials
from helpers import Snapshot, build, images, make_cnn, make_mlp, same_bits, vectors
from secateur.errors import ScoreError
from secateur.scores import (
    CRITERIA,
    AbstractCriterion,
    GuidedScores,
    Magnitude,
    Random,
    ScoreInputs,
    TaskGradient,
    TeacherGuided,
    score,
)
from secateur.testing import Check, parametrize_criteria
from secateur.testing.networks import busy_cnn

ROOT = Path(__file__).parents[2]


@parametrize_criteria(*CRITERIA.values())
def test_a_registered_criterion_keeps_the_public_contract(
    criterion: type[AbstractCriterion], check: Check
) -> None:
    check(criterion)


@pytest.mark.parametrize("accumulate", ["mean", "ema"])
@pytest.mark.parametrize("saliency", ["grad", "grad*weight", "grad^2"])
def test_every_form_of_the_task_score_meets_the_contract(saliency: Any, accumulate: Any) -> None:
    meets_essentials(TaskGradient(saliency=saliency, accumulate=accumulate))


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


def test_a_data_parallel_model_is_scored_under_its_bare_names() -> None:
    student = make_cnn()
    scores = score(nn.DataParallel(student), images(), TaskGradient())
    expected = score(student, images(), TaskGradient())
    assert list(scores) == list(expected)
    assert all(torch.equal(scores[name], expected[name]) for name in expected)


def test_two_losses_over_one_pass_of_a_compiled_model() -> None:
    """What AOTAutograd makes of a model frees its buffers in the first backward pass."""
    student, teacher = make_cnn(), make_cnn(1)
    compiled = torch.compile(student, backend="aot_eager")
    compiled(images()[0][0])
    scores = score(compiled, images(), TeacherGuided(teacher))  # type: ignore[arg-type]
    expected = score(student, images(), TeacherGuided(teacher))
    assert all(torch.allclose(scores[name], expected[name], rtol=1e-4, atol=1e-7) for name in expected)


@pytest.mark.parametrize("key", ["random", "teacher-curvature"])
def test_the_default_type_of_new_tensors_changes_nothing(key: str) -> None:
    student, teacher = make_mlp(), make_mlp(1)
    criterion, batches = build(CRITERIA[key], teacher), vectors()
    expected = score(student, batches, criterion)
    torch.set_default_dtype(torch.float64)
    try:
        scores = score(student, batches, criterion)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(scores[name], expected[name]) for name in expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("key", CRITERIA)
def test_a_half_precision_model_is_not_refused_and_is_scored_in_float32(key: str, dtype: torch.dtype) -> None:
    student, teacher = make_mlp().to(dtype), make_mlp(1).to(dtype)
    scores = score(student, [(x.to(dtype), y) for x, y in vectors()], build(CRITERIA[key], teacher))
    assert {tensor.dtype for tensor in scores.values()} == {torch.float32}


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


def test_a_student_that_is_its_own_teacher_teaches_itself_nothing() -> None:
    student = busy_cnn()
    scores = score(student, images(), TeacherGuided(student))
    assert isinstance(scores, GuidedScores)
    assert all(bool((t < 1e-6).all()) for t in scores.kd.values())


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

    score(busy_cnn(), None, Spy({}))
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
