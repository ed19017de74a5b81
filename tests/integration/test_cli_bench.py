"""`secateur bench accuracy` and what a user types at it; and `secateur inspect` of a file that is a plan."""

from __future__ import annotations

import html
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from secateur.checkpoint import inspect_checkpoint, load_sparse, verify_checkpoint
from secateur.cli import main
from secateur.errors import CheckpointError
from secateur.runtime import compile as compile_model

SUITE = """
name: small
description: For a test.
dataset: {data: digits, n_calibration: 64}
student: small-cnn
teacher: small-cnn
pretrain: {epochs: 0, kd_weight: 0.0}
recovery: null
sparsities: [0.9]
seeds: [0, 1]
methods:
  magnitude: {criterion: magnitude}
  lamp: {criterion: lamp}
"""


@pytest.mark.parametrize(("flags", "code"), [([], 2), (["--help"], 0), (["-h"], 0)])
def test_bench_shows_its_two_commands(
    flags: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *flags]) == code
    shown = capsys.readouterr()
    assert "secateur bench accuracy --help" in shown.out
    assert "secateur bench runtime --help" in shown.out
    assert not shown.err


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    (tmp_path / "suite.yaml").write_text(SUITE)
    suite, out = str(tmp_path / "suite.yaml"), str(tmp_path / "out")
    return ["bench", "accuracy", "--suite", suite, "--out", out, "--device", "cpu"]


def test_parts_of_a_suite_are_lists_of_words_and_whole_numbers(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--methods", "magnitude, lamp", "--seeds", " 1 ", "--json"]) == 0
    cells = json.loads(capsys.readouterr().out)["cells"]
    assert [(cell["method"], cell["seed"]) for cell in cells] == [("magnitude", 1), ("lamp", 1)]


def test_the_page_of_a_part_says_how_to_go_on_from_its_folder(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "out" / "report.html"
    assert main([*command, "--seeds", "1"]) == 0
    made = page.read_text()
    assert main(["report", str(tmp_path / "out")]) == 0
    assert page.read_text() == made
    (tmp_path / "suite.yaml").unlink()  # the folder keeps its own
    (found,) = re.findall(r"secateur (bench accuracy [^<]*)<", made)
    assert main(shlex.split(html.unescape(found))) == 0
    assert "4 of 4 cells" in capsys.readouterr().out
    assert "secateur bench" not in page.read_text()  # nothing is missing


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--seeds", "0.5,1.9"], "--seeds takes whole numbers of at least 0 such as 0,1, got '0.5,1.9'."),
        (["--seeds", ""], "--seeds takes whole numbers of at least 0 such as 0,1, got ''."),
        (["--methods", " , "], "--methods takes keys such as a,b,c, got ' , '. Or leave it out."),
        (["--shard", "1/0"], "a shard is I/N with 1 ≤ I ≤ N, got 1/0."),
        (["--shard", "1/0", "--jobs", "2"], "a shard is I/N with 1 ≤ I ≤ N, got 1/0."),
        (["--shard", "3/2", "--jobs", "2"], "a shard is I/N with 1 ≤ I ≤ N, got 3/2."),
    ],
)
def test_what_is_no_part_is_refused(
    flags: list[str], says: str, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, *flags]) == 2
    assert capsys.readouterr().err == f"error: {says}\n"


def test_a_plan_is_told_from_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layer, path = nn.Linear(8, 4).eval(), tmp_path / "student.plan"
    with torch.no_grad():
        layer.weight[:, ::2] = 0.0
    compile_model(layer, torch.zeros(1, 8), batches=(1,), threads=1).save(path)
    assert main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "1 operations, 1 of them layers; 20 of 36 weights are not zero" in shown
    assert f"a plan, no checkpoint; {path.stat().st_size:,} bytes" in shown
    assert f"next  secateur time {path}" in shown
    assert main(["inspect", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["n_weights"], found["n_nonzero"]) == ("plan", 36, 20)
    assert [layer["shape"] for layer in found["layers"]] == [[4, 8]]
    for read in (inspect_checkpoint, load_sparse):
        with pytest.raises(CheckpointError, match=r"is a plan, not a checkpoint\. Read it with .*read_plan"):
            read(path)
    (check,) = verify_checkpoint(path).checks
    assert "is a plan, not a checkpoint" in check.detail


def test_a_suite_can_be_drawn_from_a_file_of_any_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = Path(__file__).parents[2] / "benchmarks" / "results"
    shutil.copy(results / "arena_calibration-digits.json", tmp_path / "mine.json")
    assert main(["report", str(tmp_path / "mine.json")]) == 0
    assert str(tmp_path / "report.html") in capsys.readouterr().out
    assert "calibration-digits" in (tmp_path / "report.html").read_text()
