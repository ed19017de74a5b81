"""`prune` and suites with recovery on calibration inputs: no labels, no training set, all written down."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

import secateur as sc
from secateur.arena import SuiteFolder, load_suite, run_suite
from secateur.arena.cell import build_method
from secateur.arena.suite import Method
from secateur.data import Data
from secateur.progress import Watcher
from secateur.strategies import OneShot

N_CLASSES = 3
STEPS = sc.CalibrationRecovery(steps=4, final_steps=6, batch_size=16, lr=0.003, precision="fp32")


def images(n_batches: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    batches: list[tuple[Tensor, Tensor]] = []
    for _ in range(n_batches):
        labels = torch.randint(N_CLASSES, (32,), generator=generator)
        pixels = torch.randn(32, 1, 8, 8, generator=generator) + labels[:, None, None, None]
        batches.append((pixels, labels))
    return batches


@pytest.fixture
def data() -> Data:
    """Calibration inputs without labels, and nothing to train on."""
    return Data(
        name="bare",
        n_classes=N_CLASSES,
        input_shape=(1, 8, 8),
        train=[],
        val=[],
        test=images(2, 3),
        calibration=[x for x, _ in images(3, 4)],
    )


def network(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return sc.build_model("small-cnn", num_classes=N_CLASSES, in_channels=1)


def same(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


class Lines(Watcher):
    """Keeps what is said, and counts the steps of each bar."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_it_is_the_same_cut_as_by_hand_by_either_teacher(data: Data, who: Any) -> None:
    student, by_hand, teacher = network(0), network(0), network(1)
    result = sc.prune(
        student,
        data=data,
        sparsity=0.6,
        teacher=teacher,
        criterion=sc.Magnitude(),
        stages=3,
        calibration_recovery=STEPS,
        calibration_teacher=who,
        batchnorm="off",
    )
    masks = sc.cut(
        by_hand,
        data.calibration,
        sc.Magnitude(),
        sparsity=0.6,
        stages=3,
        recovery=STEPS,
        teacher=teacher if who == "teacher" else network(0),
    )
    assert result.masks == masks
    assert same(student, by_hand)
    assert result.about["calibration_recovery"]["teacher"] == who


def test_what_each_stage_did_is_written_down_and_said(data: Data) -> None:
    student, stages, watcher = network(0), [], Lines()
    criterion = sc.TeacherCurvature(network(0), damping=10.0)
    how: dict[str, Any] = {"sparsity": 0.6, "stages": 3}
    expected = copy.deepcopy(student)
    sc.cut(
        expected,
        data.calibration,
        criterion,
        recovery=STEPS,
        teacher=network(0),
        on_stage=stages.append,
        **how,
    )
    result = sc.prune(
        student,
        data=data,
        criterion=criterion,
        calibration_recovery=STEPS,
        batchnorm="plain",
        watcher=watcher,
        **how,
    )
    content = json.loads(json.dumps(result.to_json(), allow_nan=False))
    rows = content["stages"]["rows"]
    assert [row["n_steps"] for row in rows] == [4, 4, 6]
    for row, stage in zip(rows, stages, strict=True):
        assert tuple(row["loss"].values()) == pytest.approx(stage.loss)
        assert list(row["loss"]) == ["before", "cut", "recovered"]
        assert row["predicted"] == pytest.approx(stage.predicted)
        assert row["recovery_s"] > 0
    assert content["seconds"]["calibration"] == pytest.approx(sum(row["recovery_s"] for row in rows))
    assert content["calibration_recovery"]["final_steps"] == 6
    assert content["diagnostics"]["split_half"] is None
    told = [line for line in watcher.said if line.startswith("  stage ")]
    assert len(told) == 3
    assert told[2].startswith("  stage 3 of 3, 60.00% removed: loss ")
    assert f"{rows[2]['predicted']:+.3g} predicted" in told[2]
    assert told[2].endswith(f"{rows[2]['loss']['recovered']:.3g} after 6 steps")


def test_a_run_without_it_says_so(data: Data) -> None:
    result = sc.prune(network(0), data=data, sparsity=0.5, criterion=sc.Magnitude(), batchnorm="off")
    content = result.to_json()
    assert content["calibration_recovery"] is None
    assert content["seconds"]["calibration"] is None
    assert content["stages"]["rows"][0]["loss"] is None
    assert content["stages"]["rows"][0]["n_steps"] == 0


def test_bars_count_stages_and_steps(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import contextmanager

    counted: dict[str, list[int]] = {}

    @contextmanager
    def stage(self: Watcher, name: str, total: int | None = None) -> Any:
        counted[name] = [0, total or 0]

        def step() -> None:
            counted[name][0] += 1

        yield step

    monkeypatch.setattr(Watcher, "stage", stage)
    how: dict[str, Any] = {"sparsity": 0.5, "stages": 3, "batchnorm": "off"}
    sc.prune(network(0), data=data, criterion=sc.Magnitude(), calibration_recovery=STEPS, **how)
    assert counted["cut"] == [3 + 4 + 4 + 6] * 2


def test_a_run_that_is_stopped_leaves_the_student_as_it_was(data: Data) -> None:
    class Stopped(Lines):
        def say(self, text: str) -> None:
            if text.startswith("  stage 2"):
                raise KeyboardInterrupt

    student = network(0)
    before = copy.deepcopy(student)
    with pytest.raises(KeyboardInterrupt):
        sc.prune(
            student,
            data=data,
            sparsity=0.5,
            criterion=sc.Magnitude(),
            stages=3,
            calibration_recovery=STEPS,
            batchnorm="off",
            watcher=Stopped(),
        )
    assert same(student, before)


def test_by_default_batchnorm_keeps_what_the_cut_ends_with_or_takes_what_there_is(data: Data) -> None:
    def run(**options: Any) -> float | None:
        how: dict[str, Any] = {"sparsity": 0.5, "criterion": sc.Magnitude(), **options}
        return sc.prune(network(0), data=data, **how).accuracy["batchnorm"]

    assert run(calibration_recovery=STEPS) is None
    assert run(calibration_recovery=STEPS, batchnorm="plain") is not None
    assert run() == run(batchnorm="plain")  # these data have no training batches
    staged = sc.prune(
        network(0),
        data=data,
        criterion=sc.Magnitude(),
        sparsity=0.5,
        stages=2,
        calibration_recovery=STEPS,
    )
    assert staged.accuracy["batchnorm"] is None
    assert staged.stages["one_cut"]["batchnorm"] is not None  # one cut without steps needs it


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batchnorm": "augmented"}, "'plain', which takes the calibration inputs"),
        ({"stages": 2, "regrow": True}, "regrow does not go with"),
        ({"calibration_teacher": "teacher"}, "calibration_teacher='teacher' needs"),
        ({"calibration_teacher": "me"}, "must be student or teacher, got 'me'"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(data: Data, options: Any, says: str) -> None:
    student = network(0)
    before = copy.deepcopy(student)
    with pytest.raises(sc.InvalidArgument, match=says):
        sc.prune(
            student,
            data=data,
            sparsity=0.5,
            criterion=sc.Magnitude(),
            calibration_recovery=STEPS,
            **options,
        )
    assert same(student, before)


def method(**recovery: object) -> Method:
    return Method(criterion="magnitude", strategy_options={"stages": 2, "recovery": recovery})


def test_a_suite_gives_the_recipe_as_a_mapping() -> None:
    made = build_method(method(steps=5, lr=1, augment="mix"), network(1), 0)
    assert isinstance(made, OneShot)
    assert made.recovery == sc.CalibrationRecovery(steps=5, lr=1.0, augment="mix")
    plain = build_method(method(), network(1), 0)
    assert isinstance(plain, OneShot)
    assert plain.recovery == sc.CalibrationRecovery()


@pytest.mark.parametrize(
    ("recovery", "says"),
    [
        (
            {"stps": 5},
            "option 'recovery' of strategy 'one-shot': unknown option 'stps'; .*Did you mean 'steps'",
        ),
        (
            {"steps": "many"},
            "option 'recovery' of strategy 'one-shot': steps must be of type int, got 'many'",
        ),
        ({"steps": -1}, "option 'recovery' of strategy 'one-shot': steps must be at least 0, got -1"),
        ({"augment": "flip"}, "augment must be one of 'none', 'flip-shift', 'mix', got 'flip'"),
    ],
)
def test_a_recipe_that_is_wrong_is_refused_before_anything_runs(
    recovery: dict[str, object], says: str, tmp_path: Path
) -> None:
    with pytest.raises(sc.InvalidArgument, match=says):
        build_method(method(**recovery), network(1), 0)
    text = {"methods": {"mine": {"criterion": "magnitude", "strategy_options": {"recovery": recovery}}}}
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(text))
    suite = load_suite(str(tmp_path / "suite.yaml"))
    folder = SuiteFolder.open(tmp_path / "out", suite)
    with pytest.raises(sc.InvalidArgument, match=says):
        run_suite(suite, folder, device="cpu", watcher=Watcher())
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_a_cell_describes_its_recipe_and_is_cut_by_it(tmp_path: Path) -> None:
    text = {
        "dataset": {"data": "digits", "n_calibration": 128},
        "student": "small-cnn",
        "teacher": "small-cnn",
        "pretrain": {"epochs": 1, "kd_weight": 0.0},
        "recovery": None,
        "sparsities": [0.8],
        "seeds": [0],
        "methods": {
            "magnitude": {"criterion": "magnitude", "strategy_options": {"stages": 2}},
            "taught": {
                "criterion": "magnitude",
                "strategy_options": {
                    "stages": 2,
                    "recovery": {"steps": 8, "final_steps": 9, "augment": "mix"},
                },
            },
        },
    }
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(text))
    suite = load_suite(str(tmp_path / "suite.yaml"))
    folder = SuiteFolder.open(tmp_path / "out", suite)
    assert run_suite(suite, folder, device="cpu", watcher=Watcher()) == 2
    cells = {
        p["method"]: p for p in map(json.loads, map(Path.read_text, (tmp_path / "out").glob("cells/*.json")))
    }
    assert cells["magnitude"]["about"]["strategy"]["recovery"] is None
    described = cells["taught"]["about"]["strategy"]["recovery"]
    assert (described["steps"], described["augment"], described["lr"]) == (8, "mix", 0.01)
    assert cells["taught"]["accuracy"]["cut"] != cells["magnitude"]["accuracy"]["cut"]
