"""The outcomes of docs/paper.md: right when there are results, and never silent when there are none."""

from __future__ import annotations

import importlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from secateur.arena import load_suite, plan, suite_names

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")


@pytest.fixture
def paper(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("paper")


def cell(
    method: str, sparsity: float, seed: int, recovered: float, steps: int = 0, **accuracy: float | None
) -> dict[str, Any]:
    """A cell of a cut by magnitude with ``steps`` of distillation within the cut."""
    strategy = {"name": "stages", "recovery": {"steps": steps}} if steps else None
    return {
        "method": method,
        "about": {"criterion": {"name": "magnitude"}, "strategy": strategy},
        "seed": seed,
        "sparsity": {"asked": sparsity},
        "accuracy": {"dense": 0.9, "cut": 0.3, "batchnorm": 0.5, "recovered": recovered, **accuracy},
        "cost": {"cpu_s": 10.0 * (seed + 1), "epochs": 20.0},
    }


def write(folder: Path, name: str, cells: list[dict[str, Any]], **suite: Any) -> None:
    content = {"suite": {"recovery": {"epochs": 20}, **suite}, "n_planned": 99, "cells": cells}
    (folder / f"arena_{name}.json").write_text(json.dumps(content))


def test_every_outcome_stands_on_the_page_once(paper: Any) -> None:
    assert sorted(re.findall(r"<!-- begin generated: (\S+) -->", PAGE)) == sorted(paper.OUTCOMES)


def test_without_results_every_outcome_says_what_is_missing(
    paper: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paper, "RESULTS", tmp_path)
    for name, outcome in paper.OUTCOMES.items():
        lines = outcome().split("<br>")
        assert all(line.startswith("not measured yet: `") for line in lines), name
        assert len(lines) == len(set(lines)), name


def test_with_all_suites_run_nothing_is_missing(
    paper: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So each method that an outcome names is a row of its suite."""
    results = shutil.copytree(paper.RESULTS, tmp_path / "results")
    for name in suite_names():
        suite = load_suite(name)
        cells = [cell(c.method, c.sparsity, c.seed, 0.8 + 0.01 * c.seed) for c in plan(suite)]
        write(results, name, cells, recovery=suite.recovery and asdict(suite.recovery))
    monkeypatch.setattr(paper, "RESULTS", results)
    for name, outcome in paper.OUTCOMES.items():
        assert "not measured yet" not in outcome(), name
        assert "\n" not in outcome(), name


def test_a_difference_is_paired_by_seed(paper: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper, "RESULTS", tmp_path)
    cells = [
        cell("ours", 0.9, 0, 0.80),
        cell("ours", 0.9, 1, 0.84),
        cell("ours", 0.9, 2, 0.99),  # has no partner
        cell("theirs", 0.9, 0, 0.81),
        cell("theirs", 0.9, 1, 0.83),
        cell("ours", 0.984, 0, 0.70),
        cell("theirs", 0.984, 0, 0.725),
        cell("ours", 0.5, 0, 0.70),
    ]
    write(tmp_path, "trained", cells)
    assert paper.difference("trained", "ours", "theirs") == (
        "`ours` less `theirs`, points, recovery of 20 ep., 1–2 seeds: 90%: +0.00 ± 1.41; 98.4%: −2.50 "
        "(`arena_trained.json`, 8 of 99 cells)"
    )
    assert "90%: −2.33 ± 10.02" in paper.difference("trained", "ours", paper.DENSE)
    cells = [cell("ours", 0.9, 0, 0.0), cell("theirs", 0.9, 0, 0.0, batchnorm=0.4)]
    write(tmp_path, "untrained", cells, recovery=None)
    assert "90%: +10.00 (" in paper.difference("untrained", "ours", "theirs")
    cells = [cell("ours", 0.9, 0, 0.0, steps=10, cut=0.7), cell("theirs", 0.9, 0, 0.0)]
    write(tmp_path, "untrained", cells, recovery=None)
    assert "90%: +20.00 (" in paper.difference("untrained", "ours", "theirs")
    assert paper.difference("trained", "ours", "nobody") == "not measured yet: `nobody` of `trained`"
    assert paper.cost("trained", "ours", "nobody") == (
        "per cell: `ours` 16 s of processor time, 20 ep. of training (`arena_trained.json`)"
    )


def test_a_cell_and_a_block_are_both_rendered_in_place(paper: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    render = importlib.import_module("render")
    tables: dict[str, Callable[[], str]] = {"a": lambda: "new", "b": lambda: "| x |\n| y |"}
    monkeypatch.setattr(render, "TABLES", tables)
    text = (
        "| claim | <!-- begin generated: a -->old<!-- end generated: a --> |\n"
        "<!-- begin generated: b -->\nold\nrows\n<!-- end generated: b -->\n"
    )
    expected = text.replace("old\nrows", "| x |\n| y |").replace("old", "new")
    assert render.rendered(text) == expected
    assert render.rendered(expected) == expected
