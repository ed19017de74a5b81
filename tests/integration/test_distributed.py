"""Masks on models that torch has distributed, each case in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from torch import distributed

from integration.distributed_cases import CASES, TIME_LIMIT

TESTS = Path(__file__).parents[1]


def run(case: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "integration.distributed_cases", case],
        cwd=TESTS,
        capture_output=True,
        text=True,
        timeout=2 * TIME_LIMIT,
        check=False,
    )


@pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="this torch has no gloo"
)
@pytest.mark.parametrize("case", CASES)
def test_masks_hold(case: str) -> None:
    done = run(case)
    if "Timeout (" in done.stderr:  # a process group hung once, in some hundred runs of this suite
        done = run(case)
    assert done.returncode == 0, done.stderr
