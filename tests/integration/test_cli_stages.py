"""Stages, scopes and a criterion of one's own on the command line: whole runs on digits, in seconds."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from secateur.cli import main
from secateur.counts import n_prune

QUICK = ("--data", "digits", "--n-calibration", "256", "--pretrain.epochs", "2", "--pretrain.lr", "0.05")
FP32 = ("--pretrain.precision", "fp32")
MINE = '''
"""|w|^power, times the gradient of the task loss."""

from dataclasses import dataclass

import secateur as sc


@dataclass(frozen=True)
class Mine(sc.AbstractCriterion):
    power: float = 1.0

    def __call__(self, inputs):
        snip = sc.Snip()(inputs)
        return {name: snip[name] * inputs.weights[name].abs() ** (self.power - 1) for name in snip}
'''


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def result_of(folder: Path) -> Any:
    return json.loads((folder / "result.json").read_text())


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that holds a criterion and a trained student."""
    folder = tmp_path_factory.mktemp("here")
    (folder / "mine_for_cli.py").write_text(MINE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        once = ("--criterion", "magnitude", "--recover", "none", "--out", folder / "trained")
        assert run("prune", *QUICK, *FP32, *once) == 0
        yield folder
    sys.modules.pop("mine_for_cli", None)


def test_ones_own_criterion_in_stages_under_another_scope(here: Path, capsys: Any) -> None:
    weights = ("--student-weights", here / "trained" / "dense.safetensors", "--recover", "none")
    score = ("--criterion", "mine_for_cli:Mine", "--criterion-options", "power=2")
    scope = ("--scope", "smart-ratios", "--scope-options", "linear_density=0.2")
    stages = ("--sparsity", 0.9, "--stages", 3, "--regrow")
    assert run("prune", *QUICK, *weights, *score, *scope, *stages, "--out", here / "staged") == 0
    result = result_of(here / "staged")
    assert result["criterion"] == {"name": "mine_for_cli:Mine", "power": 2.0}
    assert result["scope"] == {"name": "smart-ratios", "linear_density": 0.2, "over_square": False}
    assert result["models"]["teacher"] is None
    assert result["n_prune"] == n_prune(result["n_prunable"], 0.9)
    found = result["stages"]
    assert (found["n"], found["regrow"], len(found["rows"])) == (3, True, 3)
    assert sum(row["n_returned"] for row in found["rows"]) > 0
    assert 0 < found["one_cut"]["mask_overlap"] < 1
    assert {"cut", "batchnorm"} <= set(found["one_cut"])
    densities = {layer["name"]: layer["density"] for layer in result["layers"]}
    assert densities["classifier.weight"] == pytest.approx(0.2)
    assert "What the stages bought" in (here / "staged" / "report.html").read_text()
    assert run("verify", here / "staged") == 0

    again = here / "again"
    assert run("prune", "--config", here / "staged" / "config.yaml", "--out", again) == 0
    assert result_of(again)["mask_digest"] == result["mask_digest"]
    assert result_of(again)["run_id"] == result["run_id"]

    sweep = ("--criterion", "mine_for_cli:Mine", "--scope", "erk", "--sparsity", 0.5, "--out", here / "sweep")
    assert run("sweep", *QUICK, *weights[:2], *sweep) == 0
    capsys.readouterr()
    assert run("report", here / "staged", here / "trained", "--out", here / "both.html") == 0
    assert "mine_for_cli:Mine" in (here / "both.html").read_text()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--criterion", "mine_for_cli:Nothing"), "has no attribute 'Nothing'. It holds: "),
        (("--criterion", "mine_for_cli:Mine", "--criterion-options", "pwer=2"), "which takes power"),
        (("--criterion", "mine_for_cli:Mine", "--criterion-options", "power=two"), "type float, got 'two'"),
        (("--criterion", "magnitude", "--scope", "smart-ratio"), "Did you mean 'smart-ratios'?"),
        (("--criterion", "magnitude", "--scope", "per-tensor"), "needs the options sparsities"),
        (("--criterion", "magnitude", "--scope", "erk", "--min-density", "0.1"), "global scope only"),
        (("--criterion", "magnitude", "--stages", "0"), "stages must be at least 1, got 0"),
        (("--criterion", "magnitude", "--regrow"), "regrow needs at least 2 stages"),
    ],
)
def test_what_does_not_fit_costs_no_training(here: Path, capsys: Any, flags: Any, says: str) -> None:
    assert run("prune", *QUICK, *flags, "--recover", "none", "--out", here / "never") == 2
    assert says in capsys.readouterr().err
    assert not (here / "never" / "log.jsonl").exists()
