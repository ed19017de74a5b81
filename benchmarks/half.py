"""Plans of fp16 against fp32 where the processor computes in it: time by turns, and what outputs lose.

Also what a core multiplies and adds in each precision, by tests/native/bench_arithmetic.cpp; needs CMake
and a C++ compiler.

python half.py [--models resnet18,vgg16] [--batch 16,1]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
from common import write_result

from secateur.runtime import Engine
from secateur.runtime import compile as compile_model
from secateur.runtime.timing import random_inputs, time_in_turn
from secateur.runtime.zoo import ZOO, pruned

ROOT = Path(__file__).parents[1]
PRECISIONS: tuple[Literal["fp32", "fp16"], ...] = ("fp32", "fp16")


def arithmetic() -> list[dict[str, Any]]:
    """GFLOP/s of one core by instruction."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["-DSECATEUR_PYTHON=OFF", "-DSECATEUR_TESTS=ON"]
        subprocess.run(["cmake", "-S", str(ROOT), "-B", folder, *options], check=True, capture_output=True)
        command = ["cmake", "--build", folder, "--target", "bench_arithmetic"]
        subprocess.run(command, check=True, capture_output=True)
        program = Path(folder) / "tests" / "native" / "bench_arithmetic"
        done = subprocess.run([str(program)], check=True, capture_output=True, text=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def speed(name: str, batch: int, sparsity: float, threads: int, seconds: float) -> dict[str, Any]:
    """Milliseconds of both, from one run, and how far their outputs lie apart."""
    model, example = pruned(name, sparsity), ZOO[name].example(batch)
    engines: dict[str, Engine] = {}
    for precision in PRECISIONS:
        plan = compile_model(model, example, precision=precision, batches=[batch], threads=threads)
        engines[precision] = Engine(plan, threads=threads)
        inputs = random_inputs(plan, batch=batch)
    exact, half = (np.asarray(engine(*inputs)) for engine in engines.values())
    blocks = time_in_turn({p: lambda e=e: e(*inputs) for p, e in engines.items()}, seconds=seconds)
    ms = {p: 1e3 * min(map(statistics.median, found)) for p, found in blocks.items()}
    return {
        "model": name,
        "batch": batch,
        "sparsity": sparsity,
        "ms": ms,
        "times_faster": ms["fp32"] / ms["fp16"],
        "difference": float(np.abs(half - exact).max() / np.abs(exact).max()),
        "isa": {p: engine.isa for p, engine in engines.items()},
    }


def main() -> None:
    """Measure every network and write the results file."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--models", default="resnet18,vgg16")
    arguments.add_argument("--batch", default="16,1")
    arguments.add_argument("--sparsity", type=float, default=0.9)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--seconds", type=float, default=1.0)
    options = arguments.parse_args()
    rows = [
        speed(name, int(batch), options.sparsity, options.threads, options.seconds)
        for name in options.models.split(",")
        for batch in options.batch.split(",")
    ]
    about = {"threads": options.threads, "arithmetic": arithmetic(), "rows": rows}
    write_result("half", about)


if __name__ == "__main__":
    main()
