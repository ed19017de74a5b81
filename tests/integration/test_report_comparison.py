"""Reports on more than one cut: comparisons of runs, and sweeps."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from integration.report_helpers import PAGES, Reader, drawn, load, variants
from secateur.cli import main
from secateur.errors import RunError
from secateur.report import render_comparison, render_sweep


@pytest.fixture
def result() -> Any:
    return load("teacher-guided")


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return {name: PAGES[name]() for name in ("comparison", "mixed", "sweep")}


@pytest.mark.parametrize(("name", "kind"), [("sweep", "a sweep"), ("suite", "a suite")])
def test_runs_are_compared_with_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, kind: str
) -> None:
    for folder, content in (("first", "result"), ("x3", name)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{content}.json").write_text(json.dumps({"format": f"secateur-{content}"}))
    assert main(["report", str(tmp_path / "first"), str(tmp_path / "x3")]) == 1
    said = capsys.readouterr().err
    assert f"x3' holds {kind}, and runs are compared with runs" in said
    assert f"secateur report {tmp_path / 'x3'}" in said


class TestComparison:
    def test_draws_curves_by_criterion(self, pages: dict[str, str]) -> None:
        assert drawn(pages["comparison"]) == {
            *("cut", "batchnorm", "recovered", "recovered-kd"),
            *("file-size", "cost-score", "cost-recovery"),
        }
        text = Reader(pages["comparison"]).text
        assert "8 runs · 2 ways of choosing weights · 80.0 to 98.0 % zeros" in text
        assert "teacher-guided (alpha 0.5)" in text
        assert "At 98.0 % zeros teacher-guided (alpha 0.5) is ahead: 94.1 %" in text

    def test_seeds_are_averaged(self, result: Any) -> None:
        runs = variants(result)[4:6] * 3
        runs = [copy.deepcopy(run) for run in runs]
        for seed, run in enumerate(runs):
            run.update(seed=seed, run_id=str(seed))
            run["accuracy"]["recovered_kd"] = 0.90 + 0.01 * (seed // 2)
        text = Reader(render_comparison(runs)).text
        assert "6 runs · 1 way of choosing weights" in text
        assert "91.0 ± 1.0" in text
        assert "Warning" not in text

    def test_one_sparsity_gives_bars(self, result: Any) -> None:
        html = render_comparison(variants(result)[::4])
        assert "Longer is better" in html
        assert "A curve that stays up" not in html

    def test_a_lead_within_noise_is_not_a_lead(self, result: Any) -> None:
        runs = variants(result)[::4]
        runs[0]["accuracy"]["recovered_kd"] = runs[1]["accuracy"]["recovered_kd"] - 0.003
        assert "within what 360 test samples can tell" in render_comparison(runs)

    def test_runs_that_do_not_compare_are_flagged_and_have_no_winner(self, pages: dict[str, str]) -> None:
        text = Reader(pages["mixed"]).text
        assert "Not the same data" in text
        assert "Not the same student" in text
        assert "10 and 40 epochs" in text
        assert "is ahead" not in text

    def test_only_what_all_were_run_to_decides(self) -> None:
        full, cut = load("teacher-guided"), load("magnitude")
        text = Reader(render_comparison([full, cut])).text
        assert (
            "After the cut: At 90.0 % zeros magnitude is ahead: 40.0 %, then teacher-guided with 31.4 %"
            in text
        )
        assert "teacher-guided holds 98.6 % at 90.0 % zeros; no other way was run to this stage." in text

    def test_no_common_sparsity_or_stage_means_no_winner(self, result: Any) -> None:
        first, *_, last = variants(result)
        assert "no winner" in render_comparison([first, last])
        first["accuracy"] = dict.fromkeys(first["accuracy"])
        assert "No stage was measured for every way" in render_comparison([first, last])

    def test_a_run_given_twice_is_flagged(self, result: Any) -> None:
        assert "A run was given twice" in render_comparison([result, result])

    def test_no_run_and_a_bad_run_are_refused(self, result: Any) -> None:
        with pytest.raises(RunError, match="at least one"):
            render_comparison([])
        with pytest.raises(RunError, match=r"result 2 of 2: key 'format'"):
            render_comparison([result, {}])


class TestSweep:
    def test_draws_a_heat_map_and_curves_for_each_stage(self, pages: dict[str, str]) -> None:
        assert drawn(pages["sweep"]) == {"heat-cut", "heat-batchnorm", "alpha-cut", "alpha-batchnorm"}
        text = Reader(pages["sweep"]).text
        assert "55 cuts from one scoring pass" in text
        assert "Choosing alpha here flatters the result" in text

    def test_tells_where_alpha_matters_most(self, pages: dict[str, str]) -> None:
        rows = [row for row in load("sweep")["rows"] if row["sparsity"] == 0.95]
        best, worst = (pick(rows, key=lambda row: row["batchnorm"]) for pick in (max, min))
        text = Reader(pages["sweep"]).text
        high, low = (f"{100 * row['batchnorm']:.1f} % with alpha {row['alpha']:g}" for row in (best, worst))
        assert f"Alpha matters most at 95.0 % zeros: {high}, {low}." in text

    def test_calls_its_accuracies_what_they_are(self, pages: dict[str, str]) -> None:
        text = Reader(pages["sweep"]).text
        assert "Validation accuracy of every cut" in text
        assert "test accuracy" not in text.replace("quote the test accuracy", "").lower()

    @pytest.mark.parametrize(
        ("step", "told"), [(0.0, "makes no difference"), (0.005, "cannot tell so little apart")]
    )
    def test_makes_nothing_of_equal_cuts(self, step: float, told: str) -> None:
        sweep = load("sweep")
        for index, row in enumerate(sweep["rows"]):
            row["cut"] = row["batchnorm"] = 0.8 + step * (index % 2)
        assert told in render_sweep(sweep)

    def test_without_alpha_there_are_curves_over_sparsity(self) -> None:
        sweep = load("sweep")
        sweep["rows"] = [{**row, "alpha": None} for row in sweep["rows"] if row["alpha"] == 0.5]
        html = render_sweep(sweep)
        assert drawn(html) == {"sparsity-cut", "sparsity-batchnorm"}
        assert "flatters" not in html

    def test_gaps_and_stages_that_were_not_run(self) -> None:
        sweep = load("sweep")
        sweep["rows"] = [{**row, "batchnorm": None} for row in sweep["rows"][:-1]]
        sweep.update(dense_accuracy=None)
        sweep["seconds"]["total"] = None
        html = render_sweep(sweep)
        assert drawn(html) == {"heat-cut", "alpha-cut"}
        assert 'id="fig-heat-batchnorm"' in html

    @pytest.mark.parametrize("key", ["rows", "dense_accuracy", "criterion", "data", "models", "hardware"])
    def test_a_missing_key_is_named(self, key: str) -> None:
        sweep = load("sweep")
        del sweep[key]
        with pytest.raises(RunError, match=key):
            render_sweep(sweep)

    def test_no_rows_and_a_broken_row_are_refused(self) -> None:
        sweep = load("sweep")
        del sweep["rows"][3]["cut"]
        with pytest.raises(RunError, match=r"rows\[3\].cut"):
            render_sweep(sweep)
        with pytest.raises(RunError, match="'rows'"):
            render_sweep({**sweep, "rows": []})

    def test_a_number_of_samples_that_is_none_is_refused(self) -> None:
        sweep = load("sweep")
        sweep["data"]["n_val"] = "many"
        with pytest.raises(RunError, match=r"'data\.n_val' must be int or null, got 'many'"):
            render_sweep(sweep)
