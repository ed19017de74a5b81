"""The commands that a run and a sweep suggest: they parse, name the same experiment, and run."""

from __future__ import annotations

import copy
import html
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from integration.report_helpers import load
from secateur.cli import main
from secateur.cli.commands import _parse, _split
from secateur.cli.prune import Prune, Sweep
from secateur.config import CalibrationOptions, RunConfig, ScoreOptions, Setup, SweepConfig
from secateur.data import DataOptions
from secateur.recovery import Recovery
from secateur.suggestions import after_run, after_sweep

MINE = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import secateur as sc


def vectors(seed=0, batch_size=32):
    x = torch.randn(120, 6, generator=torch.Generator().manual_seed(seed))
    parts = TensorDataset(x, x[:, :3].argmax(1))
    batches = DataLoader(parts, batch_size)
    return sc.Data("my vectors", 3, (6,), batches, batches, batches, batches)


def student(num_classes):
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, num_classes))


def teacher(num_classes):
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, num_classes))


def lazy(num_classes):
    return nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.Linear(16, num_classes))
"""
FOLDER = Path("runs/a run")
TRAINED = {"student_weights": "runs/a run/dense.safetensors"}
TAUGHT = {**TRAINED, "teacher_weights": "runs/a run/teacher.safetensors"}
NETWORKS = {"student": "mine_suggested:student", "teacher": "mine_suggested:teacher"}
OWN = Setup(dataset=DataOptions(data="mine_suggested:vectors", batch_size=16), **NETWORKS, seed=3)


def result_of(config: RunConfig, *, taught: bool) -> dict[str, Any]:
    """As much of a result as the suggestions look at."""
    score = config.setup.score
    form = {"form": score.form or "separate"} if score.criterion == "teacher-guided" else {}
    return {
        "criterion": {
            "name": score.criterion,
            **form,
            "update_weights": score.criterion == "teacher-curvature",
        },
        "models": {"teacher": {"name": "a teacher"} if taught else None},
        "layers": [{"name": "0.weight", "shape": [16, 6]}, {"name": "2.weight", "shape": [3, 16]}],
    }


def parsed(command: str) -> Any:
    return _parse(*_split(shlex.split(command)[1:]))


def suggested(config: RunConfig, *, taught: bool) -> str:
    """The sweep, or the plan where there is no sweep; the others look into the file."""
    inspect, verify, *rest = after_run(config, result_of(config, taught=taught), FOLDER)
    assert (inspect.text, verify.text) == ("secateur inspect 'runs/a run'", "secateur verify 'runs/a run'")
    assert rest[-1].text == "secateur compile 'runs/a run'"
    return rest[0].text


MAGNITUDE = ScoreOptions(criterion="magnitude")
FISHER = ScoreOptions(criterion="teacher-fisher")
LAMP = Setup(
    score=ScoreOptions(criterion="lamp"),
    scope="erk",
    exclude=("features.0.*", "classifier*"),
    include=("*.weight",),
)
SWEEPS = {
    "own data": (RunConfig(OWN), True, replace(OWN, **TAUGHT), True),
    "weights that were given": (
        RunConfig(replace(OWN, student_weights="s.pt", teacher_weights="my t.pt")),
        True,
        replace(OWN, student_weights="s.pt", teacher_weights="my t.pt"),
        True,
    ),
    "lamp": (RunConfig(LAMP, recover="none"), False, replace(LAMP, **TRAINED), False),
    "a teacher that the score does not ask": (
        RunConfig(replace(OWN, score=MAGNITUDE)),
        True,
        replace(OWN, score=MAGNITUDE, **TRAINED, teacher=None),
        False,
    ),
    "its own teacher": (
        RunConfig(Setup(teacher="student", score=FISHER)),
        True,
        Setup(teacher="student", score=FISHER, **TRAINED),
        False,
    ),
    "its own teacher and two terms": (
        RunConfig(Setup(teacher="student"), alpha=0.3),
        True,
        Setup(teacher="student", score=ScoreOptions(criterion_options={"alpha": 0.3}), **TRAINED),
        False,
    ),
    "one term": (
        RunConfig(Setup(score=ScoreOptions(form="joint", temperature=2.0, standardize=True)), alpha=0.3),
        True,
        Setup(
            score=ScoreOptions(
                form="joint", temperature=2.0, standardize=True, criterion_options={"alpha": 0.3}
            ),
            **TAUGHT,
        ),
        False,
    ),
    "all kinds of options": (
        RunConfig(
            Setup(
                dataset=DataOptions(data="imagefolder", data_dir="my data", mean=(0.5, 0.4), augment=False),
                score=ScoreOptions(criterion="taylor", criterion_options={"group": "a b"}),
                scope="smart-ratios",
                scope_options={"linear_density": 0.02},
                pretrain=Recovery(epochs=2, kd_weight=0.0),
            )
        ),
        True,
        Setup(
            dataset=DataOptions(data="imagefolder", data_dir="my data", mean=(0.5, 0.4), augment=False),
            score=ScoreOptions(criterion="taylor", criterion_options={"group": "a b"}),
            scope="smart-ratios",
            scope_options={"linear_density": 0.02},
            **TRAINED,
        ),
        False,
    ),
}


@pytest.mark.parametrize("case", SWEEPS)
def test_the_sweep_after_a_run_is_of_the_same_experiment(case: str) -> None:
    config, taught, setup, has_alpha = SWEEPS[case]
    sweep = parsed(suggested(config, taught=taught))
    assert isinstance(sweep, Sweep)
    assert sweep.setup == setup
    assert sweep.alpha == ("0:1:0.1" if has_alpha else None)
    assert sweep.sparsity == "0.8,0.9,0.95"


@pytest.mark.parametrize(
    ("setup", "asked", "sparsities"),
    [
        (Setup(), 0.4, "0.4,0.7"),
        (Setup(), 0.99999, "0.99998,0.99999,0.999995"),
        (Setup(min_density=0.08), 0.9, "0.8,0.9"),
        (Setup(scope="per-tensor", scope_options={"sparsities": {"0.*": 0.85}}), 0.9, "0.8,0.9"),
        (Setup(scope="somewhere:Else"), 0.9, "0.9"),
    ],
)
def test_only_sparsities_that_the_scope_can_meet_are_swept(
    setup: Setup, asked: float, sparsities: str
) -> None:
    assert parsed(suggested(RunConfig(setup, sparsity=asked), taught=True)).sparsity == sparsities


@pytest.mark.parametrize(
    "config",
    [
        RunConfig(Setup(score=MAGNITUDE), pattern="2:4"),
        RunConfig(Setup(score=ScoreOptions(criterion="snip")), stages=3),
        RunConfig(Setup(score=FISHER), calibration=CalibrationOptions(steps=5)),
        RunConfig(Setup(score=ScoreOptions(criterion="teacher-curvature"))),
        RunConfig(Setup(score=MAGNITUDE, scope="somewhere:Else")),
    ],
)
def test_where_a_sweep_would_make_other_cuts_it_is_a_plan(config: RunConfig) -> None:
    assert suggested(config, taught=True) == "secateur compile 'runs/a run'"


@pytest.mark.parametrize("taught", [True, False])
def test_the_run_after_a_sweep_is_its_best_cut(taught: bool) -> None:
    content = copy.deepcopy(load("sweep"))
    content["models"]["teacher"] = {"name": "a teacher"} if taught else None
    stage = "batchnorm" if taught else "cut"
    if not taught:
        content["rows"] = [{**row, "batchnorm": None} for row in content["rows"]]
    options = ScoreOptions(temperature=2.0, criterion_options={"alpha": 0.5, "beta": 0.5})
    (command,) = after_sweep(SweepConfig(replace(OWN, score=options)), content, FOLDER)
    prune = parsed(command.text)
    assert isinstance(prune, Prune)
    without = replace(options, criterion_options={"beta": 0.5})
    networks = TAUGHT if taught else {**TRAINED, "teacher": None}
    assert prune.config.setup == replace(OWN, score=without, **networks)
    sparsities = sorted({row["sparsity"] for row in content["rows"]})
    assert prune.config.sparsity == sparsities[len(sparsities) // 2]
    at = {row["alpha"]: row[stage] for row in content["rows"] if row["sparsity"] == prune.config.sparsity}
    assert prune.config.alpha is not None
    assert at[prune.config.alpha] == max(at.values())
    assert prune.config.recover == ("kd" if taught else "plain")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of somebody with data and networks of their own."""
    (tmp_path / "mine_suggested.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("mine_suggested", None)


def commands_of(report: Path) -> list[str]:
    found = re.findall("<li><code>(.*?)</code>", report.read_text())
    return [html.unescape(command) for command in found if " RUN" not in command]


def test_what_is_printed_and_drawn_runs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = [f"--{name}={value}" for name, value in NETWORKS.items()]
    first = ["--data", "mine_suggested:vectors", *own, "--pretrain.epochs", "1", "--recover", "none"]
    assert main(["prune", *first, "--exclude", "2.*", "--sparsity", "0.8", "--out", "my run"]) == 0
    shown = capsys.readouterr().out
    assert re.search(
        r"; file [1-9]\d*\.\d times larger \(", shown
    )  # a file says more of itself than it saves
    printed = [line[12:] for line in shown.splitlines()[-4:]]
    assert printed == commands_of(here / "my run" / "report.html")
    assert "--teacher-weights 'my run/teacher.safetensors' --exclude '2.*' --alpha 0:1:0.1" in printed[-2]
    for command in printed:
        assert main(shlex.split(command)[1:]) == 0
    (swept,) = (here / "runs").glob("sweep-*")
    (again,) = commands_of(swept / "report.html")
    assert main([*shlex.split(again)[1:], "--recovery.epochs", "1"]) == 0
    for folder in (here / "my run", swept):
        before = commands_of(folder / "report.html")
        assert main(["report", str(folder.relative_to(here))]) == 0
        assert commands_of(folder / "report.html") == before
        (folder / "config.yaml").unlink()
        assert main(["report", str(folder)]) == 0
        assert commands_of(folder / "report.html") == []


def test_lazy_layers_are_made_before_they_are_filled(here: Path) -> None:
    data = [
        "--data",
        "mine_suggested:vectors",
        "--student",
        "mine_suggested:lazy",
        "--criterion",
        "magnitude",
    ]
    once = ["--recover", "none", "--pretrain.epochs", "1", "--sparsity", "0.5", "--out", "trained"]
    assert main(["prune", *data, *once]) == 0
    assert main(["compile", "trained", "--threads", "1"]) == 0
    for name, weights in (("a", "dense"), ("b", "student")):
        given = ["--student-weights", f"trained/{weights}.safetensors", "--recover", "none"]
        assert main(["prune", *data, *given, "--sparsity", "0.5", "--out", name]) == 0
