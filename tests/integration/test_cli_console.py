"""What commands print where nobody looks on."""

import os
import subprocess
import sys

import pytest


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
