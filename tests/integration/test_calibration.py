"""A cut that moves the kept weights: solved by the criterion, or distilled on calibration inputs alone."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from integration.calibration_helpers import STEPS, cut_copy, inputs, loss_of, network, same, state_of
from secateur.augment import FlipShift, mix
from secateur.calibration import CalibrationRecovery, answers_of, distil_on_inputs
from secateur.cutting import cut
from secateur.data import DataOptions, load_data
from secateur.errors import InvalidArgument, SecateurError, TrainingError
from secateur.evaluate import reestimate_batchnorm
from secateur.models import build_model
from secateur.pipeline import prune
from secateur.recovery import Recovery
from secateur.scores import (
    AbstractCriterion,
    Magnitude,
    Random,
    TeacherCurvature,
    TeacherGuided,
)
from secateur.stages import Stage
from secateur.strategies import OneShot, carry_out


@pytest.mark.parametrize("criterion", [Magnitude(), Random(), TeacherCurvature(network())])
@pytest.mark.parametrize("stages", [1, 3])
def test_steps_on_unlabelled_inputs_bring_any_cut_nearer_to_its_teacher(
    criterion: AbstractCriterion, stages: int
) -> None:
    taught, dense, seen = cut_copy(criterion, stages=stages, recovery=STEPS, teacher=network())
    alone, _, _ = cut_copy(criterion, stages=stages)
    assert loss_of(taught, dense) < loss_of(alone, dense)
    assert len(seen) == stages
    for before, stage in zip([None, *seen], seen, strict=False):
        assert stage.loss is not None
        assert stage.recovery_s > 0
        assert before is None or stage.loss[0] == before.loss[2]  # type: ignore[index]
    assert seen[-1].loss[2] == pytest.approx(loss_of(taught, dense), rel=1e-4)  # type: ignore[index]


def test_solving_for_the_kept_weights_costs_less_than_cutting_them_out() -> None:
    solved, dense, seen = cut_copy(TeacherCurvature(network(), draw="exact"), stages=3)
    scored, _, _ = cut_copy(TeacherCurvature(network(), draw="exact", update_weights=False), stages=3)
    assert loss_of(solved, dense) < loss_of(scored, dense)
    assert all(stage.predicted is not None for stage in seen)


def test_the_teacher_is_by_default_the_criterions_or_else_the_student_as_it_was() -> None:
    other = network()
    with torch.no_grad():
        other[4].weight.neg_()
    for criterion, teacher in ((Magnitude(), network()), (TeacherGuided(other, alpha=0.0), other)):
        default, _, _ = cut_copy(criterion, recovery=STEPS)
        explicit, _, _ = cut_copy(criterion, recovery=STEPS, teacher=teacher)
        assert same(state_of(default), state_of(explicit))


def test_the_teacher_answers_once_a_cut_unless_the_inputs_change() -> None:
    asked: list[int] = []
    teacher = network()
    teacher.register_forward_hook(lambda module, args, out: asked.append(len(args[0])))
    as_they_are = replace(STEPS, steps=5, final_steps=5)
    once, _, _ = cut_copy(Magnitude(), stages=3, recovery=as_they_are, teacher=teacher)
    n_once = len(asked)
    longer = replace(STEPS, steps=6, final_steps=6)
    cut_copy(Magnitude(), stages=3, recovery=longer, teacher=teacher)
    assert len(asked) == 2 * n_once

    asked.clear()
    looked_at = replace(as_they_are, augment=lambda x, generator: x)
    every_step, _, _ = cut_copy(Magnitude(), stages=3, recovery=looked_at, teacher=teacher)
    assert len(asked) >= 3 * 5
    for name, value in once.state_dict().items():
        assert torch.allclose(value, every_step.state_dict()[name], atol=1e-4), name


def test_answers_do_not_go_with_inputs_that_change() -> None:
    x = torch.cat(inputs())
    masks = cut(network(), inputs(), Magnitude(), sparsity=0.5)
    changing = replace(STEPS, augment=mix)
    answers = answers_of(network(), x, changing)
    with pytest.raises(InvalidArgument, match="teacher itself"):
        distil_on_inputs(network(), x, answers, masks, changing, steps=1)


def test_the_budget_is_explicit() -> None:
    recipe = replace(STEPS, steps=3, final_steps=7)
    assert [recipe.total_steps(k) for k in (1, 2, 4)] == [7, 10, 16]
    done: list[int] = []
    cut_copy(Magnitude(), stages=4, recovery=recipe, on_step=lambda: done.append(1))
    assert len(done) == 16


def test_the_same_seed_gives_the_same_bits_and_the_callers_random_state_stays() -> None:
    recipe = replace(STEPS, augment=FlipShift(1))
    state = torch.random.get_rng_state()
    first, _, _ = cut_copy(Magnitude(), stages=2, recovery=recipe)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(5)
    second, _, _ = cut_copy(Magnitude(), stages=2, recovery=recipe)
    other, _, _ = cut_copy(Magnitude(), stages=2, recovery=replace(recipe, seed=1))
    assert same(state_of(first), state_of(second))
    assert not same(state_of(first), state_of(other))


def test_batchnorm_keeps_its_statistics_if_fixed() -> None:
    fixed, dense, _ = cut_copy(Magnitude(), recovery=replace(STEPS, batchnorm="fixed"))
    trained, _, _ = cut_copy(Magnitude(), recovery=STEPS)
    names = [name for name in dense.state_dict() if name.endswith("running_mean")]
    assert names
    for name in names:
        assert torch.equal(fixed.state_dict()[name], dense.state_dict()[name])
        assert not torch.equal(trained.state_dict()[name], dense.state_dict()[name])


def test_modes_gradients_and_teacher_come_back() -> None:
    student, teacher = network().train(), network().train()
    student[0].eval()
    teacher_before = state_of(teacher)
    for parameter in student.parameters():
        parameter.grad = torch.ones_like(parameter)
    cut(student, inputs(), Magnitude(), sparsity=0.5, recovery=STEPS, teacher=teacher)
    assert [m.training for m in student] == [False, True, True, True, True]  # type: ignore[arg-type]
    gradients = [p.grad for p in student.parameters()]
    assert all(gradient is not None and bool((gradient == 1).all()) for gradient in gradients)
    assert teacher.training
    assert same(state_of(teacher), teacher_before)


class Boom(Exception):
    pass


@pytest.mark.parametrize("criterion", [Magnitude(), TeacherCurvature(network())])
def test_the_student_is_untouched_after_any_exception(criterion: AbstractCriterion) -> None:
    student = network()
    before = state_of(student)

    def stop(stage: Stage) -> None:
        raise Boom

    with pytest.raises(Boom):
        cut(student, inputs(), criterion, sparsity=0.5, stages=2, recovery=STEPS, on_stage=stop)
    assert same(state_of(student), before)
    assert all(not p._backward_hooks and not p._post_accumulate_grad_hooks for p in student.parameters())


def test_steps_that_diverge_say_so() -> None:
    student = network()
    before = state_of(student)
    with pytest.raises(TrainingError, match="Lower lr"):
        cut(student, inputs(), Magnitude(), sparsity=0.5, recovery=replace(STEPS, lr=1e30, batchnorm="fixed"))
    assert same(state_of(student), before)
    last = CalibrationRecovery(
        steps=1, final_steps=1, lr=1e30, precision="fp32"
    )  # nothing follows its one step
    with pytest.raises(TrainingError, match=r"after the steps of stage 1 .* nan\. Lower lr"):
        cut(student, inputs(), Magnitude(), sparsity=0.5, recovery=last)
    assert same(state_of(student), before)


def test_refusals() -> None:
    student = network()
    for wrong in (
        {"steps": -1},
        {"final_steps": -1},
        {"batch_size": 1},
        {"lr": 0.0},
        {"momentum": 1.0},
        {"temperature": 0.0},
        {"kd": "l1"},
        {"batchnorm": "off"},
        {"precision": "fp8"},
        {"augment": "flip"},
        {"augment": None},
    ):
        with pytest.raises(InvalidArgument, match=next(iter(wrong))):
            CalibrationRecovery(**wrong)  # type: ignore[arg-type]
    refused: list[tuple[Any, dict[str, Any], str]] = [
        (None, {}, "batches"),
        (iter(inputs()), {}, "list of batches"),
        (inputs(), {"stages": 2, "regrow": True}, "regrow"),
        (inputs(), {"teacher": student}, "deepcopy"),
        ([x[:1] for x in inputs()[:1]], {}, "2 inputs"),
    ]
    for batches, options, words in refused:
        with pytest.raises(SecateurError, match=words):
            cut(student, batches, Magnitude(), sparsity=0.5, recovery=STEPS, **options)


def test_the_classes_are_the_teachers() -> None:
    other = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    with pytest.raises(SecateurError, match="classes"):
        cut(network(), inputs(), Magnitude(), sparsity=0.5, recovery=STEPS, teacher=other)


def test_a_strategy_starts_its_training_from_the_weights_that_the_cut_moved() -> None:
    strategy = OneShot(Magnitude(), stages=2, recovery=replace(STEPS, seed=2))
    student, expected = network(), network()
    outcome = carry_out(
        strategy,
        student,
        sparsity=0.6,
        recipe=Recovery(epochs=0),
        train=[],
        calibration=inputs(),
        seed=3,
    )
    masks = cut(expected, inputs(), Magnitude(), sparsity=0.6, stages=2, recovery=replace(STEPS, seed=5))
    assert outcome.masks == masks
    assert same(state_of(student), state_of(expected))


def test_prune_solves_for_the_kept_weights_if_the_criterion_does() -> None:
    data = load_data(DataOptions(data="digits", n_calibration=256), seed=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        student = build_model("small-cnn", in_channels=1, num_classes=10)
    criterion = TeacherCurvature(copy.deepcopy(student), rows=64, damping=10.0)
    before, expected = copy.deepcopy(student), copy.deepcopy(student)
    prune(student, data=data, sparsity=0.5, criterion=criterion, stages=2, batchnorm="off")
    cut(expected, data.calibration, criterion, sparsity=0.5, stages=2)
    assert same(state_of(student), state_of(expected))
    was, now = next(before.parameters()), next(student.parameters())
    assert bool((now != was)[now != 0].any())


@pytest.mark.parametrize("sparsity", [0.05, 0.8])
def test_without_steps_batchnorm_is_re_estimated_where_that_helps(sparsity: float) -> None:
    """Whatever comes of it, the student is the better one of the two by the loss that the stage reports."""
    dense, seen = network(), list[Stage]()
    student = copy.deepcopy(dense)
    cut(student, inputs(), TeacherCurvature(network()), sparsity=sparsity, on_stage=seen.append)
    assert seen[0].loss is not None
    assert seen[0].loss[2] == pytest.approx(loss_of(student, dense), rel=1e-4)
    other = copy.deepcopy(student)
    kept = same(dict(student.named_buffers()), dict(dense.named_buffers()))
    if kept:
        reestimate_batchnorm(other, [torch.cat(inputs())])
    else:
        other[1].load_state_dict(other[1].state_dict() | dict(dense[1].named_buffers()))
    assert loss_of(student, dense) <= loss_of(other, dense)
    assert kept == (seen[0].loss[2] == seen[0].loss[1])
