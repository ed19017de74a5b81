"""The kernels by themselves, on one thread: what they reach in each cache, and layer by layer.

Builds tests/native/bench_conv.cpp and keeps what it prints; needs CMake and a C++ compiler.

python kernels.py [--images 16,1] [--sparsity 0,0.5,0.65,0.8,0.9,0.95]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from common import write_result

ROOT = Path(__file__).parents[1]


def build(folder: str) -> Path:
    """The benchmark program, built in a folder."""
    options = ["-DSECATEUR_PYTHON=OFF", "-DSECATEUR_TESTS=ON"]
    subprocess.run(["cmake", "-S", str(ROOT), "-B", folder, *options], check=True, capture_output=True)
    command = ["cmake", "--build", folder, "--parallel", "2", "--target", "bench_conv"]
    subprocess.run(command, check=True, capture_output=True)
    return Path(folder) / "tests" / "native" / "bench_conv"


def main() -> None:
    """Build, run and write the results file."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--images", default="16,1", help="batch sizes")
    arguments.add_argument("--sparsity", default="0,0.5,0.65,0.8,0.9,0.95")
    options = arguments.parse_args()
    limits: list[dict[str, Any]] = []
    layers: list[dict[str, Any]] = []
    isa = ""
    with tempfile.TemporaryDirectory() as folder:
        program = build(folder)
        for images in options.images.split(","):
            command = [str(program), "fp32", images, *options.sparsity.split(",")]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            lines = [json.loads(line) for line in done.stdout.splitlines()]
            isa = lines[0]["isa"]
            limits = [line for line in lines if "limit" in line]
            layers += [{"images": int(images), **line} for line in lines if "layer" in line]
    write_result("kernels", {"isa": isa, "limits": limits, "layers": layers})


if __name__ == "__main__":
    main()
