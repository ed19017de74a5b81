"""Nothing that a reader should see is cut off: labels in the drawings of a suite, captions on a phone."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pytest
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextToPath

from integration.report_helpers import PAGES, Reader
from integration.suite_helpers import METHODS, make_suite
from secateur.report import render_suite
from secateur.report.canvas import WIDTH
from secateur.report.words import listing, shorten

FEW = ("magnitude", "magnitude-layerwise", "lamp", "teacher-guided", "task-gradient", "imp")
LONG = "gradual, Wanda scores"
"""A name that is just not broken into two lines."""


def suite(first: float, step: float, label: str) -> Any:
    """Methods whose accuracies lie `step` apart, the last under a name of its own."""
    content = make_suite({key: METHODS[key] for key in FEW}, (0.5, 0.9, 0.95, 0.98, 0.99, 0.995))
    for cell in content["cells"]:
        cell["accuracy"]["dense"] = first + 6 * step
        cell["accuracy"]["recovered"] = first + step * FEW.index(cell["method"])
    content["suite"]["methods"][FEW[-1]]["label"] = label
    return content


def texts(figure: str) -> list[tuple[float, float, str]]:
    """Left and right end of each text of a drawing, in points, as wide as matplotlib's font makes it."""
    found: list[tuple[float, float, str]] = []
    for style, place, text in re.findall(r'<text style="([^"]*)"([^>]*)>([^<]*)</text>', figure):
        (size,) = re.findall(r"font-size: ([\d.]+)px", style)
        (x,) = re.findall(r' x="([-\d.]+)"', place) or re.findall(r"translate\(([-\d.]+)", place)
        font = FontProperties(family="DejaVu Sans", size=float(size))
        width = TextToPath().get_text_width_height_descent(text, font, ismath=False)[0]
        before = 1.0 if "anchor: end" in style else 0.5 if "anchor: middle" in style else 0.0
        found.append((float(x) - before * width, float(x) + (1 - before) * width, text))
    return found


def narrow_figures(page: str) -> dict[str, str]:
    """The figures of one column by their keys."""
    pairs = re.findall(r'<figure class="card" id="fig-([\w-]+)">(.*?)</figure>', page, flags=re.S)
    return {key: drawing for key, drawing in pairs if f'viewBox="0 0 {WIDTH:g} ' in drawing}


@pytest.mark.parametrize(
    ("first", "step", "label"),
    [(0.3065, 0.0001, LONG), (0.8, 0.02, "W" * 21), (0.3065, 0.0001, "W" * 21), (0.2, 0.1, "IMP")],
)
def test_no_label_of_a_suite_leaves_its_drawing(first: float, step: float, label: str) -> None:
    figures = narrow_figures(render_suite(suite(first, step, label)))
    assert {"trade-total", "trade-score", "recovered-0", "recovered-2"} <= set(figures)
    for key, figure in figures.items():
        outside = [text for left, right, text in texts(figure) if left < 0 or right > WIDTH]
        assert outside == [], key
        assert label not in figure or any(text == label for _, _, text in texts(figure))


def test_sparsities_do_not_touch_where_long_names_leave_the_axes_narrow() -> None:
    for key, figure in narrow_figures(render_suite(suite(0.3065, 0.0001, "W" * 21))).items():
        if key.startswith("recovered"):
            shown = [text for text in texts(figure) if re.fullmatch(r"(50|9[\d.]+)%", text[2])]
            assert len(shown) > 1
            assert all(left[1] < right[0] for left, right in pairwise(sorted(shown)))


@pytest.mark.parametrize("page", [*PAGES, "suite"])
def test_captions_stand_outside_of_what_scrolls_and_name_it(page: str) -> None:
    html = PAGES[page]() if page in PAGES else render_suite(suite(0.8, 0.02, "IMP"))
    named = re.findall(
        r'<p class="caption" id="([\w-]+)">[^<]+</p>\s*<div class="scroll"[^>]* aria-labelledby="\1"[^>]*>\s*'
        r'<table aria-labelledby="\1">',
        html,
    )
    assert len(named) == html.count("<table") > 0
    assert "<caption" not in html
    assert set(named) <= set(Reader(html).ids)


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["LAMP"], "LAMP"),
        (["LAMP", "SNIP", "EPG"], "LAMP, SNIP and EPG"),
        (["a", "b", "c", "d", "e", "f"], "a, b, c, d and 2 more"),
        (["EPSD, from initialisation", "RigL"], "EPSD, from initialisation; RigL"),
    ],
)
def test_names_in_a_sentence(names: list[str], sentence: str) -> None:
    assert listing(names) == sentence


@pytest.mark.parametrize(
    ("name", "most", "short"),
    [
        ("magnitude", 26, "magnitude"),
        ("teacher-guided, recovery by the authors' CA-KLD", 44, "teacher-guided,…by the authors' CA-KLD"),
        ("IMP, LR rewinding, 100 epochs", 26, "IMP, LR…100 epochs"),
        ("magnitude, shuffled in each layer", 26, "magnitude,…in each layer"),
        ("layer4.0.downsample.0.weight.very.long.name", 26, "layer4.0.d….very.long.name"),
    ],
)
def test_long_names_keep_whole_words_where_they_can(name: str, most: int, short: str) -> None:
    assert shorten(name, most) == short
    assert len(short) <= most
