"""The page of a suite: complete, safe to open, and honest about what is missing or unequal."""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable
from typing import Any

import pytest

from integration.report_helpers import Reader, drawn, emptying
from integration.suite_helpers import METHODS, make_suite
from secateur.report import render_suite
from secateur.report.arena.controls import contradicts, controls_section, held_against, promise
from secateur.report.arena.differences import difference_panel
from secateur.report.arena.grid import Grid
from secateur.report.arena.limits import limits, notices
from secateur.report.arena.masks import density_panel
from secateur.report.arena.schema import read_suite
from secateur.report.arena.square import square_section

FEW = {
    key: METHODS[key]
    for key in (
        "magnitude",
        "lamp",
        "teacher-guided",
        "task-gradient",
        "imp",
        "shuffled",
        "untrained-teacher",
    )
}
SQUARE = {key: METHODS[key] for key in METHODS if key.startswith(("magnitude", "task-gradient"))} | {
    key: METHODS[key] for key in ("teacher-guided", "teacher-guided-no-kd")
}


def small() -> Any:
    return make_suite(FEW, (0.5, 0.9, 0.98))


def half_done() -> Any:
    """What is left when most cells are taken out at random, all of one method among them."""
    content = small()
    rng = random.Random(1)
    content["cells"] = [c for c in content["cells"] if c["method"] != "imp" and rng.random() < 0.4]
    return content


def single_cell() -> Any:
    content = small()
    content["cells"] = [cell for cell in content["cells"] if cell["method"] == "lamp"][:1]
    content["overlaps"] = []
    return content


def controls_alone() -> Any:
    content = small()
    content["cells"] = [cell for cell in content["cells"] if cell["method"] == "shuffled"]
    content["overlaps"] = []
    return content


PAGES: dict[str, Callable[[], Any]] = {
    "full": make_suite,
    "small": small,
    "half": half_done,
    "single": single_cell,
    "controls": controls_alone,
    "seed": lambda: make_suite(FEW, (0.5, 0.9, 0.98), (0,)),
    "untrained": lambda: make_suite(FEW, (0.5, 0.9), recovered=False),
    "square": lambda: make_suite(SQUARE, (0.8, 0.95)),
}


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return {name: render_suite(make()) for name, make in PAGES.items()}


def grid_of(content: Any) -> Grid:
    return Grid(read_suite(content))


def said(grid: Grid) -> str:
    """All notices and limits of a page as text."""
    lines = [(notice.title, notice.text) for notice in notices(grid)] + list(limits(grid))
    return "\n".join(f"{lead}: {text}" for lead, text in lines)


@pytest.mark.parametrize("name", PAGES)
class TestEveryPage:
    def test_is_well_formed_with_unique_ids_that_resolve(self, pages: dict[str, str], name: str) -> None:
        page = Reader(pages[name])
        assert len(page.ids) == len(set(page.ids))
        assert set(re.findall(r'(?:url\(#|href="#)([\w-]+)', pages[name])) <= set(page.ids)

    def test_loads_nothing_and_runs_nothing(self, pages: dict[str, str], name: str) -> None:
        page = Reader(pages[name])
        assert "http" not in pages[name]
        assert not {"script", "iframe", "object", "img", "image"} & set(page.tags)
        assert not any(key.startswith("on") for key, _ in page.attributes)

    def test_colours_come_from_the_page_and_captions_end(self, pages: dict[str, str], name: str) -> None:
        for svg in re.findall(r"<svg.*?</svg>", pages[name], flags=re.S):
            assert not re.search(r"(?:fill|stroke): #", svg)
        captions = re.findall(r"<figcaption>(.*?)</figcaption>", pages[name], flags=re.S)
        assert captions
        assert all(caption.strip().endswith(".") for caption in captions)

    def test_says_no_none_and_no_nan(self, pages: dict[str, str], name: str) -> None:
        text = Reader(pages[name]).text
        assert "None" not in text
        assert "nan" not in text.lower().split()


def test_is_the_same_every_time(pages: dict[str, str]) -> None:
    content = small()
    before = copy.deepcopy(content)
    assert render_suite(content) == pages["small"]
    assert content == before


def test_a_page_of_25_methods_is_of_bearable_size(pages: dict[str, str]) -> None:
    assert len(pages["full"].encode()) < 1_000_000


def test_a_full_suite_draws_every_figure(pages: dict[str, str]) -> None:
    families = [f"{stage}-{index}" for stage in ("recovered", "pruned", "cut") for index in range(5)]
    others = ["differences", "square", "effects", "controls", "trade-total", "trade-score", "cost"]
    assert drawn(pages["full"]) == {*families, *others, "densities", "overlap"}
    assert "not shown, because" not in Reader(pages["full"]).text


def test_headline_setting_and_provenance(pages: dict[str, str]) -> None:
    text = Reader(pages["full"]).text
    for part in (
        "20 methods · 50–99 % zeros among prunable weights · 3 seeds · 450 of 450 cells finished",
        "resnet20 on cifar10 with resnet56 as teacher, with one recovery for all but 2 methods (40 epochs, "
        "KD weight 0.7), on NVIDIA H100",
        "One recovery for all but teacher-guided, no KD; task |w·g|, no KD: epochs 40",
        "commit f444038efdc1b3594bcd605b21d115084a2b331c",
        "torch 2.13.0",
        "secateur bench accuracy --suite cifar10-resnet20",
    ):
        assert part in text


def test_every_method_is_named_in_a_figure_of_its_family(pages: dict[str, str]) -> None:
    figures = re.findall(
        r'<figure class="card" id="fig-recovered-\d">.*?</figure>', pages["full"], flags=re.S
    )
    drawn_text = " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", "".join(figures)))
    competing = [label for label, family, _, _ in METHODS.values() if family not in ("control", "ablation")]
    assert all(label in drawn_text for label in competing)
    assert all(len(re.findall(r"<text", figure)) < 25 for figure in figures)


def test_controls_and_ablations_do_not_compete(pages: dict[str, str]) -> None:
    text = Reader(pages["full"]).text
    contest, apart = text.split("Who is better than magnitude?")
    assert "inverted score" not in contest
    assert "teacher-guided, no KD" not in contest
    assert "inverted score, against teacher-guided |w·g|: should be below" in apart


class TestHalfDone:
    def test_says_what_is_missing(self, pages: dict[str, str]) -> None:
        n_cells = len(half_done()["cells"])
        text = Reader(pages["half"]).text
        assert f"Warning {n_cells} of 63 cells are finished" in text
        assert "Nothing is finished of IMP, LR rewinding." in text
        assert "(n = 1)" in text
        assert "secateur bench accuracy --suite cifar10-resnet20" in text

    def test_one_cell_is_no_comparison(self, pages: dict[str, str]) -> None:
        text = Reader(pages["single"]).text
        assert "1 of 63 cells finished" in text
        assert "Too few cells are finished for a comparison." in text
        assert "magnitude has no finished cell" in text
        assert "differences" not in drawn(pages["single"])

    def test_one_seed_has_no_spread_and_no_certainty(self, pages: dict[str, str]) -> None:
        text = Reader(pages["seed"]).text
        assert "Warning A single seed" in text
        assert "from a single seed" in text
        assert "No difference has an interval yet" in text
        assert "(one seed)" in text
        assert not re.search(r"\d ± \d", text)
        assert not re.search(r"\d ▲|\d ▼", text)
        assert "No difference has an interval yet, so nothing is decided." in text

    def test_without_the_reference_there_are_no_differences(self) -> None:
        content = small()
        content["cells"] = [cell for cell in content["cells"] if cell["method"] != "magnitude"]
        grid = grid_of(content)
        assert difference_panel(grid).absent == "there is no finished pair with magnitude yet"
        assert "All others are held against it" in said(grid)

    def test_a_suite_without_magnitude_takes_its_first_method(self) -> None:
        content = make_suite({key: METHODS[key] for key in ("lamp", "snip", "imp")}, (0.5, 0.9))
        assert grid_of(content).reference.label == "LAMP"

    def test_no_overlaps_layers_or_costs(self) -> None:
        content = small()
        content["overlaps"] = []
        for cell in content["cells"]:
            cell["layers"] = []
            cell["cost"] = dict.fromkeys(cell["cost"])
        html = render_suite(content)
        assert not {"overlap", "densities", "cost", "trade-total"} & drawn(html)
        assert Reader(html).text.count("not shown, because") == 5


def test_without_recovery_the_last_stage_decides(pages: dict[str, str]) -> None:
    text = Reader(pages["untrained"]).text
    assert "Accuracy without recovery" in text
    assert "without any recovery" in text
    assert "Nothing was trained after the cut." in text
    assert "Accuracy after recovery" not in text
    assert "recovered-0" not in drawn(pages["untrained"])


class TestUnequalTerms:
    @pytest.mark.parametrize(
        ("change", "told"),
        [
            (lambda c: c["cost"].update(epochs=50.0), "Not the same budget"),
            (lambda c: c["about"]["recovery"].update(lr=0.01), "at another peak rate than most: LAMP (0.01)"),
            (lambda c: c.update(n_prune=c["n_prune"] + 5), "Not the same number of zeros"),
            (lambda c: c["accuracy"].update(dense=0.9), "Not the same dense network"),
            (lambda c: c["data"].update(name="cifar100"), "Not the same data"),
            (lambda c: c["models"]["student"].update(name="vgg"), "Not the same networks"),
            (lambda c: c["warnings"].append(emptying("x")), f"Said by 9 cells: {emptying('x')}"),
            (lambda c: c["hardware"].update(device="cpu"), "Cells were run on different machines"),
            (lambda c: c.update(commit="abc"), "Cells were run at 2 different commits"),
        ],
    )
    def test_is_told(self, change: Callable[[Any], object], told: str) -> None:
        content = small()
        for cell in content["cells"]:
            cell["cost"]["epochs"] = 40.0
        assert told not in said(grid_of(content))
        for cell in content["cells"]:
            if cell["method"] == "lamp":
                change(cell)
        assert told in said(grid_of(content))

    def test_a_longer_training_is_told_with_its_length(self, pages: dict[str, str]) -> None:
        text = Reader(pages["full"]).text
        assert "40 epochs of images, others for more or less: IMP, LR rewinding (120). The length" in text

    def test_limits_are_stated(self, pages: dict[str, str]) -> None:
        text = Reader(pages["full"]).text
        assert "90.00 % where 90 % was asked for, 88.63 % of all parameters" in text
        assert "One accuracy of 90.6 % on 10,000 test samples is known to ± 0.6 points" in text
        assert "Student's t over 3 seeds (2 degrees of freedom)" in text
        assert "Every cell starts from networks of one dense accuracy" in text
        assert "about 6 of 114 intervals would still exclude 0" in text


class TestControls:
    def test_what_each_should_show_is_known(self, pages: dict[str, str]) -> None:
        text = Reader(pages["full"]).text
        assert (
            "shuffled masks, against teacher-guided |w·g|: should be below. As many weights in each" in text
        )
        assert "The weights of the highest scores go first" in text
        assert "A teacher that knows nothing" in text
        assert "No control contradicts what should be seen." in text

    def test_one_that_is_no_worse_is_flagged(self) -> None:
        content = small()
        guided = {
            (c["sparsity"]["asked"], c["seed"]): c["accuracy"]["recovered"]
            for c in content["cells"]
            if c["method"] == "teacher-guided"
        }
        for cell in content["cells"]:
            if cell["method"] == "shuffled":
                place = (cell["sparsity"]["asked"], cell["seed"])
                cell["accuracy"]["recovered"] = guided[place] + 0.01 + 0.001 * cell["seed"]
        section = controls_section(grid_of(content))
        assert section is not None
        assert section.panels[0].finding == "Not what should be seen: shuffled masks."
        assert (
            section.points[0][1]
            .replace("\u00a0", " ")
            .endswith("It was above at 50 %, 90 % and 98 % zeros. This is not what should be seen.")
        )

    def test_the_suite_may_say_what_to_expect(self) -> None:
        content = small()
        content["suite"]["methods"]["shuffled"] |= {"of": "lamp", "expect": "above", "shows": "A joke."}
        grid = grid_of(content)
        shuffled = grid.method("shuffled")
        assert promise(grid, shuffled) == ("above", "A joke.")
        assert held_against(grid, shuffled).label == "LAMP"
        assert contradicts(grid, shuffled)

    @pytest.mark.parametrize(
        ("expect", "gains", "wrong"),
        [
            ("below", (-0.02, -0.02, -0.02), False),
            ("below", (0.0, 0.0, -0.02), False),  # mild cuts harm nobody
            ("below", (0.0, 0.0, 0.0), True),
            ("below", (0.02, -0.02, -0.02), True),
            ("above", (0.0, 0.02, 0.02), False),
            ("level", (0.0, 0.0, 0.0), False),
            ("level", (0.0, 0.0, -0.02), True),
        ],
    )
    def test_when_a_control_contradicts(self, expect: str, gains: tuple[float, ...], wrong: bool) -> None:
        content = small()
        content["suite"]["methods"]["shuffled"] |= {"of": "lamp", "expect": expect}
        at = dict(zip((0.5, 0.9, 0.98), gains, strict=True))
        for cell in content["cells"]:
            noise = 0.001 * (cell["seed"] - 1)
            if cell["method"] == "lamp":
                cell["accuracy"]["recovered"] = 0.8
            if cell["method"] == "shuffled":
                cell["accuracy"]["recovered"] = 0.8 + at[cell["sparsity"]["asked"]] + noise
        grid = grid_of(content)
        assert contradicts(grid, grid.method("shuffled")) == wrong

    @pytest.mark.parametrize(("start", "expect"), [("small", "below"), ("trained", "above")])
    def test_networks_that_are_not_pruned_are_known(self, start: str, expect: str) -> None:
        content = small()
        for cell in content["cells"]:
            if cell["method"] == "shuffled":
                cell["about"] |= {"control": "none", "start": start}
                cell.update(layers=[], n_prune=0)
        grid = grid_of(content)
        assert promise(grid, grid.method("shuffled"))[0] == expect
        assert "Not the same number of zeros" not in said(grid)


class TestTwoByTwo:
    def test_draws_accuracies_and_effects(self, pages: dict[str, str]) -> None:
        assert {"square", "effects"} <= drawn(pages["square"])
        assert "KD in recovery helps at" in Reader(pages["square"]).text

    def test_columns_must_differ_in_kd(self) -> None:
        content = make_suite(SQUARE, (0.8, 0.95))
        for row in content["suite"]["two_by_two"]:
            row.reverse()
        (notice,) = [n for n in notices(grid_of(content)) if "2×2" in n.title]
        assert notice.level == "warning"
        assert "task |w·g| recovers with KD weight 0.7" in notice.text

    def test_a_corner_without_cells_leaves_it_out(self) -> None:
        content = make_suite(SQUARE, (0.8, 0.95))
        content["cells"] = [c for c in content["cells"] if c["method"] != "task-gradient-no-kd"]
        section = square_section(grid_of(content))
        assert section is not None
        assert [panel.svg for panel in section.panels] == [None, None]
        assert section.panels[0].absent == "not all four methods have a finished cell"

    def test_ablations_outside_of_it_have_a_table(self) -> None:
        content = make_suite(SQUARE, (0.8, 0.95))
        content["suite"]["two_by_two"] = None
        section = square_section(grid_of(content))
        assert section is not None
        assert section.title == "Ablations"
        assert section.panels == ()
        assert [row[0] for row in section.tables[0].rows] == ["task |w·g|, no KD", "teacher-guided, no KD"]


def test_an_emptied_layer_is_crossed_and_other_layers_are_left_out() -> None:
    content = make_suite({key: METHODS[key] for key in ("magnitude", "synflow", "lamp")}, (0.9,))
    for cell in content["cells"]:
        if cell["method"] == "lamp":
            cell["layers"] = cell["layers"][:3]
    panel = density_panel(grid_of(content))
    assert "SynFlow left a layer without a single weight (×)." in panel.finding
    assert panel.svg is not None
    assert "×" in panel.svg
    assert "LAMP" not in panel.svg


def test_strange_names_are_text_and_never_markup() -> None:
    evil = "<script>alert(1)</script> & \"'$x_1$ 層 {{ 7*7 }}"
    content = small()
    content["suite"].update(name=evil, description=evil)
    for method in content["suite"]["methods"].values():
        method["label"] += evil
    for cell in content["cells"]:
        cell["suite"] = evil
        cell["layers"][0]["name"] = evil
        cell["warnings"] = [evil]
        cell["data"]["name"] = evil
        cell["hardware"]["device"] = evil
    page = Reader(render_suite(content))
    assert "script" not in page.tags
    assert evil in page.text
