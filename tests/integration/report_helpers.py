"""Pages made from golden/report, and a reader for them; the tests of all reports share them."""

from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from secateur.allocate import allocate
from secateur.counts import n_prune
from secateur.errors import EmptiedLayerWarning
from secateur.report import render_comparison, render_run, render_sweep

GOLDEN = Path(__file__).parents[1] / "golden" / "report"
BLOCKS = {"p", "h1", "h2", "h3", "dt", "dd", "th", "td", "li", "text", "summary", "figcaption"}
VOID = {"meta", "link", "br", "rect"}


def load(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


class Reader(HTMLParser):
    """Text, ids and images of a page; fails on tags that are not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.labels: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        named = dict(attrs)
        if "id" in named:
            self.ids.append(named["id"] or "")
        if tag == "svg":
            assert named["role"] == "img"
            self.labels.append(named["aria-label"] or "")
        if tag not in VOID:
            self.open.append(tag)
        if tag in BLOCKS:
            self.text += " "

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def drawn(html: str) -> set[str]:
    """Keys of the figures that hold a drawing."""
    return set(re.findall(r'<figure[^>]* id="fig-([\w-]+)">(?:(?!</figure>).)*<svg', html, flags=re.S))


def emptying(name: str, sparsity: float = 0.9) -> str:
    """What a cut says of scores that leave nothing of a tensor."""
    with pytest.warns(EmptiedLayerWarning) as caught:
        allocate({name: torch.zeros(1), "others": torch.ones(99)}, sparsity=sparsity)
    return str(caught[0].message)


def variants(result: Any) -> list[Any]:
    """`result` at four sparsities and with two criteria."""
    found = []
    for alpha in (0.0, 0.5):
        for sparsity in (0.8, 0.9, 0.95, 0.98):
            run = copy.deepcopy(result)
            removed = n_prune(run["n_prunable"], sparsity)
            run["run_id"] = f"{alpha}-{sparsity}"
            run["criterion"]["alpha"] = alpha
            run["n_prune"] = removed
            run["sparsity"] = {"asked": sparsity, "prunable": removed / run["n_prunable"], "all": sparsity}
            run["accuracy"]["recovered_kd"] = 0.99 - (1 - alpha) * sparsity / 10
            run["size_bytes"]["sparse"] = 50_000 * (1.05 - sparsity)
            found.append(run)
    return found


PAGES = {
    "run": lambda: render_run(load("teacher-guided")),
    "nulls": lambda: render_run(load("magnitude")),
    "deep": lambda: render_run(load("resnet50")),
    "comparison": lambda: render_comparison(variants(load("teacher-guided"))),
    "mixed": lambda: render_comparison([load("teacher-guided"), load("magnitude"), load("resnet50")]),
    "sweep": lambda: render_sweep(load("sweep")),
}
