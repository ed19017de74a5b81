"""What the benchmark scripts share: timing in turn, provenance, results as files."""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from secateur import provenance
from secateur.files import write_json

RESULTS = Path(__file__).parent / "results"


def in_turn(candidates: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, list[float]]:
    """Seconds of each candidate in each round, run in turn (A B A B …) so that drift hits all alike.

    One round before counts as warm-up.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for round_number in range(rounds + 1):
        for name, run in candidates.items():
            started = time.perf_counter()
            run()
            if round_number:
                times[name].append(time.perf_counter() - started)
    return times


def medians(times: Mapping[str, list[float]]) -> dict[str, float]:
    """The median of each candidate."""
    return {name: statistics.median(values) for name, values in times.items()}


def write_result(name: str, content: Mapping[str, Any], *, seed: int = 0, device: str = "cpu") -> None:
    """Print a result, and keep it as ``results/NAME.json`` with where it comes from."""
    result = {
        "benchmark": name,
        **content,
        "provenance": {
            "date": datetime.date.today().isoformat(),
            "commit": provenance.commit(),
            "seed": seed,
            "versions": provenance.versions(),
            "hardware": provenance.hardware(torch.device(device)),
        },
    }
    print(json.dumps(result, indent=2))
    RESULTS.mkdir(exist_ok=True)
    write_json(RESULTS / f"{name}.json", result)


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser that shows the script's docstring, with the number of rounds."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=int, default=7, help="timed repetitions; the median counts")
    return made


def peak_rss_bytes() -> int:
    """Highest resident memory of this process so far."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
