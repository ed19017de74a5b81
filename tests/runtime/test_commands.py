"""secateur compile, time and bench runtime."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from secateur.checkpoint import save_sparse
from secateur.cli import main
from secateur.deploy import load_student, network_of_run
from secateur.errors import InvalidArgument
from secateur.runtime import Plan, load, read_plan
from secateur.runtime.bench import Grid, cells_of, run_grid
from secateur.runtime.timing import time_in_turn

FLAGS = ["--data", "digits", "--sparsity", "0.9", "--pretrain.epochs", "1", "--recover", "none"]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "digits"
    assert main(["prune", *FLAGS, "--out", str(path), "--json"]) == 0
    return path


@pytest.fixture(scope="module")
def plan_file(run_folder: Path) -> Path:
    assert main(["compile", str(run_folder), "--threads", "1"]) == 0
    return run_folder / "student.plan"


def test_compile_says_what_it_chose(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", str(run_folder), "--threads", "1", "--test", "--batch", "1,4"]) == 0
    shown = capsys.readouterr().out
    assert "why" in shown
    assert "0 classes differ" in shown
    assert f"next  secateur time {run_folder / 'student.plan'}" in shown


def test_the_plan_of_a_run_agrees_with_torch_on_the_whole_test_split(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "net.plan"
    assert main(["compile", str(run_folder), "--out", str(out), "--test", "--json", "--threads", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    result = json.loads((run_folder / "result.json").read_text())
    assert found["plan_bytes"] == out.stat().st_size
    assert found["test"]["n_samples"] == result["data"]["n_test"] == 359
    assert found["test"]["differing"] == []
    assert found["test"]["accuracy_engine"] == found["test"]["accuracy_torch"]
    assert found["test"]["accuracy_engine"] == pytest.approx(result["accuracy"]["batchnorm"])
    assert found["test"]["worst"] < 1e-5
    layers = {layer["name"]: layer for layer in found["layers"]}
    assert min(layer["density"] for layer in layers.values()) < 0.2
    assert load(out, threads=1)(np.zeros((2, 1, 8, 8), np.float32)).shape == (2, 10)


def test_time_prints_a_table(plan_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["time", str(plan_file), "--seconds", "0.05", "--threads", "1", "--against", "torch"]) == 0
    shown = capsys.readouterr().out
    assert "secateur" in shown
    assert "torch" in shown


def test_time_for_programs(plan_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["time", str(plan_file), "--seconds", "0.05", "--threads", "1", "--batch", "3", "--json"]
    assert main([*command, "--against", "torch"]) == 0
    found = json.loads(capsys.readouterr().out)
    ours, torch = found["timings"]
    assert (found["batch"], found["threads"]) == (3, 1)
    assert (ours["name"], torch["name"]) == ("secateur", "torch")
    assert 0 < ours["median_s"] <= ours["p95_s"]
    assert ours["per_second"] == pytest.approx(3 / ours["median_s"])
    assert ours["n_runs"] >= 5
    assert torch["agrees"]
    assert torch["difference"] < 1e-4


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        (["time", "PLAN", "--against", "tensorrt"], 2, "unknown engine 'tensorrt'; known are onnxruntime"),
        (["time", "PLAN", "--batch", "0"], 2, "--batch must be at least 1"),
        (["time", "PLAN", "--threads", "0"], 2, "threads must be at least 1, got 0"),
        (["time", "PLAN", "--batch", "1000000000000"], 1, "there is not enough memory: Unable to allocate"),
        (["time", "nothing.plan"], 1, "cannot read 'nothing.plan'"),
        (["time", "RUN"], 1, "is a folder, not a plan."),
        (["time", "."], 1, "'.' is a folder, not a plan. Make a plan first: secateur compile ."),
        (["compile", "nowhere"], 1, "'nowhere' holds no result.json"),
        (["compile", "RUN", "--batch", "1,x"], 2, "--batch takes whole numbers"),
        (["bench", "runtime", "--models", "resnet9000"], 2, "unknown model 'resnet9000'; known are resnet20"),
        (["bench", "runtime", "--sparsity", "90"], 2, r"sparsities must lie in [0, 1)"),
        (["bench", "runtime", "--sparsity", "most"], 2, "--sparsity takes numbers"),
        (["bench", "runtime", "--runs", "nowhere"], 1, "'nowhere' holds no result.json"),
        (["bench", "nothing"], 2, "bench nothing"),
    ],
)
def test_mistakes_are_named(
    command: list[str],
    code: int,
    message: str,
    run_folder: Path,
    plan_file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = {"RUN": str(run_folder), "PLAN": str(plan_file)}
    assert main([words.get(word, word) for word in command]) == code
    assert message in capsys.readouterr().err


def test_the_benchmark_goes_on_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "runtime", "--out", str(tmp_path), "--models", "resnet20", "--batch", "1,2"]
    command += ["--sparsity", "0.9", "--against", "torch", "--seconds", "0.01", "--threads", "1", "--json"]
    assert main(command) == 0
    first = json.loads(capsys.readouterr().out)
    assert [(row["model"], row["batch"], row["sparsity"]) for row in first] == [
        ("resnet20", 1, 0.9),
        ("resnet20", 2, 0.9),
    ]
    assert all(row["times_faster"]["torch"] > 0 and row["agrees"] for row in first)
    cell = tmp_path / "resnet20-b1-s0.9.json"
    content = json.loads(cell.read_text())
    assert content["plan_bytes"] <= 5.5 * content["n_nonzero"]
    assert 0.85 < 1 - content["n_nonzero"] / content["n_weights"] < 0.91
    written = cell.stat().st_mtime_ns
    (tmp_path / "resnet20-b2-s0.9.json").unlink()
    assert main(command) == 0
    assert cell.stat().st_mtime_ns == written
    assert (tmp_path / "resnet20-b2-s0.9.json").is_file()


def test_the_benchmark_takes_the_students_of_runs(run_folder: Path, tmp_path: Path) -> None:
    grid = Grid(models=("resnet20",), batches=(2,), sparsities=(0.9,), against=(), threads=1, seconds=0.01)
    other = {"name": "other", "median_s": 1.0}
    seen: list[int] = []

    def time_it(plan: Plan, batch: int) -> dict[str, object]:
        seen.append(plan.n_nonzero)
        return other

    networks = [network_of_run(run_folder)]
    random, student = run_grid(grid, tmp_path, pruned_networks=networks, also=[time_it])
    assert [(random["model"], random["masks"]), (student["model"], student["masks"])] == [
        ("resnet20", "random"),
        (networks[0].name, "pruned"),
    ]
    assert (student["batch"], student["sparsity"]) == (2, 0.9)
    assert seen == [random["n_nonzero"], student["n_nonzero"]]
    assert [cell["timings"][1:] for cell in (random, student)] == [[other], [other]]


def test_the_command_takes_the_students_of_runs(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bench", "runtime", "--out", str(tmp_path), "--models", "", "--batch", "1", "--against", ""]
    command += ["--runs", str(run_folder), "--seconds", "0.01", "--threads", "1", "--json"]
    assert main(command) == 0
    [row] = json.loads(capsys.readouterr().out)
    assert re.fullmatch(r"run-digits-[0-9a-f]{6}", row["model"])
    assert row["masks"] == "pruned"
    other = tmp_path / "elsewhere" / "digits"
    shutil.copytree(run_folder, other)
    assert network_of_run(other).name == row["model"]
    student, _ = load_student(other)
    for parameter in student.parameters():
        parameter.data.neg_()
    save_sparse(student, other / "student.safetensors")
    assert network_of_run(other).name != row["model"]  # else it would be taken for the one that was measured


def test_the_grid_has_every_cell_once() -> None:
    grid = Grid(models=("resnet20", "vgg16"), batches=(1, 16), sparsities=(0.8, 0.9))
    files = [cell.file for cell in cells_of(grid)]
    assert len(files) == len(set(files)) == 8
    assert files[0] == "resnet20-b1-s0.8.json"


def test_cells_of_another_precision_are_others(tmp_path: Path) -> None:
    grid = Grid(models=("resnet20",), batches=(2,), sparsities=(0.9,), against=(), threads=1, seconds=0.01)
    [exact] = run_grid(grid, tmp_path)
    [half] = run_grid(replace(grid, precision="fp16"), tmp_path)
    assert (exact["precision"], half["precision"]) == ("fp32", "fp16")
    assert half["plan_bytes"] < 0.7 * exact["plan_bytes"]


def test_cells_that_were_measured_otherwise_are_not_taken(tmp_path: Path) -> None:
    grid = Grid(models=("resnet20",), batches=(2,), sparsities=(0.9,), against=(), threads=1, seconds=0.01)
    list(run_grid(grid, tmp_path))
    for other, message in (
        (replace(grid, threads=2), r"resnet20-b2-s0\.9\.json' was measured with 1 threads, not 2\. Remove"),
        (replace(grid, against=("torch",)), "was measured without torch"),
        (replace(grid, seconds=2.0), r"was measured for 0\.01 seconds an engine, not 2\. Remove"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            list(run_grid(other, tmp_path))


def test_calls_are_timed_in_turn() -> None:
    order: list[str] = []
    times = time_in_turn({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, seconds=0)
    assert order == ["a", "a", "a", "b", "b", "b"] * 10  # the first of a block does not count
    assert [[len(block) for block in blocks] for blocks in times.values()] == [[2] * 10] * 2


def test_a_narrow_plan_keeps_its_precision(run_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "narrow.plan"
    assert main(["compile", str(run_folder), "--out", str(out), "--precision", "fp16", "--threads", "1"]) == 0
    assert read_plan(out).program.precision == "fp16"
