"""Suites that lie in benchmarks/results, some collected by earlier versions: `secateur report` draws them."""

from __future__ import annotations

from pathlib import Path

import pytest

from secateur.files import read_json
from secateur.report import render_suite
from secateur.report.arena.cost import epochs_of
from secateur.report.arena.schema import read_suite

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def test_a_suite_with_recipes_of_an_earlier_version_is_drawn() -> None:
    content = read_suite(read_json(RESULTS / "arena_calibration-digits.json"))
    old = [
        cell
        for cell in content["cells"]
        if ((cell["about"]["strategy"] or {}).get("recovery") or {"final_steps": 0})["final_steps"] is None
    ]
    assert old
    for cell in old:
        strategy = cell["about"]["strategy"]
        steps = strategy["stages"] * strategy["recovery"]["steps"] * strategy["recovery"]["batch_size"]
        assert epochs_of(cell) == pytest.approx(cell["cost"]["epochs"] + steps / cell["data"]["n_train"])
    assert "<html" in render_suite(content)
