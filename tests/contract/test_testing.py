"""The public contract suite: each check finds what it is there for, and what is fine passes."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from contract.broken import Swallows, broken, criterion, magnitudes
from secateur.errors import InvalidArgument, ScoreError
from secateur.scores import AbstractCriterion, Magnitude, Random, ScoreInputs, TaskGradient, TeacherGuided
from secateur.testing import Subject, check_criterion, criterion_checks, parametrize_criteria
from secateur.testing.subjects import name_of


def first_failure(subject: Subject) -> tuple[str, str]:
    """Name and message of the first check that does not pass."""
    for name, check in criterion_checks():
        try:
            check(subject)
        except AssertionError as error:
            return name, str(error)
    return "none", ""


@pytest.mark.parametrize(("check", "subject"), broken(), ids=lambda case: name_of(case).strip("<>"))
def test_a_broken_criterion_is_found_by_the_check_for_it(check: str, subject: Subject) -> None:
    found, message = first_failure(subject)
    assert found == check, message
    who, expected, rest = message.replace(": expected", "\n").replace("; ", "\n", 1).split("\n", 2)
    assert who == name_of(subject)
    assert expected.strip()
    assert rest.endswith(".")
    with pytest.raises(AssertionError, match=f"^{who}: expected "):
        check_criterion(subject)


@pytest.mark.parametrize("place", ["forward", "backward", "teacher", "loss"])
def test_an_exception_is_thrown_at_each_place_that_could_swallow_it(place: str) -> None:
    def subject(teacher: nn.Module) -> AbstractCriterion:
        return Swallows(teacher, place)

    name, message = first_failure(subject)
    assert name == "leaves_nothing_after_an_exception"
    assert f"thrown by the {place} at use" in message
    assert first_failure(lambda teacher: Swallows(teacher, "nowhere")) == ("none", "")


def test_every_check_can_fail() -> None:
    assert {name for name, _ in criterion_checks()} == {check for check, _ in broken()}


@dataclass(frozen=True)
class SquaredGradient(AbstractCriterion):
    """Ten lines that a user would write."""

    n_batches: int = 2

    def __call__(self, inputs: ScoreInputs) -> dict[str, Tensor]:
        scores = {name: torch.zeros_like(weight) for name, weight in inputs.weights.items()}
        for (x, y), _ in zip(inputs.stream_labelled(self), range(self.n_batches), strict=False):
            loss = inputs.task_loss(inputs.model(x), y)
            gradients = torch.autograd.grad(loss, list(inputs.targets.values()))
            for name, gradient in zip(scores, gradients, strict=True):
                scores[name] += (gradient * inputs.weights[name]).float().square()
        return scores


@dataclass(frozen=True)
class Agreement(AbstractCriterion):
    """One that takes a teacher and nothing else."""

    teacher: nn.Module

    def __call__(self, inputs: ScoreInputs) -> Any:
        return TeacherGuided(self.teacher, alpha=0)(inputs)


def agreement(teacher: nn.Module) -> AbstractCriterion:
    return TeacherGuided(teacher, alpha=0, saliency="grad^2")


@parametrize_criteria(
    SquaredGradient,
    SquaredGradient(n_batches=1),
    Agreement,
    Agreement(nn.Identity()),
    agreement,
    Random(seed=3),
)
def test_what_keeps_the_contract_passes_in_any_form(criterion: Any, check: Any) -> None:
    check(criterion)


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a module in the current folder, with one criterion that is fine and one that is not."""
    name = "criteria_of_a_user"
    (tmp_path / f"{name}.py").write_text(
        "from dataclasses import dataclass\n"
        "import secateur as sc\n"
        "@dataclass(frozen=True)\n"
        "class Size(sc.AbstractCriterion):\n"
        "    def __call__(self, inputs):\n"
        "        return {name: weight.abs().float() for name, weight in inputs.weights.items()}\n"
        "@dataclass(frozen=True)\n"
        "class Smallness(sc.AbstractCriterion):\n"
        "    def __call__(self, inputs):\n"
        "        return {name: -weight.abs().float() for name, weight in inputs.weights.items()}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


def test_a_criterion_is_found_by_its_module_and_name(own_module: str) -> None:
    check_criterion(f"{own_module}:Size")
    with pytest.raises(AssertionError, match=rf"^{own_module}:Smallness: expected higher scores"):
        check_criterion(f"{own_module}:Smallness")
    with pytest.raises(InvalidArgument, match="has no attribute 'Sise'"):
        check_criterion(f"{own_module}:Sise")


@pytest.mark.parametrize("subject", [3, None, {"magnitude": 1}])
def test_what_is_no_criterion_at_all_is_refused(subject: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"a criterion to check is .* got .*AbstractCriterion"):
        check_criterion(subject)


def test_a_score_of_both_signs_is_not_asked_which_end_is_up() -> None:
    def signed(inputs: ScoreInputs) -> dict[str, Tensor]:
        return {name: 1 / (weight.detach() + 1e-6) for name, weight in inputs.targets.items()}

    checks = dict(criterion_checks())
    checks["higher_means_keep"](criterion(signed, "Signed"))
    with pytest.raises(AssertionError, match="won by the needed ones"):
        checks["higher_means_keep"](
            criterion(lambda i: {n: -t for n, t in magnitudes(i).items()}, "Inverted")
        )


@pytest.mark.parametrize("seed", range(20))
def test_chance_is_not_taken_for_upside_down(seed: int) -> None:
    dict(criterion_checks())["higher_means_keep"](Random(seed=seed))


def test_the_word_of_the_error_for_missing_labels_counts() -> None:
    def refuses(inputs: ScoreInputs) -> dict[str, Tensor]:
        if any(y is None for _, y in inputs.stream()):
            raise ScoreError("I will not.")
        return magnitudes(inputs)

    name, message = first_failure(criterion(refuses, "Refuses"))
    assert name == "takes_unlabelled_data_or_says_so"
    assert "ScoreError that says 'label'" in message


@pytest.mark.parametrize("convert", [lambda t: t.numpy(), lambda t: t.tolist()], ids=["array", "list"])
def test_scores_that_are_no_tensors_are_told(convert: Any) -> None:
    def converted(inputs: ScoreInputs) -> Any:
        return {name: convert(tensor) for name, tensor in magnitudes(inputs).items()}

    name, message = first_failure(criterion(converted, "Converted"))
    assert name == "scores_every_target"
    assert re.search(r"returned a \w+ for '0\.weight', expected a tensor\. .* torch\.as_tensor", message)


def test_the_caller_is_left_alone() -> None:
    before = torch.get_rng_state()
    check_criterion(TaskGradient)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.is_grad_enabled()


def test_each_pair_is_one_test_with_a_telling_name() -> None:
    mark = parametrize_criteria(Magnitude, Random(seed=1)).mark
    names, cases = mark.args
    assert names == ("criterion", "check")
    assert [case.id for case in cases] == [
        f"{who}-{name}" for who in ("Magnitude", "Random") for name, _ in criterion_checks()
    ]
    assert [case.values[1] for case in cases] == 2 * [check for _, check in criterion_checks()]


def test_the_checks_need_no_pytest_until_asked_for_it() -> None:
    code = "import sys, secateur.testing as t; t.check_criterion(__import__('secateur').Magnitude); "
    code += "sys.exit('pytest' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_guide_lists_every_check_in_order() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guide.md").read_text(encoding="utf-8")
    table = guide.partition("| check | asks |\n")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == [name for name, _ in criterion_checks()]
