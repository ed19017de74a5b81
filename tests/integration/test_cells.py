"""What the name of a cell follows from, and that nothing is taken for another suite's or recipe's."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from secateur.arena import Method, Suite, SuiteFolder, merge, narrowed, plan, run_suite
from secateur.arena import cells as cells_module
from secateur.cli import main
from secateur.data import DataOptions
from secateur.errors import InvalidArgument, RunError
from secateur.progress import Watcher
from secateur.recovery import Recovery

SUITE = Suite(
    name="small",
    dataset=DataOptions(data="digits", n_calibration=64),
    student="small-cnn",
    teacher="small-cnn",
    pretrain=Recovery(epochs=1, kd_weight=0.0),
    recovery=None,
    sparsities=(0.5, 0.9),
    seeds=(0, 1),
    methods={"magnitude": Method(criterion="magnitude")},
)
LONGER = replace(SUITE, pretrain=Recovery(epochs=2, kd_weight=0.0))
CRITERION = """
from secateur.scores import Magnitude

class Mine(Magnitude):
    pass
"""


def test_networks_of_another_recipe_are_trained_anew(tmp_path: Path) -> None:
    part = narrowed(SUITE, sparsities=[0.5], seeds=[0])
    dense = []
    for suite in (part, replace(LONGER, sparsities=(0.5,), seeds=(0,)), part):
        folder = SuiteFolder.open(tmp_path / "one", suite)
        run_suite(suite, folder, device="cpu", watcher=Watcher())
        [cell] = plan(suite)
        dense.append(folder.result(cell)["accuracy"]["dense"])
        alone = SuiteFolder.open(tmp_path / f"alone{len(dense)}", suite)
        run_suite(suite, alone, device="cpu", watcher=Watcher())
        assert alone.result(cell)["accuracy"] == folder.result(cell)["accuracy"]
    assert dense[0] == dense[2] != dense[1]


def test_cells_follow_from_the_code_of_what_is_not_in_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    suite = replace(SUITE, methods={"mine": Method(criterion="minecrit:Mine")})
    (tmp_path / "minecrit.py").write_text(CRITERION)
    before = {cell.id for cell in plan(suite)}
    (tmp_path / "minecrit.py").write_text(CRITERION + "# another\n")
    assert {cell.id for cell in plan(suite)} == before  # what was imported is what runs
    del sys.modules["minecrit"]
    cells_module._source_digest.cache_clear()
    assert {cell.id for cell in plan(suite)}.isdisjoint(before)


def test_a_part_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"'small' has no sparsity 0\.7; it has 0\.5, 0\.9\."):
        narrowed(SUITE, sparsities=[0.5, 0.7])
    with pytest.raises(InvalidArgument, match=r"'small' has no seed 5; it has 0, 1\."):
        narrowed(SUITE, seeds=[5])
    for name in ("sparsities", "seeds"):
        twice = (*getattr(SUITE, name), getattr(SUITE, name)[0])
        with pytest.raises(InvalidArgument, match=f"{name} must differ from each other"):
            replace(SUITE, **{name: twice})


def test_a_suite_without_a_cell_is_refused(tmp_path: Path) -> None:
    high = replace(SUITE, methods={"magnitude": Method(criterion="magnitude", sparsities=(0.9,))})
    nothing = narrowed(high, sparsities=[0.5])
    with pytest.raises(InvalidArgument, match="'small' has no cell: there must be methods"):
        run_suite(nothing, SuiteFolder.open(tmp_path, nothing), device="cpu", watcher=Watcher())


def test_a_run_is_no_folder_for_a_suite(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("student: resnet20\n")
    with pytest.raises(RunError, match="is the folder of a run of `secateur prune`"):
        SuiteFolder.open(tmp_path, SUITE)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("content", ['{"cells": [{"x": 1}]}', '{"format": "secateur-result", "cells": []}'])
def test_what_is_no_collected_suite_is_not_merged(content: str, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(content)
    with pytest.raises(RunError, match=r"neither the folder of a suite nor a collected suite\.json"):
        merge(SUITE, SuiteFolder.open(tmp_path / "out", SUITE), [tmp_path / "other.json"])


def command_for(tmp_path: Path) -> list[str]:
    (tmp_path / "suite.yaml").write_text(
        "name: small\ndataset: {data: digits}\nstudent: small-cnn\nteacher: small-cnn\nseeds: [0, 1]\n"
        "pretrain: {epochs: 500, kd_weight: 0.0}\nmethods: {magnitude: {criterion: magnitude}}\n"
    )
    return ["bench", "accuracy", "--suite", str(tmp_path / "suite.yaml"), "--out", str(tmp_path / "out")]


def test_merging_nothing_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command_for(tmp_path), "--merge"]) == 2
    assert "--merge needs folders or suite.json files" in capsys.readouterr().err


def test_names_of_suites_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "accuracy", "--list", "--json"]) == 0
    assert "digits-quick" in json.loads(capsys.readouterr().out)


def processes_of(session: int) -> list[int]:
    """Processes of a session that run, those that nobody has waited for left out."""
    found: list[int] = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, *_, last = path.read_text().rpartition(")")[2].split()[:4]
            found += [int(path.parent.name)] if int(last) == session and state != "Z" else []
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_workers_end_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    main_process = subprocess.Popen(
        [sys.executable, "-m", "secateur", *command_for(tmp_path), "--jobs", "2"],
        start_new_session=True,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("out/networks/*/*")) and time.monotonic() < deadline:
        time.sleep(0.2)  # until a worker trains
    assert len(processes_of(main_process.pid)) >= 3
    main_process.kill()
    main_process.wait()
    while processes_of(main_process.pid) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not processes_of(main_process.pid)


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (
            Method(criterion="magnitude", start="small"),
            "start: small is a narrow network .* for strategy: dense",
        ),
        (Method(criterion="magnitude", sparsities=(0.9, 0.9)), "'odd': sparsities must differ"),
        (Method(criterion="snip", calibration_batches=0), "'odd': calibration_batches must be at least 1"),
        (Method(strategy_options={"criterion": "lamp"}), "criterion stands beside strategy_options"),
        (Method(strategy_options={"scope": "erk"}), "scope stands beside strategy_options"),
    ],
)
def test_methods_that_could_only_fail_later_are_refused_at_once(method: Method, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        replace(SUITE, methods={"odd": method})


@pytest.mark.parametrize("name", ["seeds", "random_label_epochs"])
def test_numbers_of_a_suite_are_whole_and_not_negative(name: str) -> None:
    with pytest.raises(InvalidArgument, match=f"{name} must be at least 0, got -1"):
        replace(SUITE, **{name: (-1,) if name == "seeds" else -1})
