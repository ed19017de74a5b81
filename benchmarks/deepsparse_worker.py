"""Runs in an environment with DeepSparse 1.8 (Python 3.8 to 3.11): times one ONNX model. See runtime.py.

python deepsparse_worker.py FOLDER BATCH THREADS SECONDS
"""

import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np


def main() -> None:
    """Read net.onnx and inputs.npz, write outputs.npz, print the times as JSON."""
    from deepsparse import Engine, __version__

    folder, batch, threads, seconds = (
        Path(sys.argv[1]),
        int(sys.argv[2]),
        int(sys.argv[3]),
        float(sys.argv[4]),
    )
    found = np.load(folder / "inputs.npz")
    inputs = [found[name] for name in found.files]
    engine = Engine(str(folder / "net.onnx"), batch_size=batch, num_cores=threads)
    outputs = engine.run(inputs)
    np.savez(folder / "outputs.npz", *outputs)
    blocks: list[list[float]] = []
    for _ in range(10):  # as secateur.runtime.timing does for the others
        time.sleep(0.1)
        engine.run(inputs)
        times: list[float] = []
        while len(times) < 2 or sum(times) < seconds / 10:
            started = time.perf_counter()
            engine.run(inputs)
            times.append(time.perf_counter() - started)
        blocks.append(times)
    times = min(blocks, key=statistics.median)
    median = statistics.median(times)
    about = {
        "version": f"deepsparse {__version__}, fp32",
        "median_s": median,
        "n_runs": sum(map(len, blocks)),
    }
    print(json.dumps({**about, "p95_s": float(np.quantile(times, 0.95)), "per_second": batch / median}))


if __name__ == "__main__":
    main()
