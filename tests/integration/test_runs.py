"""Runs: one at a time in a folder, whole after a kill, an error where a disk is full, and what they took."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save

from secateur.config import RunConfig, ScoreOptions, Setup
from secateur.errors import CheckpointError, InvalidArgument, RunError
from secateur.files import atomic_path
from secateur.launch import Prepared, launch, prepare
from secateur.progress import Watcher
from secateur.recovery import Recovery
from secateur.runs import RunFolder
from secateur.train import TrainState

HOLD = """
import sys
from secateur.runs import RunFolder
with RunFolder.claimed(sys.argv[1], run_id="a", config="x: 1\\n", resume=len(sys.argv) > 2):
    print("held", flush=True)
    sys.stdin.read()
"""


def holding(path: Path) -> subprocess.Popen[str]:
    """Another process that has claimed a folder and is at work."""
    command = [sys.executable, "-c", HOLD, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def claim(path: Path, run_id: str = "a", *, resume: bool = False) -> None:
    with RunFolder.claimed(path, run_id=run_id, config="x: 1\n", resume=resume):
        pass


def test_a_folder_in_use_is_refused_until_its_process_is_dead(tmp_path: Path) -> None:
    """Until its first checkpoint a run has written nothing but its configuration."""
    path = tmp_path / "run"
    with holding(path) as process:
        for run_id, resume in (("a", False), ("a", True), ("b", False), ("b", True)):
            with pytest.raises(RunError, match=r"in use by a run .* choose another --out"):
                claim(path, run_id, resume=resume)
        assert (path / "config.yaml").read_text() == "# run a\nx: 1\n"
        process.kill()
        process.wait()
    claim(path, resume=True)
    claim(path, "b")  # it had not begun
    assert (path / "config.yaml").read_text() == "# run b\nx: 1\n"
    assert [p.name for p in path.iterdir()] == ["config.yaml"]


def test_a_killed_run_that_had_begun_is_resumed_and_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with holding(path) as process:
        RunFolder(path).save_training("dense", TrainState(), [])
        process.kill()
        process.wait()
    with pytest.raises(RunError, match=r"already used \(it holds checkpoint, config.yaml\)"):
        claim(path)
    with pytest.raises(RunError, match="holds run a, these options make run b"):
        claim(path, "b", resume=True)
    claim(path, resume=True)


def test_a_folder_is_free_after_an_exception_and_a_refused_one_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(ZeroDivisionError), RunFolder.claimed(path, run_id="a", config=""):
        1 / 0  # noqa: B018
    claim(path)
    (path / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match="already used"):
        claim(path)
    assert sorted(p.name for p in path.iterdir()) == ["config.yaml", "mine.txt"]
    (path / "config.yaml").unlink()
    with pytest.raises(RunError, match=r"holds no config\.yaml"):
        claim(path, resume=True)
    assert [p.name for p in path.iterdir()] == ["mine.txt"]


def test_what_a_killed_write_left_is_not_taken_for_a_run(tmp_path: Path) -> None:
    def killed(name: str, content: str) -> None:
        with atomic_path(tmp_path / name) as temporary:
            temporary.write_text(content)
            shutil.copy(temporary, kept / temporary.name)

    kept = tmp_path / "kept"
    kept.mkdir()
    killed("config.yaml", "# run")
    claim(kept)
    assert [p.name for p in kept.iterdir()] == ["config.yaml"]


def test_a_finished_result_that_somebody_edited_is_refused(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(RunError, match="format"):
        launch(RunConfig(), RunFolder(tmp_path), Watcher())


@pytest.mark.parametrize(
    "about", ["{}", "[]", "null", '{"curve": [{"x": 1}]}', '{"curve": [], "nope": 1}'], ids=str
)
def test_a_state_that_somebody_edited_is_refused(tmp_path: Path, about: str) -> None:
    RunFolder(tmp_path).save_training("dense", TrainState(), [])
    path = tmp_path / "checkpoint" / "dense.safetensors"
    path.write_bytes(save({}, metadata={"training": about}))
    with pytest.raises(CheckpointError, match=r"dense\.safetensors' is damaged"):
        RunFolder(tmp_path).load_training("dense")


@pytest.mark.parametrize("was_there", [False, True])
@pytest.mark.parametrize("begun", [False, True])
def test_a_run_that_is_refused_before_it_begins_leaves_no_folder(
    tmp_path: Path, *, was_there: bool, begun: bool
) -> None:
    def refused() -> None:
        with RunFolder.claimed(path, run_id="a", config="") as folder:
            if begun:
                folder.log("epoch", epoch=1)
            raise InvalidArgument("unknown student")

    path = tmp_path / "run"
    if was_there:
        path.mkdir()
    with pytest.raises(InvalidArgument):
        refused()
    assert path.exists() == (was_there or begun)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    with pytest.raises(RunError, match=r"log\.jsonl': No space left on device\. Free some space"):
        RunFolder(tmp_path).log("epoch", epoch=1)


def test_a_checkpoint_without_a_folder_to_be_in_is_named(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").write_text("in the way")
    with pytest.raises(RunError, match=r"cannot write .*dense\.safetensors'"):
        RunFolder(tmp_path).save_training("dense", TrainState(), [])


def test_the_seconds_of_a_run_count_the_training_of_its_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the networks had been trained for 1,500 seconds; the rest is over in one or two."""

    def long_prepared(*args: Any, **options: Any) -> Prepared:
        ready = prepare(*args, **options)
        ready.seconds.update(teacher=1000.0, dense=500.0)
        return ready

    monkeypatch.setattr("secateur.launch.prepare", long_prepared)
    untrained = Recovery(epochs=0, kd_weight=0.0)
    setup = Setup(score=ScoreOptions(criterion="magnitude"), pretrain=untrained, device="cpu")
    config = RunConfig(setup=setup, sparsity=0.5, recover="none")
    seconds = launch(config, RunFolder(tmp_path), Watcher())["seconds"]
    assert (seconds["teacher"], seconds["dense"]) == (1000.0, 500.0)
    assert 1500 < seconds["total"] < 2000
