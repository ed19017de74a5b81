"""What the guided score promises beyond the contract, and that each of its forms keeps the contract."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from contract.scores_helpers import meets_essentials
from helpers import Snapshot, images, make_cnn, make_mlp, same_bits, vectors
from secateur.errors import ScoreError
from secateur.losses import mse_loss
from secateur.scores import GuidedScores, TaskGradient, TeacherGuided, score
from secateur.testing.networks import busy_cnn, noisy_teacher


def guided_forms() -> Iterator[dict[str, Any]]:
    for form, saliency, accumulate in product(
        ("separate", "joint"), ("grad", "grad*weight", "grad^2"), ("mean", "ema")
    ):
        for kd in ("forward", "reverse", "ca-kld", "mse", "cosine", mse_loss):
            for standardize in (False, True) if kd in ("forward", "reverse", "ca-kld") else (False,):
                yield {
                    "form": form,
                    "saliency": saliency,
                    "accumulate": accumulate,
                    "kd": kd,
                    "standardize": standardize,
                }


def name_of(options: dict[str, Any]) -> str:
    return "-".join(getattr(v, "__name__", str(v)) for v in options.values())


@pytest.mark.parametrize("options", [*guided_forms()], ids=name_of)
def test_every_form_of_the_guided_score_meets_the_contract(options: dict[str, Any]) -> None:
    meets_essentials(TeacherGuided(make_mlp(), alpha=0.3, **options))


@pytest.mark.parametrize("which", ["task", "KD"])
@pytest.mark.parametrize("form", ["separate", "joint"])
def test_a_loss_that_is_not_finite_leaves_nothing_behind(form: Any, which: str) -> None:
    student, teacher = busy_cnn(), noisy_teacher()
    factors = {"task": iter([1.0, float("nan")]), "KD": iter([1.0, float("inf")])}

    def loss(name: str, outputs: Tensor, target: Tensor) -> Tensor:
        value = F.cross_entropy(outputs, target if name == "task" else target.argmax(1))
        return value * next(factors[name]) if name == which else value

    criterion = TeacherGuided(teacher, form=form, kd=partial(loss, "KD"))
    before, teacher_before = Snapshot.of(student), Snapshot.of(teacher)
    with pytest.raises(ScoreError, match=rf"the {which} loss of batch 1 is (nan|inf)\. Check"):
        score(student, images(), criterion, task_loss=partial(loss, "task"))
    before.assert_unchanged(student)
    teacher_before.assert_unchanged(teacher)


def test_any_alpha_afterwards_is_what_scoring_with_it_gives() -> None:
    student, teacher = make_cnn(), make_cnn(1, width=6)
    scores = score(student, images(), TeacherGuided(teacher))
    assert isinstance(scores, GuidedScores)
    for alpha in (0.0, 0.1, 0.5, 0.77, 1.0):
        expected = score(student, images(), TeacherGuided(teacher, alpha=alpha))
        assert all(same_bits(scores.at(alpha)[name], expected[name]) for name in expected)


def test_the_ends_of_alpha_are_the_terms_themselves_and_nothing_is_copied() -> None:
    scores = score(make_cnn(), images(), TeacherGuided(make_cnn(1)))
    assert isinstance(scores, GuidedScores)
    assert scores.task is not None
    other = scores.at(0.25)
    assert other.task is scores.task
    assert other.kd is scores.kd
    assert scores.alpha == 0.5
    for name in scores:
        assert scores.at(0)[name] is scores.kd[name]
        assert scores.at(1)[name] is scores.task[name]
        mixed = 0.25 * scores.task[name] + 0.75 * scores.kd[name]
        assert torch.allclose(other[name], mixed, rtol=1e-6, atol=0)


def test_the_task_term_is_the_task_gradient() -> None:
    student = make_cnn()
    scores = score(student, images(), TeacherGuided(make_cnn(1), alpha=1))
    expected = score(student, images(), TaskGradient())
    assert all(torch.allclose(scores[name], expected[name]) for name in expected)


def test_at_refuses_what_it_cannot_mix() -> None:
    scores = score(make_mlp(), [x for x, _ in vectors()], TeacherGuided(make_mlp(1), alpha=0))
    assert isinstance(scores, GuidedScores)
    assert scores.task is None
    with pytest.raises(ScoreError, match=r"alpha=0\.1 needs labels"):
        scores.at(0.1)
    with pytest.raises(ValueError, match=r"alpha must be in \[0, 1\]"):
        scores.at(1.5)


@pytest.mark.parametrize("form", ["separate", "joint"])
@pytest.mark.parametrize("shape", ["tensor", "tuple", "list"])
def test_the_teacher_alone_needs_no_labels(form: Any, shape: str) -> None:
    student, criterion = make_mlp(), TeacherGuided(make_mlp(1), alpha=0, form=form)
    wrap = {"tensor": lambda x: x, "tuple": lambda x: (x,), "list": lambda x: [x]}[shape]
    bare = score(student, [wrap(x) for x, _ in vectors()], criterion)
    labelled = score(student, vectors(), criterion)
    assert all(torch.allclose(bare[name], labelled[name], atol=0) for name in bare)


@pytest.mark.parametrize("first_has_labels", [True, False])
def test_batches_must_agree_on_whether_they_have_labels(first_has_labels: bool) -> None:
    (x, y), (x2, y2), _ = vectors()
    batches = [(x, y), x2] if first_has_labels else [x, (x2, y2)]
    with pytest.raises(ScoreError, match="batch 1 and the first one differ"):
        score(make_mlp(), batches, TeacherGuided(make_mlp(1), alpha=0))


def test_joint_at_the_ends_of_alpha_is_separate() -> None:
    student, teacher = make_cnn(), make_cnn(1)
    for alpha in (0.0, 1.0):
        joint = score(student, images(), TeacherGuided(teacher, alpha=alpha, form="joint"))
        separate = score(student, images(), TeacherGuided(teacher, alpha=alpha))
        for name in separate:
            assert torch.allclose(joint[name], separate[name], rtol=1e-3, atol=1e-6)


def test_joint_never_exceeds_separate() -> None:
    student, teacher = make_cnn(), make_cnn(1)
    joint = score(student, images(), TeacherGuided(teacher, alpha=0.4, form="joint"))
    separate = score(student, images(), TeacherGuided(teacher, alpha=0.4))
    assert all(bool((joint[name] <= separate[name] * 1.0001 + 1e-7).all()) for name in joint)
