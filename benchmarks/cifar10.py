"""A real run: ResNet-56 teaching ResNet-20 on CIFAR-10 at 80 and 90 % zeros, recovered with and without KD.

Runs the command line itself, once a cell, in run folders that a killed benchmark goes on from. About
seven minutes a cell on two cores with bf16.

    python cifar10.py --data-dir PARQUET_FOLDER --weights FOLDER_OF_resnet{20,56}-cifar10.safetensors
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from common import parser, write_result

CRITERIA = ("teacher-guided", "magnitude", "task-gradient")
SPARSITIES = (0.9, 0.8)
EPOCHS = 4
RECIPE = {
    "--batchnorm": "plain",  # measured before benchmarks/batchnorm.py showed that augmented images are better
    "--recovery.epochs": EPOCHS,
    "--recovery.lr": 0.05,
    "--recovery.weight-decay": 1e-4,  # that of the pretrained weights
    "--recovery.teacher-views": 2,
}


def main() -> None:
    """Run every cell that is not there yet, and write the table after each."""
    arguments = parser(__doc__)
    arguments.add_argument("--data-dir", required=True)
    arguments.add_argument("--weights", type=Path, required=True)
    arguments.add_argument("--runs", type=Path, default=Path("runs/cifar10"))
    options = arguments.parse_args()
    cells = []
    for criterion in CRITERIA:
        for sparsity in SPARSITIES:
            result = run(criterion, sparsity, options.data_dir, options.weights, options.runs)
            cells.append(summary(result))
            write_result("cifar10_resnet20", {"recipe": RECIPE, "recover": "both", "cells": cells})


def run(criterion: str, sparsity: float, data_dir: str, weights: Path, runs: Path) -> dict:
    """One cell, by the command line; a finished one is read from its folder."""
    out = runs / f"{criterion}-{sparsity}"
    flags = [
        *("--data", "cifar10", "--data-dir", data_dir, "--criterion", criterion),
        *("--teacher", "resnet56", "--teacher-weights", str(weights / "resnet56-cifar10.safetensors")),
        *("--student", "resnet20", "--student-weights", str(weights / "resnet20-cifar10.safetensors")),
        *("--sparsity", str(sparsity), "--recover", "both", "--out", str(out), "--resume"),
        *(str(part) for pair in RECIPE.items() for part in pair),
    ]
    subprocess.run([sys.executable, "-m", "secateur", "prune", *flags], check=True)
    return json.loads((out / "result.json").read_text())


def summary(result: dict) -> dict:
    """The part of a result that the tables show."""
    return {
        "criterion": result["criterion"]["name"],
        "sparsity": result["sparsity"],
        "accuracy": result["accuracy"],
        "seconds": result["seconds"],
        "size_bytes": result["size_bytes"],
        "mask_digest": result["mask_digest"],
        "run_id": result["run_id"],
        "commit": result["commit"],
        "hardware": result["hardware"],
        "seed": result["seed"],
    }


if __name__ == "__main__":
    main()
