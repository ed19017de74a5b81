"""What a second thread brings to small batches: on one thread, on several, and as the plan advises.

python threads.py [--models resnet20,resnet18] [--batch 1] [--sparsity 0.9] [--threads 2] [--seconds 1]
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from functools import partial

from common import write_result

from secateur.runtime import Engine
from secateur.runtime.compiler import compile_model
from secateur.runtime.rivals import build_rival
from secateur.runtime.timing import random_inputs, time_in_turn
from secateur.runtime.zoo import ZOO, pruned


def measure(model: str, sparsity: float, batch: int, threads: int, seconds: float) -> dict[str, object]:
    """Milliseconds of the best block of calls, all contenders in turn."""
    plan = compile_model(pruned(model, sparsity), ZOO[model].example(batch), batches=[batch], threads=threads)
    inputs = random_inputs(plan, batch=batch)
    shared = replace(plan, program=replace(plan.program, one_thread=0))
    rival = build_rival("onnxruntime", plan, inputs, threads=threads)
    blocks = time_in_turn(
        {
            "one": partial(Engine(plan, threads=1), *inputs),
            "several": partial(Engine(shared, threads=threads), *inputs),
            "advised": partial(Engine(plan, threads=threads), *inputs),
            "onnxruntime": partial(rival.run, inputs),
        },
        seconds=seconds,
    )
    best = {name: 1e3 * min(map(statistics.median, found)) for name, found in blocks.items()}
    return {"model": model, "batch": batch, "sparsity": sparsity, "threads": threads, "ms": best}


def main() -> None:
    """Measure each network and write the results file."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--models", default="resnet20,resnet18")
    arguments.add_argument("--batch", type=int, default=1)
    arguments.add_argument("--sparsity", type=float, default=0.9)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--seconds", type=float, default=1.0)
    options = arguments.parse_args()
    settings = (options.sparsity, options.batch, options.threads, options.seconds)
    write_result("threads", {"rows": [measure(model, *settings) for model in options.models.split(",")]})


if __name__ == "__main__":
    main()
