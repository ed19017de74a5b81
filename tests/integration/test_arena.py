"""The arena: a grid that runs each cell once, goes on after a stop, spreads, merges and reports."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from secateur.arena import SuiteFolder, collect, load_suite, merge, narrowed, plan, run_suite, suite_names
from secateur.arena.cell import Bench, build_method, calibration_of
from secateur.arena.networks import Networks
from secateur.arena.suite import Method, Suite, recovery_of
from secateur.cli import main
from secateur.data import ImageLoader
from secateur.errors import DataError, InvalidArgument, RunError
from secateur.models import build_model
from secateur.progress import Watcher
from secateur.recovery import Recovery
from secateur.runs import RunFolder
from secateur.scores import CRITERIA
from secateur.strategies import STRATEGIES

TEACHER = build_model("small-cnn", num_classes=10, in_channels=1)

SMALL = """
name: small
description: A suite small enough for a test.
dataset: {data: digits, n_calibration: 128}
student: small-cnn
teacher: small-cnn
pretrain: {epochs: 2, kd_weight: 0.0}
random_label_epochs: 1
recovery: {epochs: 2}
sparsities: [0.5, 0.9]
seeds: [0]
methods:
  magnitude: {family: baseline, criterion: magnitude}
  teacher-guided: {criterion: teacher-guided}
  imp: {family: iterative, strategy: imp, strategy_options: {rounds: 2}, sparsities: [0.9]}
"""


def suite_of(text: str, tmp_path: Path) -> Suite:
    path = tmp_path / "suite.yaml"
    path.write_text(text)
    return load_suite(str(path))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Suite, SuiteFolder]:
    """A suite that has been run to its end."""
    base = tmp_path_factory.mktemp("finished")
    suite = suite_of(SMALL, base)
    folder = SuiteFolder.open(base / "out", suite)
    assert run_suite(suite, folder, device="cpu", watcher=Watcher()) == 5
    return suite, folder


def test_every_cell_has_a_result_with_all_that_evidence_needs(finished: tuple[Suite, SuiteFolder]) -> None:
    suite, folder = finished
    for cell in plan(suite):
        result = folder.result(cell)
        assert result["id"] == cell.id
        assert result["sparsity"]["asked"] == cell.sparsity
        assert result["sparsity"]["prunable"] == pytest.approx(cell.sparsity, abs=1e-4)
        assert 0 <= result["accuracy"]["recovered"] <= 1
        assert result["cost"]["epochs"] == 2
        assert 0 < result["cost"]["cpu_s"] < 600
        assert result["versions"]["torch"]
        assert result["hardware"]["cpu"]
        masks = folder.masks(cell)
        assert masks is not None
        assert masks.digest == result["mask_digest"]
        assert not folder.work(cell).path.exists()


def test_finished_cells_are_never_run_again(finished: tuple[Suite, SuiteFolder]) -> None:
    suite, folder = finished
    times = {path: path.stat().st_mtime_ns for path in (folder.path / "cells").iterdir()}
    assert run_suite(suite, folder, device="cpu", watcher=Watcher()) == 0
    assert {path: path.stat().st_mtime_ns for path in (folder.path / "cells").iterdir()} == times


def test_the_collected_suite_is_reported(finished: tuple[Suite, SuiteFolder]) -> None:
    suite, folder = finished
    content = collect(suite, folder)
    assert content["n_planned"] == len(content["cells"]) == 5
    page = (folder.path / "report.html").read_text()
    assert "5 of 5 cells" in page
    assert "secateur bench" not in page  # nothing is missing
    pairs = {(row["a"], row["b"], row["sparsity"]) for row in content["overlaps"]}
    assert pairs == {
        ("magnitude", "teacher-guided", 0.5),
        ("magnitude", "teacher-guided", 0.9),
        ("magnitude", "imp", 0.9),
        ("teacher-guided", "imp", 0.9),
    }
    assert str(folder.path) not in json.dumps(content)  # results say nothing of where they were made


def test_a_stopped_grid_goes_on_with_the_same_results(
    finished: tuple[Suite, SuiteFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle of a cell's training, it ends with the same masks and accuracies."""
    suite, complete = finished
    folder = SuiteFolder.open(tmp_path / "out", suite)
    whole = Bench._test
    calls = 0

    def stop_in_third_cell(self: Bench, student: object) -> float:
        nonlocal calls
        calls += 1
        if calls == 9:  # three a cell: before its training, and after
            raise KeyboardInterrupt
        return whole(self, student)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(Bench, "_test", stop_in_third_cell)
    with pytest.raises(KeyboardInterrupt):
        run_suite(suite, folder, device="cpu", watcher=Watcher())
    monkeypatch.undo()
    assert sum(folder.finished(cell) for cell in plan(suite)) == 2
    assert run_suite(suite, folder, device="cpu", watcher=Watcher()) == 3
    for cell in plan(suite):
        first, second = complete.result(cell), folder.result(cell)
        assert first["mask_digest"] == second["mask_digest"]
        assert first["accuracy"] == second["accuracy"]
        assert second["cost"]["total_s"] >= second["cost"]["train_s"]  # also of what was trained before


def test_a_cell_that_scores_nothing_anew_has_the_seconds_of_the_scores(
    finished: tuple[Suite, SuiteFolder], tmp_path: Path
) -> None:
    suite, folder = finished
    suite = replace(suite, recovery=None)
    bench = Bench(suite, Networks.prepare(suite, 0, folder.networks(suite, 0), "cpu", Watcher()))
    first, second = (cell for cell in plan(suite) if cell.method == "magnitude")
    bench.run(first, RunFolder(tmp_path))
    assert bench._scored is not None
    criterion = bench._scored[1].criterion  # type: ignore[attr-defined]
    assert criterion.seconds > 0
    criterion.seconds = 1000.0  # as if they had taken long
    cost = bench.run(second, RunFolder(tmp_path))[0]["cost"]
    assert 1000 < cost["score_s"] < cost["total_s"] < 2000


def test_shards_share_the_grid_and_merge(finished: tuple[Suite, SuiteFolder], tmp_path: Path) -> None:
    suite, complete = finished
    halves = [SuiteFolder.open(tmp_path / str(i), suite) for i in (1, 2)]
    for cell in plan(suite)[0::2]:
        halves[0].keep(cell, complete.result(cell), complete.masks(cell))
    for cell in plan(suite)[1::2]:
        halves[1].keep(cell, complete.result(cell), complete.masks(cell))
    together = SuiteFolder.open(tmp_path / "both", suite)
    assert merge(suite, together, [half.path for half in halves]) == 5
    assert merge(suite, together, [half.path for half in halves]) == 0
    assert collect(suite, together)["overlaps"] == collect(suite, complete)["overlaps"]
    with pytest.raises(RunError, match="neither"):
        merge(suite, together, [tmp_path / "nowhere"])


def test_a_collected_file_is_a_source_of_cells(finished: tuple[Suite, SuiteFolder], tmp_path: Path) -> None:
    suite, complete = finished
    collect(suite, complete)
    other = SuiteFolder.open(tmp_path / "other", suite)
    assert merge(suite, other, [complete.path / "suite.json"]) == 5
    assert run_suite(suite, other, device="cpu", watcher=Watcher()) == 0


def test_a_damaged_suite_file_is_not_taken_for_another_suite(tmp_path: Path) -> None:
    suite = suite_of(SMALL, tmp_path)
    held = SuiteFolder.open(tmp_path / "out", suite).path / "suite.yaml"
    whole = held.read_text()
    held.write_text("{")
    with pytest.raises(RunError, match=r"or is damaged.*the cells stay"):
        SuiteFolder.open(tmp_path / "out", suite)
    held.unlink()
    SuiteFolder.open(tmp_path / "out", suite)
    assert held.read_text() == whole
    held.write_text("# suite other")
    with pytest.raises(RunError, match="another suite"):
        SuiteFolder.open(tmp_path / "out", suite)


def test_a_cell_follows_from_what_decides_its_result(tmp_path: Path) -> None:
    suite = suite_of(SMALL, tmp_path)
    ids = [cell.id for cell in plan(suite)]
    assert len(set(ids)) == len(ids)
    same = replace(suite, name="other", description="", seeds=(0, 1))
    assert ids == [cell.id for cell in plan(same) if cell.seed == 0]
    recovery = suite.recovery
    assert recovery is not None
    other = replace(suite, recovery=replace(recovery, epochs=3))
    assert not {cell.id for cell in plan(other)} & set(ids)
    assert [c.id for c in plan(narrowed(suite, methods=["imp"]))] == ids[-1:]


def test_a_criterion_from_outside_runs_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from secateur import AbstractCriterion\n\n"
        "@dataclass(frozen=True)\n"
        "class Square(AbstractCriterion):\n"
        "    power: float = 2.0\n\n"
        "    def __call__(self, inputs):\n"
        "        return {n: w.detach().abs() ** self.power for n, w in inputs.targets.items()}\n"
    )
    monkeypatch.chdir(tmp_path)
    text = SMALL.replace(
        "methods:", "methods:\n  mine: {criterion: 'mine:Square', criterion_options: {power: 3.0}}"
    )
    suite = narrowed(suite_of(text, tmp_path), methods=["mine", "magnitude"], sparsities=[0.9])
    folder = SuiteFolder.open(tmp_path / "out", suite)
    run_suite(suite, folder, device="cpu", watcher=Watcher())
    mine, magnitude = (folder.result(cell) for cell in plan(suite))
    assert mine["about"]["criterion"]["power"] == 3.0
    assert mine["mask_digest"] == magnitude["mask_digest"]  # |w|³ ranks as |w| does


@pytest.mark.parametrize("name", suite_names())
def test_suites_of_the_package_can_be_built(name: str) -> None:
    suite = load_suite(name)
    assert plan(suite)
    assert suite.description
    assert "magnitude" in suite.methods
    for method in suite.methods.values():
        build_method(method, TEACHER, 0)


@pytest.mark.parametrize(
    ("said", "lacking"),
    [
        ("strategy: imp, control: shuffled", "criterion"),
        ("strategy: dense, criterion_options: {power: 3.0}", "criterion"),
        ("strategy: colt, teacher: untrained", "criterion"),
        ("criterion: magnitude, teacher: student", "criterion that takes a teacher"),
        ("criterion: magnitude, scope_options: {floor: 0.1}", "scope"),
    ],
)
def test_a_method_says_nothing_that_would_be_dropped(said: str, lacking: str, tmp_path: Path) -> None:
    suite = suite_of(SMALL.replace("methods:", f"methods:\n  mine: {{{said}}}"), tmp_path)
    with pytest.raises(InvalidArgument, match=f"does not apply to a method without a {lacking}"):
        build_method(suite.methods["mine"], TEACHER, 0)


def test_the_large_suite_has_every_method_that_it_owes() -> None:
    suite = load_suite("cifar10-resnet20")
    strategies = {method.strategy for method in suite.methods.values()}
    assert {"one-shot", "imp", "egp", "colt", "dense"} <= strategies <= set(STRATEGIES)
    assert len(suite.sparsities) >= 5
    assert len(suite.seeds) >= 3
    used = {method.criterion for method in load_suite("one-shot").methods.values()}
    assert used == set(CRITERIA)


def test_a_suite_extends_another_one(tmp_path: Path) -> None:
    base = suite_of(SMALL, tmp_path)
    (tmp_path / "longer.yaml").write_text(
        "extends: suite.yaml\nname: longer\nrecovery: {epochs: 5}\n"
        "methods:\n  imp: {strategy: imp, epochs: 9}\n  lamp: {criterion: lamp}\n"
    )
    longer = load_suite(str(tmp_path / "longer.yaml"))
    assert longer.recovery is not None
    assert (longer.name, longer.recovery.epochs, longer.sparsities) == ("longer", 5, base.sparsities)
    assert list(longer.methods) == [*base.methods, "lamp"]
    assert longer.methods["magnitude"] == base.methods["magnitude"]
    assert longer.methods["imp"].epochs == 9
    (tmp_path / "suite.yaml").write_text("extends: longer.yaml\n")
    with pytest.raises(InvalidArgument, match="extends itself"):
        load_suite(str(tmp_path / "longer.yaml"))


def test_the_short_suite_trains_all_rows_for_the_same_time_but_one() -> None:
    suite = load_suite("cifar10-resnet20-short")
    assert suite.methods.keys() == load_suite("cifar10-resnet20").methods.keys()
    longer = [key for key, method in suite.methods.items() if method.epochs is not None]
    assert longer == ["imp-lr-long"]


def test_mistakes_in_a_suite_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"unknown suite 'digit-quick'.*digits-quick"):
        load_suite("digit-quick")
    with pytest.raises(InvalidArgument, match="critrion"):
        suite_of(SMALL.replace("criterion: magnitude", "critrion: magnitude"), tmp_path)
    with pytest.raises(InvalidArgument, match=r"\[0.7\]"):
        suite_of(SMALL.replace("sparsities: [0.9]", "sparsities: [0.7]"), tmp_path)
    twins = {key: Method(label="same", criterion="magnitude") for key in ("one", "two")}
    with pytest.raises(InvalidArgument, match="'one' and 'two' have the same label"):
        Suite(methods=twins)
    with pytest.raises(InvalidArgument, match="unknown method 'magnitud'"):
        narrowed(suite_of(SMALL, tmp_path), methods=["magnitud"])
    alike = {key: Method(label=key, criterion="magnitude") for key in ("one", "two")}
    with pytest.raises(InvalidArgument, match="'one' and 'two' do the same"):
        Suite(methods=alike)
    shuffled = "\n  shuffled: {of: teacher-guided, criterion: teacher-guided, control: shuffled}\n"
    with pytest.raises(InvalidArgument, match="'shuffled' is a control of 'teacher-guided', which is not"):
        narrowed(suite_of(SMALL.rstrip() + shuffled, tmp_path), methods=["magnitude", "shuffled"])
    unguided = Method(criterion="magnitude", kd_weight=0.0, kd="reverse", temperature=2.0)
    with pytest.raises(InvalidArgument, match=r"without the teacher .* sets kd and temperature"):
        Suite(methods={"plain": unguided})
    assert recovery_of(Suite(), Method(kd="ca-kld", beta=0.2)) == Recovery(kd="ca-kld", beta=0.2)


def test_a_two_by_two_is_of_methods_of_the_suite(tmp_path: Path) -> None:
    said = SMALL + "two_by_two: [[magnitude, imp], [teacher-guided, imp]]\n"
    suite = suite_of(said, tmp_path)
    assert suite.two_by_two == (("magnitude", "imp"), ("teacher-guided", "imp"))
    assert narrowed(suite, sparsities=[0.9]).two_by_two == suite.two_by_two
    assert narrowed(suite, methods=["magnitude", "imp"]).two_by_two is None
    with pytest.raises(InvalidArgument, match=r"two_by_two names 'ipm', .* correct its name: magnitude, "):
        suite_of(said.replace("imp]]", "ipm]]"), tmp_path)
    for shape in ("[[magnitude, imp]]", "[[magnitude], [imp, magnitude]]", "[]"):
        with pytest.raises(InvalidArgument, match="two_by_two must be two rows of two methods"):
            suite_of(f"{SMALL}two_by_two: {shape}\n", tmp_path)


def test_the_command_runs_lists_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text(SMALL)
    out = tmp_path / "out"
    command = ["bench", "accuracy", "--suite", str(path), "--out", str(out), "--device", "cpu"]
    assert main([*command, "--methods", "magnitude", "--sparsity", "0.9", "--epochs", "1"]) == 0
    printed = capsys.readouterr().out
    assert "1 of 5 cells" in printed
    assert yaml.safe_load((out / "suite.yaml").read_text())["recovery"]["epochs"] == 1
    assert main(["report", str(out)]) == 0
    assert main(["bench", "accuracy", "--list"]) == 0
    assert "digits-quick" in capsys.readouterr().out
    assert main([*command, "--shard", "3of4"]) == 2


def test_a_method_may_be_recovered_in_its_own_way(tmp_path: Path) -> None:
    suite = suite_of(
        SMALL.replace("{criterion: teacher-guided}", "{criterion: teacher-guided, lr: 0.01}"), tmp_path
    )
    assert suite.recovery is not None
    own = recovery_of(suite, suite.methods["teacher-guided"])
    assert own == replace(suite.recovery, lr=0.01)
    assert recovery_of(suite, suite.methods["magnitude"]) == suite.recovery
    plain = {cell.method: cell.id for cell in plan(suite_of(SMALL, tmp_path)) if cell.sparsity == 0.9}
    for cell in plan(suite):
        if cell.sparsity == 0.9:
            assert (cell.id == plain[cell.method]) == (cell.method != "teacher-guided")


def test_several_processes_fill_one_folder(tmp_path: Path) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text(SMALL.replace("epochs: 2", "epochs: 1"))
    out = tmp_path / "out"
    command = ["bench", "accuracy", "--suite", str(path), "--out", str(out), "--device", "cpu"]
    assert main([*command, "--jobs", "2", "--methods", "magnitude,teacher-guided"]) == 0
    assert len(list((out / "cells").glob("*.json"))) == 4


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_cell_that_fails_does_not_keep_the_others_from_being_run(
    jobs: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "suite.yaml"
    diverges = "methods:\n  diverges: {criterion: magnitude, lr: 1.0e+30, sparsities: [0.9]}"
    path.write_text(SMALL.replace("epochs: 2", "epochs: 1").replace("methods:", diverges))
    out = tmp_path / "out"
    command = ["bench", "accuracy", "--suite", str(path), "--out", str(out), "--device", "cpu"]
    assert main([*command, "--jobs", str(jobs), "--methods", "diverges,magnitude"]) == 1
    shown = capsys.readouterr()
    assert "2 of 6 cells; report" in shown.out
    assert len(list((out / "cells").glob("*.json"))) == 2
    if jobs == 1:  # else the processes say it
        assert re.search(r"failed: diverges at 0\.9, seed 0: .*\n", shown.err)
        assert re.search(r"1 of 3 cells failed, the first of them diverges at 0\.9, seed 0: ", shown.err)
    else:
        assert "1 of 2 processes failed" in shown.err


def test_a_method_may_calibrate_on_all_training_images(finished: tuple[Suite, SuiteFolder]) -> None:
    suite, folder = finished
    networks = Networks.prepare(suite, 0, folder.networks(suite, 0), "cpu", Watcher())
    train = networks.data.train
    assert isinstance(train, ImageLoader)
    batches = calibration_of(networks.data, Method(calibrate_on="train"))
    images = torch.cat([x for x, _ in batches])
    assert len(images) == train.n_samples > 128  # what the suite calibrates on
    assert torch.equal(images, torch.cat([x for x, _ in replace(train, augmentation=None, shuffle=False)]))
    few = list(calibration_of(networks.data, Method(calibrate_on="train", calibration_batches=1)))
    assert torch.equal(few[0][0], images[: train.batch_size])
    plain = list(calibration_of(networks.data, Method()))
    assert sum(len(x) for x, _ in plain) == 128
    with pytest.raises(DataError, match="calibrate_on: train"):
        calibration_of(replace(networks.data, train=[]), Method(calibrate_on="train"))
