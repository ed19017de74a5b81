"""The engine beside others: the table of docs/runtime.md, cell by cell, with a file for each.

A command that was stopped goes on where it was. On a machine of many moods, measure all cells again
into another folder: with several --cells, --collect takes for each engine the pass in which it was
faster. DeepSparse is measured if the Python of an environment that has it (3.8 to 3.11) is given; it
runs the same ONNX model in its own process.

python runtime.py --cells FOLDER [--models resnet18] [--run RUN …] [--deepsparse PYTHON] [--collect]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import write_result

from secateur import deploy
from secateur.files import read_json
from secateur.runtime import Plan
from secateur.runtime.bench import Grid, run_grid
from secateur.runtime.engine import Engine
from secateur.runtime.timing import random_inputs
from secateur.runtime.to_onnx import plan_to_onnx
from secateur.runtime.zoo import ZOO

DEEPSPARSE = Path(__file__).parent / "deepsparse_worker.py"


def deepsparse(python: str, grid: Grid, plan: Plan, batch: int) -> dict[str, Any]:
    """Median time of DeepSparse, and how far its outputs lie from those of the plan."""
    inputs = random_inputs(plan, batch=batch)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "net.onnx").write_bytes(plan_to_onnx(plan, batch=batch))
        np.savez(Path(folder) / "inputs.npz", *inputs)
        command = [python, str(DEEPSPARSE), folder, str(batch), str(grid.threads), str(grid.seconds)]
        # with packages of its own
        own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=own)
        if done.returncode:
            return {"name": "deepsparse", "error": done.stderr.strip()[-300:]}
        expected = Engine(plan, threads=grid.threads)(*inputs)
        found = np.load(Path(folder) / "outputs.npz")["arr_0"]
    difference = float(np.abs(found - expected).max() / np.abs(expected).max())
    times = json.loads(done.stdout.splitlines()[-1])
    return {"name": "deepsparse", **times, "difference": difference, "agrees": difference < 1e-3}


def fastest(passes: list[dict[str, Any]]) -> dict[str, Any]:
    """One cell of several that were measured alike: each engine's faster time, by the same rule for all."""
    timings: dict[str, dict[str, Any]] = {}
    for timing in (timing for cell in passes for timing in cell["timings"]):
        name = timing["name"]
        if name not in timings or timing.get("median_s", math.inf) < timings[name].get("median_s", math.inf):
            timings[name] = timing
    last = passes[-1]
    commits = [commit for cell in passes for commit in cell.get("passes", [cell["commit"]])]
    return {**last, "timings": list(timings.values()), "passes": commits}


def main() -> None:
    """Measure what is not measured yet; with --collect, write the results file."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument(
        "--cells",
        type=Path,
        action="append",
        required=True,
        help="folder for the cells; repeatable",
    )
    arguments.add_argument("--models", default=",".join(ZOO))
    arguments.add_argument("--batch", default="1,16")
    arguments.add_argument("--sparsity", default="0.8,0.9,0.95,0.98")
    arguments.add_argument("--against", default="onnxruntime,openvino,openvino-default")
    arguments.add_argument(
        "--run", type=Path, action="append", default=[], help="run folder: its student too"
    )
    arguments.add_argument("--deepsparse", help="Python of an environment with deepsparse 1.8")
    arguments.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32")
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--seconds", type=float, default=1.0)
    arguments.add_argument(
        "--collect", action="store_true", help="write the results file and measure nothing"
    )
    options = arguments.parse_args()
    if options.collect:
        names = sorted({path.name for folder in options.cells for path in folder.glob("*-s*.json")})
        passes = [[folder / name for folder in options.cells if (folder / name).is_file()] for name in names]
        cells = [fastest([read_json(path) for path in paths]) for paths in passes]
        cells = [cell for cell in cells if cell.get("precision", "fp32") == options.precision]
        cells.sort(key=lambda cell: (cell["model"], cell["batch"], cell["sparsity"]))
        name = "runtime" if options.precision == "fp32" else f"runtime_{options.precision}"
        write_result(name, {"cells": cells})
        return
    grid = Grid(
        models=tuple(filter(None, options.models.split(","))),
        batches=tuple(map(int, options.batch.split(","))),
        sparsities=tuple(map(float, options.sparsity.split(","))),
        against=tuple(filter(None, options.against.split(","))),
        precision=options.precision,
        threads=options.threads,
        seconds=options.seconds,
    )
    networks = [deploy.network_of_run(path) for path in options.run]
    also = [] if options.deepsparse is None else [partial(deepsparse, options.deepsparse, grid)]
    for found in run_grid(grid, options.cells[-1], pruned_networks=networks, also=also):
        print(found["model"], found["batch"], found["sparsity"], flush=True)


if __name__ == "__main__":
    main()
