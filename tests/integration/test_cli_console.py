"""What commands print where nobody looks on, and how text becomes values and values words."""

import os
import subprocess
import sys

import pytest

from secateur.cli.console import compared, parse_values
from secateur.errors import InvalidArgument


@pytest.mark.parametrize(
    ("columns", "whole"), [({}, True), ({"COLUMNS": "60"}, False)], ids=["pipe", "asked"]
)
def test_tables_lose_no_column_in_a_pipe(columns, whole):
    code = """
from rich.table import Table
from secateur.cli.console import out
out.print(Table(*(f"column number {i}" for i in range(12))))
"""
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"} | columns
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert all(f"column number {i} " in done.stdout for i in range(12)) == whole


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.8,0.9", (0.8, 0.9)),
        ("0.9", (0.9,)),
        ("0:1:0.25", (0.0, 0.25, 0.5, 0.75, 1.0)),
        ("0:1:0.1", tuple(i / 10 for i in range(11))),
        ("0.5:0.8:0.3", (0.5, 0.8)),
    ],
)
def test_lists_and_ranges_are_exact(text, values):
    assert parse_values("alpha", text) == values


@pytest.mark.parametrize("text", ["", "a", "0:1", "0:1:0", "1:0:0.1", "0.1,,0.2", "1/0"])
def test_other_texts_are_refused(text):
    with pytest.raises(InvalidArgument, match="--alpha"):
        parse_values("alpha", text)


def test_a_range_that_would_leave_out_its_end_is_refused():
    with pytest.raises(InvalidArgument, match=r"does not reach 0.9: steps of 0.3 from 0.5 lead to 0.8"):
        parse_values("alpha", "0.5:0.9:0.3")


def test_a_range_of_too_many_values_is_refused_at_once():
    with pytest.raises(InvalidArgument, match="names 1,000,000,000,001 values; take at most 1,000"):
        parse_values("sparsity", "0:1:0.000000000001")


@pytest.mark.parametrize(
    ("ratio", "words"), [(2.0, "2.0 times larger"), (0.25, "4.0 times smaller"), (1.0, "the same size")]
)
def test_sizes_in_words(ratio, words):
    assert compared(ratio, 1) == words
