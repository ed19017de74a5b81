"""Reports are complete, safe to open, and the same every time; golden/report holds the results they show."""

from __future__ import annotations

import copy
import re
from typing import Any

import matplotlib
import pytest

from integration.report_helpers import PAGES, Reader, drawn, emptying, load, variants
from secateur.errors import RunError
from secateur.report import render_comparison, render_run, render_sweep
from secateur.report.notices import notices
from secateur.report.schema import read_run

RUN_FIGURES = (
    "accuracy",
    "size",
    "seconds",
    "density",
    "scores",
    "split-half",
    "agreement",
    "loss",
    "val-accuracy",
)


@pytest.fixture
def result() -> Any:
    return load("teacher-guided")


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return {name: make() for name, make in PAGES.items()}


@pytest.mark.parametrize("name", PAGES)
class TestEveryPage:
    def test_is_well_formed_with_unique_ids_that_resolve(self, pages: dict[str, str], name: str) -> None:
        page = Reader(pages[name])
        assert len(page.ids) == len(set(page.ids))
        used = re.findall(r'(?:url\(#|href="#)([\w-]+)', pages[name])
        assert used
        assert set(used) <= set(page.ids)

    def test_loads_nothing_and_runs_nothing(self, pages: dict[str, str], name: str) -> None:
        html = pages[name]
        page = Reader(html)
        assert "http" not in html
        assert not {"script", "iframe", "object", "img", "image"} & set(page.tags)
        assert "@import" not in html
        outside = [value for key, value in page.attributes if key in ("href", "src", "xlink:href") and value]
        assert all(value.startswith(("#", "data:")) for value in outside)
        assert not any(key.startswith("on") for key, _ in page.attributes)

    def test_is_the_same_every_time(self, pages: dict[str, str], name: str) -> None:
        assert PAGES[name]() == pages[name]

    def test_colours_come_from_the_page(self, pages: dict[str, str], name: str) -> None:
        for svg in re.findall(r"<svg.*?</svg>", pages[name], flags=re.S):
            assert not re.search(r"(?:fill|stroke): #", svg)
            assert "<metadata" not in svg

    def test_drawings_have_labels_and_reading_aids(self, pages: dict[str, str], name: str) -> None:
        assert all(len(label) > 10 for label in Reader(pages[name]).labels)
        captions = re.findall(r"<figcaption>(.*?)</figcaption>", pages[name], flags=re.S)
        assert len(captions) == pages[name].count("<figure")
        assert all(caption.strip().endswith(".") for caption in captions)

    def test_is_small(self, pages: dict[str, str], name: str) -> None:
        assert len(pages[name].encode()) < 400_000


def test_a_full_run_draws_every_figure(pages: dict[str, str]) -> None:
    assert drawn(pages["run"]) == set(RUN_FIGURES)


def test_headline_and_provenance(pages: dict[str, str], result: Any) -> None:
    text = Reader(pages["run"]).text
    assert "90.0 % of the prunable weights removed · 98.9 % → 98.6 % accuracy · 7.4× smaller on disk" in text
    for part in (
        "seed 0",
        "torch 2.13.0",
        "temperature 4",
        "commit c8612f7a9b1d",
        "memory 8.2 GB",
        "1 × 8 × 8",
    ):
        assert part in text
    assert result["mask_digest"] in text
    assert "secateur inspect RUN" in text
    assert "secateur verify RUN" in text
    assert "secateur sweep" not in text  # which takes the configuration, see secateur.suggestions


def test_what_was_not_run_is_said_and_not_drawn(pages: dict[str, str]) -> None:
    page = Reader(pages["nulls"])
    assert drawn(pages["nulls"]) == {"accuracy", "seconds", "density"}
    assert {f"fig-{key}" for key in RUN_FIGURES} <= set(page.ids)
    assert "This run stopped after the cut" in page.text
    assert "BatchNorm re-estimated not run" in page.text
    assert "None" not in page.text
    assert "nan" not in page.text.lower().split()


def test_all_null_accuracy_times_and_layers(result: Any) -> None:
    result["accuracy"] = dict.fromkeys(result["accuracy"])
    result["seconds"] = dict.fromkeys(result["seconds"])
    result["curves"] = dict.fromkeys(result["curves"])
    result["diagnostics"] = dict.fromkeys(result["diagnostics"])
    result["selected_epoch"] = dict.fromkeys(result["selected_epoch"])
    result["size_bytes"] = dict.fromkeys(result["size_bytes"])
    result["models"]["teacher"] = None
    result["layers"] = []
    result["commit"] = None
    html = render_run(result)
    assert drawn(html) == set()
    assert {f"fig-{key}" for key in RUN_FIGURES} <= set(Reader(html).ids)
    assert Reader(render_comparison([result])).text.count("not shown, because") == 7


def test_a_file_that_grew_is_not_called_smaller(result: Any) -> None:
    result["size_bytes"] = {"dense": 1000, "sparse": 1200}
    text = Reader(render_run(result)).text
    assert "1.2× larger" in text
    assert "larger on disk" in text
    runs = variants(result)
    for number, run in enumerate(runs):
        run["size_bytes"] = {"dense": 1000, "sparse": 2000 - 100 * number}
    assert "The smallest file is 1.3× larger than the dense one" in render_comparison(runs)


def test_a_score_without_terms_or_threshold_is_drawn(result: Any) -> None:
    result["diagnostics"]["score_histogram"].update(terms=None, log10_threshold=None, n_zero=0)
    html = render_run(result)
    assert "scores" in drawn(html)
    assert "task term" not in html
    assert "→ kept" not in html


def test_deep_networks_name_every_layer(pages: dict[str, str]) -> None:
    layers = load("resnet50")["layers"]
    assert len(layers) == 54
    assert all(f'<th scope="row">{layer["name"]}</th>' in pages["deep"] for layer in layers)


def test_a_run_that_was_taken_up_again_does_not_pass_its_total_for_the_whole(
    result: Any, pages: dict[str, str]
) -> None:
    assert "The whole run took 1 min 6 s." in Reader(pages["run"]).text
    assert "taken up again" not in Reader(pages["run"]).text
    result["seconds"]["total"] = 40.0  # and its steps took 63.3 s
    text = Reader(render_run(result)).text
    assert "The whole run" not in text
    assert "The run was stopped and taken up again; its steps took 1 min 3 s together." in text
    assert "Scoring and choosing took 0.8 s of 1 min 3 s in all. The run was stopped and" in text
    assert "the total of 40 s in its result counts from there" in text
    assert "<td>1\u00a0min\u00a03\u00a0s</td>" in render_comparison([result])


def test_strange_names_are_text_and_never_markup(result: Any) -> None:
    evil = "<script>alert(1)</script> & \"'$x_1$ 層 {{ 7*7 }}"
    result["layers"][0]["name"] = evil
    result["diagnostics"]["agreement"]["layers"][0]["name"] = evil
    result["layers"][0].update(n_keep=0, density=0.0)
    result["criterion"].update({"name": evil, evil: evil})
    result["data"]["name"] = evil
    result["warnings"] = [f"warned: {evil}"]
    result["hardware"][evil] = [evil]
    result["models"]["student"]["name"] = evil
    other = copy.deepcopy(result)
    other["criterion"][evil] = "other"
    sweep = load("sweep")
    sweep["criterion"]["name"] = sweep["data"]["name"] = evil
    for html in (render_run(result), render_comparison([result, other]), render_sweep(sweep)):
        page = Reader(html)
        assert "script" not in page.tags
        assert evil in page.text
        assert "$x_1$" in html


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda r: r["diagnostics"]["split_half"].update(mask_overlap=0.2), "Give more calibration data"),
        (lambda r: r["layers"][2].update(n_keep=0, density=0.0), "Nothing flows through conv3.weight"),
        (
            lambda r: r["accuracy"].update(recovered_kd=0.95),
            "With KD 95.0 %, without 98.1 %: 3.1 points less, 11 of 360 test samples",
        ),
        (lambda r: r["sparsity"].update(asked=0.95), "Asked for 95.00 % zeros, got 90.00 %"),
        (lambda r: r["accuracy"].update(teacher=0.9), "The teacher is no better than the student"),
        (lambda r: r["accuracy"].update(recovered=0.1, recovered_kd=0.11), "little more than guess"),
        (lambda r: r["accuracy"].update(recovered=0.8, recovered_kd=0.81), "Recovery made it worse"),
        (lambda r: r["size_bytes"].update(sparse=300_000), "The sparse file is no smaller"),
        (lambda r: r["diagnostics"]["agreement"].update(spearman=0.99), "Labels and teacher say the same"),
        (
            lambda r: r["diagnostics"]["score_histogram"].update(n_zero=60_000),
            "More weights score zero than were removed",
        ),
        (lambda r: r["curves"]["recovered"][3].update(loss=float("nan")), "A loss was not a finite number"),
        (lambda r: r["selected_epoch"].update(recovered=8), "The last epochs were not kept"),
        (lambda r: r.update(warnings=["a thing happened"]), "The run warned: a thing happened"),
    ],
)
def test_trouble_is_noticed(result: Any, change: Any, told: str) -> None:
    result["selected_epoch"] = {"recovered": 10, "recovered_kd": 10}
    assert notices(read_run(result)) == ()
    change(result)
    found = [f"{notice.title}: {notice.text}".replace("\u00a0", " ") for notice in notices(read_run(result))]
    assert any(told in text for text in found)


def test_stability_is_judged_from_chance_up(result: Any) -> None:
    """An overlap of 55 % lies 50.5 % of the way up from a chance of 1/11, and 47.5 % from one of 1/7."""
    result["selected_epoch"] = {"recovered": 10, "recovered_kd": 10}
    result["diagnostics"]["split_half"].update(mask_overlap=0.55, expected_random=1 / 11)
    assert notices(read_run(result)) == ()
    result["diagnostics"]["split_half"]["expected_random"] = 1 / 7
    (notice,) = notices(read_run(result))
    assert "agree on only 55 % of what they keep (chance: 14 %)" in notice.text.replace("\u00a0", " ")


def test_a_difference_within_chance_is_no_trouble(result: Any) -> None:
    result["selected_epoch"] = {"recovered": 10, "recovered_kd": 10}
    result["accuracy"]["recovered_kd"] = result["accuracy"]["recovered"] - 1 / result["data"]["n_test"]
    assert notices(read_run(result)) == ()


def test_notices_come_first_and_warnings_before_notes(pages: dict[str, str]) -> None:
    text = Reader(pages["deep"]).text
    order = ["Warning A layer was emptied", "Warning The run warned", "Note The last epochs", "What it costs"]
    places = [text.index(part) for part in order]
    assert places == sorted(places)


def test_an_emptied_layer_is_told_once(result: Any) -> None:
    result["layers"][2].update(n_keep=0, density=0.0)
    result["warnings"] = [emptying("conv3.weight"), emptying("conv2.weight")]
    told = [(notice.title, notice.text) for notice in notices(read_run(result)) if notice.level == "warning"]
    assert [title for title, _ in told] == ["A layer was emptied", "The run warned"]
    assert told[1][1] == emptying("conv2.weight")  # of which something is left


def test_rounding_layer_by_layer_is_no_trouble(result: Any) -> None:
    result["selected_epoch"] = {"recovered": 10, "recovered_kd": 10}
    result["n_prune"] -= len(result["layers"])
    assert notices(read_run(result)) == ()


FREE = {"criterion", "scope", "data", "models", "versions", "hardware", "seconds"}
"""Groups that may hold more or less, but for the keys in REQUIRED."""


def paths(item: Any, prefix: str = "") -> list[str]:
    return [
        path
        for key, part in item.items()
        for path in [prefix + key, *(paths(part, f"{prefix}{key}.") if isinstance(part, dict) else [])]
    ]


REQUIRED = [
    "run_id",
    "accuracy",
    "accuracy.recovered_kd",
    "sparsity.all",
    "n_prunable",
    "mask_digest",
    "size_bytes.sparse",
    "seconds.total",
    "seed",
    "versions",
    "hardware",
    "commit",
    "criterion.name",
    "scope",
    "data.n_test",
    "models.student",
    "layers",
    "curves.dense",
    "selected_epoch.recovered",
    "diagnostics.agreement.spearman",
    "diagnostics.score_histogram.terms.task.counts",
    "diagnostics.split_half.expected_random",
    "warnings",
]


@pytest.mark.parametrize("path", REQUIRED)
def test_a_missing_key_is_named(result: Any, path: str) -> None:
    *parents, last = path.split(".")
    part = result
    for key in parents:
        part = part[key]
    del part[last]
    with pytest.raises(RunError, match=re.escape(repr(path))):
        render_run(result)


def test_whatever_key_is_missing_is_an_error_or_no_matter(result: Any) -> None:
    for path in paths(result):
        broken = copy.deepcopy(result)
        *parents, last = path.split(".")
        part = broken
        for key in parents:
            part = part[key]
        del part[last]
        if path.split(".")[0] in FREE:
            continue
        with pytest.raises(RunError, match=last):
            render_run(broken)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            lambda r: r.update(format="secateur-sweep"),
            "'format' must be 'secateur-result', got 'sec",
        ),
        (lambda r: r.pop("format"), "'format'"),
        (lambda r: r.update(version=2), "'version' must be 1, got 2"),
        (lambda r: r.update(n_prune="many"), "'n_prune' must be int, got 'many'"),
        (lambda r: r.update(n_prune=True), "'n_prune'"),
        (
            lambda r: r["accuracy"].update(dense=98.9),
            r"'accuracy.dense' must be a fraction in \[0, 1\], got 98.9",
        ),
        (lambda r: r["sparsity"].update(asked=90), "'sparsity.asked' must be a fraction"),
        (lambda r: r["layers"][1].pop("n_keep"), r"'layers\[1\].n_keep' is missing"),
        (lambda r: r["curves"]["dense"][2].pop("loss"), r"'curves.dense\[2\].loss' is missing"),
        (lambda r: r["diagnostics"]["score_histogram"]["counts"].pop(), "counts' must have 45 entries"),
        (lambda r: r["diagnostics"]["score_histogram"].update(log10_edges=[]), "at least 2 entries"),
        (
            lambda r: r.update(calibration_recovery="x"),
            "'calibration_recovery' must be Mapping or null, got 'x'",
        ),
        (lambda r: r.update(stages=None), "'stages' must be Mapping, got None"),
        (lambda r: r.update(stages={"n": 1, "rows": [], "one_cut": None}), "'stages.regrow' is missing"),
        (lambda r: r["layers"].append(1e308), r"'layers\[\d+\]' must be Mapping"),
        (lambda r: r["seconds"].update(score="x"), "'seconds.score' must be int or float or null, got 'x'"),
        (lambda r: r["seconds"].update(score=10**30), r"'seconds.score' must be below 2\^63"),
        (lambda r: r["diagnostics"]["score_histogram"]["counts"].insert(0, {}), r"counts\[0\]' must be int"),
        (lambda r: r["diagnostics"]["score_histogram"]["log10_edges"].insert(0, "x"), r"edges\[0\]' must be"),
    ],
)
def test_a_damaged_result_is_refused(result: Any, change: Any, named: str) -> None:
    change(result)
    with pytest.raises(RunError, match=named):
        render_run(result)


def test_rendering_leaves_input_and_matplotlib_alone(result: Any) -> None:
    before, settings = copy.deepcopy(result), dict(matplotlib.rcParams)
    render_run(result)
    assert result == before
    assert dict(matplotlib.rcParams) == settings


def test_settings_of_the_user_do_not_change_the_page(result: Any, pages: dict[str, str]) -> None:
    with matplotlib.rc_context({"font.size": 30, "axes.grid": True, "svg.fonttype": "path"}):
        assert render_run(result) == pages["run"]
