"""Every number in README.md and docs/ comes from a file in benchmarks/results/."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_tables_are_what_the_results_say():
    script = ROOT / "benchmarks" / "render.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"out of date: {done.stdout} {done.stderr} Run: python benchmarks/render.py"
