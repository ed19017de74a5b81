"""The report of a cut in stages: what it says, and what it refuses."""

from __future__ import annotations

import copy
import re
from dataclasses import asdict
from typing import Any

import pytest
import torch

import secateur as sc
from integration.report_helpers import Reader, drawn, load
from secateur.calibration import CalibrationRecovery
from secateur.data import Data
from secateur.errors import RunError
from secateur.report import render_comparison, render_run


def staged(**changes: Any) -> Any:
    """A golden run as if it had been cut in three stages."""
    run = load("teacher-guided")
    rows = [
        {"sparsity": s, "n_prune": int(s * run["n_prunable"]), "n_returned": n}
        for s, n in ((0.5, 0), (0.7, 1234), (0.8, 56))
    ]
    one_cut = {"cut": 0.25, "batchnorm": 0.5, "mask_overlap": 0.75}
    run["stages"] = {"n": 3, "regrow": True, "rows": rows, "one_cut": one_cut, **changes}
    run["accuracy"] |= {"cut": 0.3, "batchnorm": 0.625}
    return run


def test_what_the_stages_bought_is_drawn_and_said() -> None:
    html = render_run(staged())
    assert "stages" in drawn(html)
    text = Reader(html).text
    assert "3 stages gave 12.5 points more accuracy than one cut" in text
    assert "share 75 % of the weights that either keeps" in text
    assert "a removed weight could return" in text
    assert "stages of the cut 3, removed weights may return" in text
    assert "2 70.00 %" in text
    assert "1,234" in text


def test_without_batchnorm_the_cut_itself_is_compared() -> None:
    run = staged(regrow=False, one_cut={"cut": 0.375, "batchnorm": None, "mask_overlap": 0.5})
    run["accuracy"] |= {"cut": 0.25, "batchnorm": None}
    text = Reader(render_run(run)).text
    assert "3 stages gave 12.5 points less accuracy than one cut" in text
    assert "no removed weight could return" in text
    run["accuracy"]["cut"] = 0.375
    assert "3 stages gave the accuracy of one cut" in Reader(render_run(run)).text


def test_stages_that_trained_are_held_against_one_cut_with_batchnorm_re_estimated() -> None:
    run = staged()
    run["accuracy"] |= {"cut": 0.625, "batchnorm": None}
    assert "3 stages gave 12.5 points more accuracy than one cut" in Reader(render_run(run)).text


def test_one_cut_and_older_results_have_no_such_figure() -> None:
    for run in (load("teacher-guided"), staged(n=1, one_cut=None)):
        assert "stages" not in drawn(render_run(run))


def test_runs_that_differ_in_stages_are_told_apart() -> None:
    older, one, three = load("teacher-guided"), staged(n=1, regrow=False, one_cut=None), staged()
    for place, run in enumerate((older, one, three)):
        run["run_id"] = str(place)
    text = Reader(render_comparison([older, one, three])).text
    assert "teacher-guided (stages 1, regrow no)" in text
    assert "teacher-guided (stages 3, regrow yes)" in text
    assert "stages" not in Reader(render_comparison([older, one])).text


def taught(*, predicted: bool = True, n_steps: int = 20, **recipe: Any) -> Any:
    """The same with distillation on the calibration inputs after each stage."""
    run = staged(regrow=False)
    losses = ((0.0, 0.5, 0.125), (0.125, 1.0, 0.25), (0.25, 2.0, 0.5))
    for row, (before, cut, recovered) in zip(run["stages"]["rows"], losses, strict=True):
        row["loss"] = {"before": before, "cut": cut, "recovered": recovered if n_steps else cut}
        row |= {"predicted": 0.25 if predicted else None, "n_steps": n_steps, "recovery_s": 1.5}
    if n_steps:
        options = {**asdict(CalibrationRecovery()), "steps": n_steps, "final_steps": None}
        run["calibration_recovery"] = {**options, "teacher": "student", **recipe}
    return run


def test_predicted_and_measured_losses_and_the_budget_are_drawn_and_said() -> None:
    html = render_run(taught())
    assert "stage-losses" in drawn(html)
    text = Reader(html).text
    assert "60 distillation steps in 4.5 s, without labels" in text
    assert "the loss is 2 after the last cut and 0.5 after the steps" in text
    assert "expected its cuts to change the loss by +0.75 in all, and they changed it by +3.1" in text
    assert "2 +0.25 +0.88 1 20 in 1.5 s 0.25" in text
    assert "predicted for the cut" in text
    assert "3 stages with 60 distillation steps gave 12.5 points more" in text
    assert "Calibration recovery steps 20" in text
    assert "The cut with its distillation steps leaves 30.0 %" in text


def test_a_cut_without_prediction_or_without_steps_says_what_there_is() -> None:
    text = Reader(render_run(taught(predicted=False))).text
    assert "60 distillation steps" in text
    assert "expected" not in text
    assert "predicted for the cut" not in text
    assert "2 – +0.88 1 20 in 1.5 s 0.25" in text
    text = Reader(render_run(taught(n_steps=0))).text
    assert "distillation steps" not in text
    assert "after its steps" not in text
    assert "2 +0.25 +0.88 1 – –" in text


def test_the_axis_of_scores_names_each_power_of_ten_once() -> None:
    run = load("teacher-guided")
    found = run["diagnostics"]["score_histogram"]
    n_bins = len(found["counts"])
    found["log10_edges"] = [-1.45 + 1.3 * place / n_bins for place in range(n_bins + 1)]
    found["log10_threshold"] = -1.2
    powers = re.findall("10[⁻⁰¹²³⁴]+", Reader(render_run(run)).text)
    assert powers
    assert len(powers) == len(set(powers))


def test_a_loss_that_was_not_finite_leaves_a_gap() -> None:
    run = taught()
    run["stages"]["rows"][1]["loss"]["cut"] = None
    run["stages"]["rows"][2]["predicted"] = None
    text = Reader(render_run(run)).text
    assert "60 distillation steps" in text
    assert "expected" not in text
    assert "2 +0.25 – – 20 in 1.5 s 0.25" in text


def test_without_measured_losses_there_is_no_such_figure() -> None:
    run = staged()
    for row in run["stages"]["rows"]:
        row |= {"predicted": None, "loss": None, "n_steps": 0, "recovery_s": 0.0}
    for other in (run, staged(), load("teacher-guided")):
        assert "stage-losses" not in drawn(render_run(other))


def test_without_a_training_set_the_report_does_not_speak_of_a_fresh_cut() -> None:
    run = taught()
    for name in ("recovered", "recovered_kd"):
        run["accuracy"][name] = None
    assert "No training set was used after the cut" in Reader(render_run(run)).text
    run["calibration_recovery"] = None
    assert "This run stopped after the cut" in Reader(render_run(run)).text


def test_a_student_that_teaches_itself_is_no_weak_teacher() -> None:
    run = load("teacher-guided")
    run["accuracy"]["teacher"] = run["accuracy"]["dense"]
    weak = "The teacher is no better than the student"
    assert weak in Reader(render_run(run)).text
    run["models"]["teacher"]["name"] = "student"
    assert weak not in Reader(render_run(run)).text


def test_runs_that_differ_in_their_steps_are_told_apart() -> None:
    runs = [staged(regrow=False), taught(), taught(augment="mix", teacher="teacher")]
    for place, run in enumerate(runs):
        run["run_id"] = str(place)
    text = Reader(render_comparison(runs)).text
    assert "teacher-guided (calibration none)" in text
    assert "teacher-guided (calibration 20 steps)" in text
    assert "teacher-guided (calibration 20 steps augment mix teacher teacher)" in text


APART = "one score a weight, not the terms of task and teacher apart."


def pruned(*, alpha: float = 0.5, form: Any = "separate", labels: bool = True, **options: Any) -> str:
    """The report of a real cut, guided by a teacher, as text."""
    pixels = torch.randn(48, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    batches = [(x, torch.arange(24) % 3) for x in pixels.split(24)]
    calibration = batches if labels else [x for x, _ in batches]
    data = Data("bare", 3, (1, 8, 8), train=[], val=[], test=batches, calibration=calibration)
    student, teacher = (
        sc.build_model(name, num_classes=3, in_channels=1) for name in ("small-cnn", "wide-cnn")
    )
    criterion = sc.TeacherGuided(teacher, alpha=alpha, form=form)
    result = sc.prune(
        student, teacher=teacher, criterion=criterion, data=data, sparsity=0.8, stages=2, **options
    )
    content = {"format": "secateur-result", "run_id": "x", **result.to_json()}
    return Reader(render_run(content)).text.split("Do task and teacher agree?")[1]


STEPS = CalibrationRecovery(steps=1, final_steps=1)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"calibration_recovery": STEPS}, f"because a cut with calibration steps keeps {APART}"),
        ({"form": "joint"}, f"because the joint form gives {APART}"),
        ({"alpha": 0.0, "labels": False}, "because the calibration data have no labels, so there is no"),
        ({"regrow": True}, "The rank correlation is"),
        ({"alpha": 0.0}, "The rank correlation is"),
    ],
)
def test_why_task_and_teacher_are_not_compared(options: dict[str, Any], says: str) -> None:
    assert says in pruned(**options)[:200]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"criterion": {"name": "magnitude"}}, "this criterion has no task term beside a teacher term."),
        ({"criterion": {"name": "mine:Own"}}, f"a cut with calibration steps keeps {APART}"),
        (
            {"criterion": {"name": "mine:Own"}, "calibration_recovery": None},
            f"a cut that moves the kept weights keeps {APART}",
        ),
        (
            {"criterion": {"name": "mine:Own"}, "calibration_recovery": None, "stages": staged()["stages"]},
            "this criterion has no task term beside a teacher term.",
        ),
        (
            {
                "n_prune": 56_224,
                "n_prunable": 56_224,
                "calibration_recovery": None,
                "stages": staged()["stages"],
            },
            "no weight stays, so there are no masks to compare.",
        ),
    ],
)
def test_why_there_is_no_agreement_in_rarer_cases(change: dict[str, Any], says: str) -> None:
    run = taught() | change
    run["diagnostics"]["agreement"] = None
    assert f"Do task and teacher agree?: not shown, because {says}" in Reader(render_run(run)).text


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("n_steps", 1.5, r"'stages\.rows\[2\]\.n_steps' must be int"),
        ("predicted", "much", r"'stages\.rows\[2\]\.predicted' must be int or float or null"),
        ("loss", {"before": 0.0, "cut": 1.0}, r"'stages\.rows\[2\]\.loss\.recovered' is missing"),
        ("loss", {"before": 0.0, "cut": 1.0, "recovered": "low"}, r"loss\.recovered' must be int or float"),
        ("loss", 0.5, r"'stages\.rows\[2\]\.loss' must be"),
    ],
)
def test_damaged_losses_are_refused_by_name(key: str, value: object, says: str) -> None:
    run = taught()
    run["stages"]["rows"][2][key] = value
    with pytest.raises(RunError, match=says):
        render_run(run)


def test_losses_without_their_steps_are_refused() -> None:
    run = taught()
    del run["stages"]["rows"][0]["n_steps"]
    with pytest.raises(RunError, match=r"'stages\.rows\[0\]\.n_steps' is missing"):
        render_run(run)


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("n",), "three", r"'stages\.n' must be int"),
        (("rows", 1, "n_returned"), None, r"'stages\.rows\[1\]\.n_returned' must be int"),
        (("rows", 0, "sparsity"), 50.0, r"'stages\.rows\[0\]\.sparsity' must be a fraction"),
        (("one_cut", "cut"), 1.5, r"'stages\.one_cut\.cut' must be a fraction"),
    ],
)
def test_damaged_stages_are_refused_by_name(path: tuple[Any, ...], value: object, says: str) -> None:
    run = copy.deepcopy(staged())
    place = run["stages"]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(RunError, match=says):
        render_run(run)
