"""Criteria and scopes by name, also from the user's own modules."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from secateur.allocate import SCOPES, AbstractScope, Global, PerTensor
from secateur.building import build_criterion_from, build_scope_from, wants_teacher
from secateur.errors import InvalidArgument
from secateur.scores import CRITERIA, Random, TaskGradient, TeacherGuided

MINE = '''
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import nn

import secateur as sc

if TYPE_CHECKING:
    from nowhere import Nothing


@dataclass(frozen=True)
class Guided(sc.AbstractCriterion):
    teacher: nn.Module
    power: float
    seed: int = 0
    mode: Literal["a", "b"] = "a"

    def __call__(self, inputs):
        return {}


class Plain(sc.AbstractCriterion):
    """No dataclass, and no hints."""

    def __init__(self, rounds=3):
        self.rounds = rounds

    def __call__(self, inputs):
        return {}


class Half(sc.AbstractScope):
    def __call__(self, scores, sparsity):
        return sc.Global()(scores, 0.5)


@dataclass(frozen=True)
class Hinted(sc.AbstractCriterion):
    """With a hint that cannot be resolved at run time."""

    thing: Nothing | None = None
    rounds: int = 3

    def __call__(self, inputs):
        return {}


def function():
    return Plain()


class Other:
    pass
'''


@pytest.fixture(autouse=True)
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module of the user's in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine_for_building.py").write_text(MINE)
    yield
    sys.modules.pop("mine_for_building", None)


def criterion(name: str, teacher: nn.Module | None = None, seed: int = 0, **options: object) -> Any:
    return build_criterion_from(name, options, teacher=teacher, seed=seed)


def test_criteria_of_the_registry() -> None:
    teacher = nn.Identity()
    assert criterion("random", seed=5) == Random(seed=5)
    assert criterion("task-gradient", saliency="grad", accumulate="ema", momentum=0) == TaskGradient(
        "grad", "ema", momentum=0.0
    )
    assert criterion("teacher-guided", teacher, kd="mse") == TeacherGuided(teacher, kd="mse")
    assert criterion("teacher-guided", teacher, kd=max).kd is max  # a function, which only Python can give
    for name in CRITERIA:
        assert type(criterion(name, teacher)) is CRITERIA[name]


def test_a_number_is_the_kind_that_is_asked_for() -> None:
    made = criterion("teacher-guided", nn.Identity(), temperature=4)
    assert type(made.temperature) is float


def test_criteria_of_ones_own() -> None:
    teacher = nn.Identity()
    made = criterion("mine_for_building:Guided", teacher, seed=7, power=2)
    assert (made.teacher, made.power, made.seed, made.mode) == (teacher, 2.0, 7, "a")
    assert criterion("mine_for_building:Plain", rounds=5).rounds == 5
    assert criterion("mine_for_building:Hinted", rounds=5).rounds == 5


def test_who_wants_a_teacher() -> None:
    assert wants_teacher("teacher-guided")
    assert wants_teacher("mine_for_building:Guided")
    assert not wants_teacher("magnitude")
    assert not wants_teacher("mine_for_building:Plain")


def test_scopes() -> None:
    options: dict[str, dict[str, object]] = {"per-tensor": {"sparsities": {"*": 0.5}}}
    for name in SCOPES:
        assert type(build_scope_from(name, options.get(name, {}))) is SCOPES[name]
    assert build_scope_from("global", {"min_density": 0.1}) == Global(min_density=0.1)
    assert build_scope_from("per-tensor", {"sparsities": {"a": 0}}) == PerTensor({"a": 0.0})
    assert isinstance(build_scope_from("mine_for_building:Half", {}), AbstractScope)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("magnitud", {}, r"unknown criterion 'magnitud'; .* Did you mean 'magnitude'\? Your own goes by"),
        ("mine_for_building:Missing", {}, r"has no attribute 'Missing'"),
        ("mine_for_building:Other", {}, r"'mine_for_building:Other' is not a class .* AbstractCriterion"),
        ("mine_for_building:function", {}, r"is not a class that derives from AbstractCriterion"),
        ("nowhere:Thing", {}, r"no module 'nowhere'"),
        ("teacher-guided", {}, r"criterion 'teacher-guided' needs a teacher"),
        (
            "random",
            {"seed": 3},
            r"option 'seed' does not apply to criterion 'random', which takes no options",
        ),
        (
            "teacher-guided",
            {"teacher": nn.Identity()},
            r"option 'teacher' does not apply .* which takes alpha, ",
        ),
        ("magnitude", {"power": 3}, r"option 'power' does not apply to criterion 'magnitude'"),
        (
            "task-gradient",
            {"momentum": "high"},
            r"option 'momentum' of .* of type float, got 'high'",
        ),
        ("task-gradient", {"saliency": "w"}, r"option 'saliency' of .* must be one of 'grad', .* got 'w'"),
        ("task-gradient", {"momentum": 2.0}, r"momentum must be in \[0, 1\)"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(name: str, options: dict[str, object], says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        build_criterion_from(name, options, teacher=None, seed=0)


def test_an_option_without_default_must_be_given() -> None:
    with pytest.raises(InvalidArgument, match=r"'mine_for_building:Guided' needs the options power\."):
        criterion("mine_for_building:Guided", nn.Identity())


def test_a_criterion_is_no_scope() -> None:
    with pytest.raises(InvalidArgument, match="derives from AbstractScope"):
        build_scope_from("mine_for_building:Plain", {})
