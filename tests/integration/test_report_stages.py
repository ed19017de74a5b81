"""The report of a cut in stages: what it says, and what it refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from integration.report_helpers import Reader, drawn, load
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
