"""Numbers of a suite against values worked out by hand; files that hold no suite; tables for documents."""

from __future__ import annotations

import importlib.util
import json
import random
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from integration.suite_helpers import METHODS, make_suite
from secateur.errors import RunError
from secateur.report import render_suite, suite_table
from secateur.report.arena.axes import spread_out
from secateur.report.arena.cost import cost, frontier
from secateur.report.arena.curves import draw_curve
from secateur.report.arena.differences import Differences, forest
from secateur.report.arena.grid import Grid, Method
from secateur.report.arena.masks import density_panel, overlap_panel
from secateur.report.arena.schema import read_suite
from secateur.report.arena.square import effect
from secateur.report.arena.tables import accuracy_table, difference_table
from secateur.report.arena.words import verdict
from secateur.report.canvas import BLUE, MUTED, ORANGE
from secateur.statistics import Estimate

ROOT = Path(__file__).parents[2]
PLAIN = {
    key: METHODS[key]
    for key in ("magnitude", "lamp", "snip", "imp", "shuffled", "inverted", "teacher-guided")
}


def small() -> Any:
    return make_suite(PLAIN, (0.5, 0.9, 0.98))


def put(content: Any, method: str, sparsity: float, accuracies: dict[int, float | None]) -> None:
    """Set the recovered accuracy of the cells of a method by seed."""
    for cell in content["cells"]:
        if cell["method"] == method and cell["sparsity"]["asked"] == sparsity:
            cell["accuracy"]["recovered"] = accuracies[cell["seed"]]


def by_hand() -> Grid:
    """Three methods whose accuracies at 90 % zeros are known."""
    content = make_suite({key: METHODS[key] for key in ("magnitude", "lamp", "snip", "imp")}, (0.5, 0.9))
    put(content, "magnitude", 0.9, {0: 0.90, 1: 0.91, 2: 0.92})
    put(content, "lamp", 0.9, {0: 0.91, 1: 0.92, 2: 0.94})
    put(content, "snip", 0.9, {0: 0.910, 1: 0.921, 2: 0.932})
    put(content, "imp", 0.9, {0: 0.89, 1: 0.90, 2: 0.91})
    return Grid(read_suite(content))


def rows_of(table: Any) -> dict[str, tuple[str, ...]]:
    return {row[0]: tuple(cell.replace("\u00a0", " ") for cell in row[1:]) for row in table.rows}


class TestTables:
    def test_mean_and_deviation_by_hand(self) -> None:
        """0.90, 0.91, 0.92: mean 91, deviation 1; 0.910, 0.921, 0.932: mean 92.1, deviation 1.1."""
        grid = by_hand()
        table = accuracy_table(grid, "recovered", grid.competitors)
        rows = rows_of(table)
        assert rows["magnitude"][1] == "91.00 ± 1.00"
        assert rows["SNIP"][1] == "92.10 ± 1.10 ▲"
        assert rows["LAMP"][1] == "92.33 ± 1.53"
        marked = {table.rows[y][0]: mark for (y, x), mark in table.marks.items() if x == 2}
        assert marked == {"LAMP": "best", "SNIP": "above"}

    def test_an_ablation_with_the_highest_mean_is_not_the_best(self) -> None:
        accuracies = {"magnitude": 0.8, "lamp": 0.81, "task-gradient-no-kd": 0.9}
        content = make_suite({key: METHODS[key] for key in accuracies}, (0.9,))
        for key, accuracy in accuracies.items():
            put(content, key, 0.9, dict.fromkeys(range(3), accuracy))
        grid = Grid(read_suite(content))
        table = accuracy_table(grid, "recovered", grid.methods)
        assert "highest mean of all that compete, which ablations and controls do not" in table.caption
        assert [table.rows[y][0] for (y, _), mark in table.marks.items() if mark == "best"] == ["LAMP"]

    def test_paired_differences_by_hand(self) -> None:
        """LAMP: 1, 1, 2 points: mean 1.3333, deviation 0.57735, half width 4.302653·0.57735/√3 = 1.4342.

        SNIP: 1.0, 1.1, 1.2 points: half width 4.302653·0.1/√3 = 0.2484. IMP: −1 point for every seed.
        """
        grid = by_hand()
        rows = rows_of(difference_table(grid, grid.competitors))
        assert rows["LAMP"][1] == "+1.33 [−0.10, +2.77]"
        assert rows["SNIP"][1] == "+1.10 [+0.85, +1.35] ▲"
        assert rows["IMP, LR rewinding"][1] == "−1.00 (no spread)"
        assert "magnitude" not in rows

    def test_the_tally_is_of_above_level_and_below(self) -> None:
        content = make_suite({key: METHODS[key] for key in ("magnitude", "lamp")}, (0.5, 0.8, 0.9))
        for sparsity, gain in ((0.5, 0.01), (0.8, 0.02), (0.9, -0.01)):
            put(content, "magnitude", sparsity, dict.fromkeys(range(3), 0.8))
            put(content, "lamp", sparsity, {seed: 0.8 + gain + 0.001 * seed for seed in range(3)})
        grid = Grid(read_suite(content))
        table = difference_table(grid, grid.competitors)
        assert table.head[-1] == "▲ / · / ▼"
        assert rows_of(table)["LAMP"][-1] == "2 / 0 / 1"

    def test_a_difference_over_all_sparsities_counts_a_seed_once(self) -> None:
        content = make_suite({key: METHODS[key] for key in ("magnitude", "lamp")}, (0.5, 0.9))
        for sparsity, gains in ((0.5, (0.01, 0.02, 0.03)), (0.9, (0.03, 0.04, 0.02))):
            put(content, "magnitude", sparsity, dict.fromkeys(range(3), 0.8))
            put(content, "lamp", sparsity, {seed: 0.8 + gain for seed, gain in enumerate(gains)})
        found = Grid(read_suite(content)).overall_difference("lamp", "magnitude", "recovered")
        assert found is not None
        assert found.n == 3  # not 6: seeds 2, 3 and 2.5 points
        assert found.mean == pytest.approx(0.025)
        assert found.std == pytest.approx(0.005)
        put(content, "lamp", 0.9, {0: 0.83, 1: None, 2: None})
        found = Grid(read_suite(content)).overall_difference("lamp", "magnitude", "recovered")
        assert found is not None
        assert found.n == 1

    def test_only_pairs_of_one_seed_count(self) -> None:
        content = make_suite({key: METHODS[key] for key in ("magnitude", "lamp")}, (0.9,))
        put(content, "magnitude", 0.9, {0: 0.9, 1: None, 2: None})
        put(content, "lamp", 0.9, {0: None, 1: 0.9, 2: 0.9})
        grid = Grid(read_suite(content))
        assert grid.difference("lamp", "magnitude", "recovered", 0.9) is None
        assert rows_of(difference_table(grid, grid.competitors))["LAMP"][0] == "–"

    def test_distillation_steps_are_training_too(self) -> None:
        content = make_suite({key: METHODS[key] for key in ("magnitude", "lamp")}, (0.9,))
        recipe = {"steps": 100, "final_steps": 600, "batch_size": 90}
        for cell in content["cells"]:
            cell["cost"]["epochs"] = 40.0
            if cell["method"] == "lamp":
                cell["about"]["strategy"].update(stages=10, recovery=recipe)
        grid = Grid(read_suite(content))
        epochs = [cost(grid, grid.method(key), "epochs") for key in ("magnitude", "lamp")]
        # 9 · 100 + 600 steps of 90 images, of 45,000
        assert [found and found.mean for found in epochs] == [40.0, 43.0]

    def test_a_cut_that_trained_is_not_judged_after_batchnorm(self) -> None:
        content = make_suite({key: METHODS[key] for key in ("magnitude", "lamp", "snip")}, (0.9,))
        content["suite"]["recovery"] = None
        changes = {
            "lamp": ("strategy", {"recovery": {"steps": 30}}),
            "snip": ("criterion", {"update_weights": True}),
        }
        for cell in content["cells"]:
            cell["accuracy"] |= {"cut": 0.8, "batchnorm": 0.7, "recovered": None}
            if cell["method"] in changes:
                key, found = changes[cell["method"]]
                cell["about"][key] = {**(cell["about"][key] or {}), **found}
        grid = Grid(read_suite(content))
        assert grid.stages == ("pruned", "cut")
        found = {
            key: set(grid.accuracies(key, grid.final, 0.9).values()) for key in content["suite"]["methods"]
        }
        assert found == {"magnitude": {0.7}, "lamp": {0.8}, "snip": {0.8}}

    def test_fewer_seeds_than_others_are_counted_out(self) -> None:
        content = small()
        put(content, "lamp", 0.9, {0: 0.9, 1: 0.91, 2: None})
        grid = Grid(read_suite(content))
        assert rows_of(accuracy_table(grid, "recovered", grid.competitors))["LAMP"][1].startswith(
            "90.50 ± 0.71 (n = 2)"
        )


def painted(monkeypatch: pytest.MonkeyPatch, module: str) -> Figure:
    """What the next drawing of a module is painted on."""
    figure = Figure()

    def paint_there(key: str, label: str, height: float, paint: Callable[[Figure], None], **_: Any) -> None:
        paint(figure)

    monkeypatch.setattr(f"secateur.report.arena.{module}.draw", paint_there)
    return figure


class TestFigures:
    def test_bars_of_differences_are_their_intervals_in_points(self, monkeypatch: pytest.MonkeyPatch) -> None:
        figure = painted(monkeypatch, "differences")
        found = Estimate(0.011, 0.001, 3, (0.0085, 0.0135))
        forest("x", "x", [Differences(Method("lamp", "LAMP", "baseline"), (found,))], ["90 %"])
        _, bar, mark = figure.axes[0].lines  # after the line at 0
        assert list(bar.get_xdata()) == pytest.approx([0.85, 1.35])
        assert list(mark.get_xdata()) == pytest.approx([1.1])
        assert [*bar.get_ydata(), *mark.get_ydata()] == [0, 0, 0]

    def test_the_band_of_a_curve_is_a_deviation_below_and_above(self) -> None:
        """90 and 99 % zeros stand at 1 and 2; a curve of a single point has a bar."""
        curve = [(0.9, Estimate(0.9, 0.02, 3, None)), (0.99, Estimate(0.8, 0.05, 3, None))]
        band, bar = Figure().add_subplot(), Figure().add_subplot()
        draw_curve(band, curve, BLUE, "o", dashed=False)
        draw_curve(bar, curve[:1], BLUE, "o", dashed=False)
        edges = {(round(x, 6), round(y, 6)) for x, y in band.collections[0].get_paths()[0].vertices}
        assert edges == {(1.0, 0.88), (1.0, 0.92), (2.0, 0.75), (2.0, 0.85)}
        (lines,) = bar.collections
        assert isinstance(lines, LineCollection)
        assert lines.get_segments()[0].tolist() == [pytest.approx([1, 0.88]), pytest.approx([1, 0.92])]

    def test_layers_are_coloured_by_their_ratio_to_the_whole_network(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """At 90 % zeros the network keeps 0.1; twice and half of it are a third of the way to 8 times."""
        figure = painted(monkeypatch, "masks")
        content = make_suite({"magnitude": METHODS["magnitude"]}, (0.9,))
        for cell in content["cells"]:
            cell["layers"] = [{"name": str(d), "n_weights": 10, "density": d} for d in (0.2, 0.1, 0.05)]
        panel = density_panel(Grid(read_suite(content)))
        assert "more than the whole network (10 %)" in panel.how.replace("\u00a0", " ")
        tiles = [tile for tile in figure.axes[0].patches if isinstance(tile, Rectangle)]
        assert [to_hex(tile.get_facecolor()) for tile in tiles] == [BLUE, MUTED, ORANGE]
        fullness = [tile.get_alpha() for tile in tiles]
        assert fullness == pytest.approx([0.04 + 0.8 / 3, 0.04, 0.04 + 0.8 / 3])

    def test_overlaps_and_their_chance_are_means_of_one_sparsity(self) -> None:
        content = make_suite({key: METHODS[key] for key in ("magnitude", "lamp")}, (0.5, 0.9))
        content["overlaps"] = [
            {"sparsity": s, "seed": seed, "a": a, "b": "lamp", "jaccard": j, "expected_random": chance}
            for s, seed, a, j, chance in (
                (0.9, 0, "magnitude", 0.4, 0.05),
                (0.9, 1, "magnitude", 0.7, 0.07),
                (0.9, 0, "lamp", 1.0, 1.0),
                (0.5, 0, "magnitude", 0.9, 0.3),
            )
        ]
        panel = overlap_panel(Grid(read_suite(content)))
        assert panel.finding.replace("\u00a0", " ") == (
            "At 90 % zeros two random masks would share 6.0 %. Most alike are magnitude and LAMP (55.0 %)."
        )


class TestVerdict:
    def test_names_the_leader_and_says_when_it_may_be_chance(self) -> None:
        said = verdict(by_hand()).replace("\u00a0", " ")
        assert said.startswith(
            "At 90 % zeros LAMP has the highest mean: 92.33 ± 1.53 %, 1.3 points above magnitude "
            "(95 % interval −0.1 to +2.8, so the lead may be chance)."
        )
        assert "at 90 % zeros" in said  # SNIP is clearly above

    def test_says_where_magnitude_wins(self) -> None:
        content = make_suite({key: METHODS[key] for key in ("magnitude", "lamp", "snip")}, (0.5, 0.9))
        for sparsity in (0.5, 0.9):
            put(content, "magnitude", sparsity, {0: 0.95, 1: 0.951, 2: 0.949})
        said = verdict(Grid(read_suite(content))).replace("\u00a0", " ")
        assert "At 90 % zeros magnitude has the highest mean: 95.00 ± 0.10 %" in said
        assert "No method is clearly above magnitude at 50 % and 90 % zeros." in said
        assert "magnitude has the highest mean at 50 % and 90 % zeros." in said


def test_effects_of_the_two_by_two_by_hand() -> None:
    """A 80, B 83, C 81, D 86: the teacher brings (1 + 3)/2, KD (3 + 5)/2, and both 2 beyond the sum."""
    keys = ("task-gradient-no-kd", "task-gradient", "teacher-guided-no-kd", "teacher-guided")
    content = make_suite({key: METHODS[key] for key in ("magnitude", *keys)}, (0.9,))
    for key, accuracy in zip(keys, (0.80, 0.83, 0.81, 0.86), strict=True):
        put(content, key, 0.9, {seed: accuracy + 0.01 * seed for seed in range(3)})
    put(content, keys[0], 0.9, {0: 0.80, 1: 0.81, 2: None})
    grid = Grid(read_suite(content))
    for name, expected in (("teacher in the score", 2), ("KD in recovery", 4), ("both, beyond that", 2)):
        found = effect(grid, keys, name, 0.9)
        assert found is not None
        assert found.n == 2
        assert 100 * found.mean == pytest.approx(expected)


def test_the_spotlight_is_where_most_methods_are() -> None:
    content = make_suite({key: METHODS[key] for key in ("magnitude", "lamp", "snip")}, (0.5, 0.8, 0.9))
    assert Grid(read_suite(content)).spotlight == 0.9
    put(content, "snip", 0.9, dict.fromkeys(range(3)))
    assert Grid(read_suite(content)).spotlight == 0.8


class TestMarkdown:
    def test_rows_have_one_width_and_pipes_are_escaped(self) -> None:
        table = suite_table(make_suite())
        rows = [line for line in table.splitlines() if line.startswith("|")]
        widths = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
        assert widths == {8, 10}  # six sparsities, and two more columns in the second table
        assert r"| teacher-guided \|w·g\| | " in table
        assert sum(row.count("**") for row in rows) == 2 * 6  # the best of each column

    def test_says_what_is_measured_and_what_is_missing(self) -> None:
        content = small()
        table = suite_table(content)
        assert (
            "`cifar10-resnet20`, with one recovery for all (40 epochs, KD weight 0.7), 3 seeds, 63 cells."
            in table
        )
        assert "NVIDIA H100, torch 2.13.0, commit f444038efd." in table
        del content["cells"][5:20]
        assert "**48 of 63 cells**, the rest is not run yet" in suite_table(content)

    def test_render_takes_it_from_the_results(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.syspath_prepend(ROOT / "benchmarks")  # where the script finds its parts
        spec = importlib.util.spec_from_file_location("render", ROOT / "benchmarks" / "render.py")
        assert spec is not None
        assert spec.loader is not None
        render = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(render)
        assert {f"arena-{path.stem[6:]}" for path in render.RESULTS.glob("arena_*.json")} <= set(
            render.TABLES
        )
        path = tmp_path / "arena_small.json"
        path.write_text(json.dumps(small()))
        render.TABLES["arena-small"] = lambda: render.arena(path)
        before = "<!-- begin generated: arena-small -->\nold\n<!-- end generated: arena-small -->\n"
        after = render.rendered(before)
        assert suite_table(small()) in after
        assert "`benchmarks/results/arena_small.json`" in after
        assert render.rendered(after) == after


class TestDamage:
    @pytest.mark.parametrize(
        ("change", "named"),
        [
            (lambda c: c.update(format="secateur-cell"), "'format' must be 'secateur-suite'"),
            (lambda c: c.update(version=2), "'version' must be 1, got 2"),
            (lambda c: c.pop("overlaps"), "'overlaps' is missing"),
            (lambda c: c.update(cells=[]), "'cells' of the suite is empty"),
            (lambda c: c.update(n_planned=3), "'n_planned' must be at least the number of cells, 63, got 3"),
            (lambda c: c["suite"].pop("recovery"), "'suite.recovery' is missing"),
            (lambda c: c["suite"]["methods"]["lamp"].pop("label"), "'suite.methods.lamp.label' is missing"),
            (
                lambda c: c["suite"]["methods"]["lamp"].update(family="best"),
                "'suite.methods.lamp.family' must be one of baseline, .*got 'best'",
            ),
            (lambda c: c["suite"]["methods"]["lamp"].update(of="lump"), "must be a method of the suite"),
            (
                lambda c: c["suite"]["methods"]["lamp"].update(expect="up"),
                "one of below, level, above, got 'up'",
            ),
            (lambda c: c["suite"].update(two_by_two=[["lamp", "imp"]]), "two rows of two methods"),
            (lambda c: c["suite"].update(two_by_two=[["lamp", "imp"], ["lamp", "x"]]), "got 'x'"),
            (lambda c: c["cells"][2].update(format="x"), r"'cells\[2\].format' must be 'secateur-cell'"),
            (lambda c: c["cells"][2].update(method="x"), r"'cells\[2\].method' must be a method.*got 'x'"),
            (
                lambda c: c["cells"][2].update(suite="x"),
                r"'cells\[2\].suite' must be cifar10-resnet20, got 'x'",
            ),
            (
                lambda c: c["cells"][2]["accuracy"].update(cut=88.0),
                r"'cells\[2\].accuracy.cut' must be a frac",
            ),
            (lambda c: c["cells"][2]["sparsity"].update(asked=1), r"sparsity.asked' must be below 1, got 1"),
            (lambda c: c["cells"][2]["cost"].pop("epochs"), r"'cells\[2\].cost.epochs' is missing"),
            (lambda c: c["cells"][2]["layers"][1].pop("density"), r"layers\[1\].density' is missing"),
            (
                lambda c: c["cells"].__setitem__(1, dict(c["cells"][0], id="f00")),
                "'f00' are both 'magnitude'",
            ),
            (lambda c: c["overlaps"][5].update(jaccard=2), r"'overlaps\[5\].jaccard' must be a fraction"),
            (lambda c: c["overlaps"][5].update(a="x"), r"'overlaps\[5\].a' must be a method"),
        ],
    )
    def test_is_named(self, change: Callable[[Any], object], named: str) -> None:
        content = small()
        change(content)
        with pytest.raises(RunError, match=named):
            render_suite(content)


def test_labels_keep_their_order_their_distance_and_their_place() -> None:
    assert spread_out([0.1, 0.5, 0.9], [0.1] * 3) == pytest.approx([0.1, 0.5, 0.9])
    assert spread_out([0.5, 0.5], [0.2] * 2) == pytest.approx([0.4, 0.6])
    assert spread_out([0.5, 0.5], [0.1, 0.3]) == pytest.approx([0.4, 0.6])
    assert spread_out([0.0, 0.01, 0.02], [0.1] * 3) == pytest.approx([0.0, 0.1, 0.2])
    assert spread_out([0.98, 0.99, 1.0], [0.1] * 3) == pytest.approx([0.8, 0.9, 1.0])
    rng = random.Random(0)
    for _ in range(200):
        wanted = sorted(rng.random() for _ in range(rng.randint(1, 6)))
        sizes = [rng.uniform(0.05, 0.15) for _ in wanted]
        found = spread_out(wanted, sizes)
        for (a, b), (size, following) in zip(pairwise(found), pairwise(sizes), strict=True):
            assert b - a > (size + following) / 2 - 1e-9
        assert found[0] > -1e-9
        assert found[-1] < 1 + 1e-9


def test_the_frontier_holds_what_nothing_beats_in_both() -> None:
    assert frontier([(1, 0.5), (2, 0.4), (3, 0.9), (3, 0.8), (0.5, 0.1), (9, 0.9)]) == [4, 0, 2]
