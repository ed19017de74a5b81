"""Recovery on calibration inputs from the command line: whole runs on digits, in seconds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from secateur.cli import main
from secateur.files import read_json

QUICK = ("--data", "digits", "--n-calibration", 256)
TRAIN = ("--pretrain.epochs", 2, "--pretrain.lr", 0.05, "--pretrain.precision", "fp32")
NO_TRAINING = ("--recover", "none")


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[object, ...]]:
    """Flags that name a trained student."""
    out = tmp_path_factory.mktemp("trained") / "run"
    assert run("prune", *QUICK, *TRAIN, "--criterion", "magnitude", "--recover", "none", "--out", out) == 0
    return ("--student-weights", out / "dense.safetensors")


def test_a_cut_without_a_training_set(weights: Any, tmp_path: Path, capsys: Any) -> None:
    budget = ("--calibration.steps", 10, "--calibration.final-steps", 16)
    steps = (*budget, "--calibration.batch-size", 32, "--calibration.precision", "fp32")
    how = ("--criterion", "magnitude", "--sparsity", 0.9, "--stages", 3, *NO_TRAINING)
    assert run("prune", *QUICK, *weights, *how, "--out", tmp_path / "bare") == 0
    assert run("prune", *QUICK, *weights, *how, *steps, "--out", tmp_path / "taught") == 0
    said = capsys.readouterr()
    assert "36 calibration steps in " in said.out
    assert "stage 3 of 3, 90.00% removed: loss " in said.err
    bare, taught = (read_json(tmp_path / name / "result.json") for name in ("bare", "taught"))
    assert bare["calibration_recovery"] is None
    assert taught["calibration_recovery"]["batch_size"] == 32
    assert [row["n_steps"] for row in taught["stages"]["rows"]] == [10, 10, 16]
    assert taught["accuracy"]["cut"] > bare["accuracy"]["cut"]
    assert taught["models"]["teacher"] is None
    assert not (tmp_path / "taught" / "log.jsonl").exists(), "nothing was trained"
    report = (tmp_path / "taught" / "report.html").read_text()
    assert "What each stage did to the teacher" in report
    assert run("verify", tmp_path / "taught") == 0

    again = tmp_path / "again"
    assert run("prune", "--config", tmp_path / "taught" / "config.yaml", "--out", again) == 0
    assert read_json(again / "result.json")["mask_digest"] == taught["mask_digest"]
    assert read_json(again / "result.json")["run_id"] == taught["run_id"]


def test_the_student_can_be_its_own_teacher(weights: Any, tmp_path: Path, capsys: Any) -> None:
    own = ("--criterion", "teacher-curvature", "--criterion-options", "rows=64", "damping=10")
    out = tmp_path / "own"
    flags = (
        "--teacher",
        "student",
        "--stages",
        2,
        "--calibration.steps",
        4,
        "--calibration.final-steps",
        4,
        *NO_TRAINING,
    )
    capsys.readouterr()
    assert run("prune", *QUICK, *weights, *own, *flags, "--json", "--out", out) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["models"]["teacher"] == {**result["models"]["student"], "name": "student"}
    assert result["accuracy"]["teacher"] == result["accuracy"]["dense"]
    assert all(row["predicted"] is not None for row in result["stages"]["rows"])
    assert result["stages"]["rows"][0]["loss"]["before"] == pytest.approx(0, abs=1e-5)
    assert not (out / "log.jsonl").exists()
    assert not (out / "teacher.safetensors").exists()


def test_a_sweep_is_suggested_with_the_same_teacher(weights: Any, tmp_path: Path, capsys: Any) -> None:
    flags = ("--criterion", "teacher-fisher", "--teacher", "student", *NO_TRAINING, "--out", tmp_path / "own")
    assert run("prune", *QUICK, *weights, *flags) == 0
    assert "--teacher student" in capsys.readouterr().out.splitlines()[-2]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--calibration.lr", 0.1), "calibration without steps would do nothing: set calibration.steps"),
        (("--calibration.steps", -1), "steps must be at least 0, got -1"),
        (("--calibration.steps", 9, "--calibration.batch-size", 1), "batch_size must be at least 2, got 1"),
        (("--calibration.steps", 9, "--stages", 2, "--regrow"), "regrow does not go with"),
        (("--teacher", "student", "--teacher-weights", "t.pt"), "drop teacher_weights"),
        (("--teacher", "student", "--pretrain.kd-weight", 0.5), "set pretrain.kd_weight=0"),
    ],
)
def test_what_does_not_fit_costs_no_training(tmp_path: Path, capsys: Any, flags: Any, says: str) -> None:
    criterion = ("--criterion", "magnitude", "--recover", "none")
    try:
        code = run("prune", *QUICK, *criterion, *flags, "--out", tmp_path / "never")
    except SystemExit as stop:  # the parser's own way of refusing
        code = stop.code
    assert code == 2
    assert says in " ".join(re.sub("[│─]", " ", capsys.readouterr().err).split())
    assert not (tmp_path / "never" / "log.jsonl").exists()
