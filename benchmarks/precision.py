"""What storing weights in 16 bits changes: really pruned networks on their whole test set.

python precision.py --run RUN [--run RUN …] [--data-dir FOLDER]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any, Literal

from common import write_result

from secateur import deploy
from secateur.files import read_json
from secateur.runtime import Engine, load

PRECISIONS: tuple[Literal["fp32", "bf16", "fp16"], ...] = ("fp32", "bf16", "fp16")


def measured(run: Path, data_dir: str | None, folder: Path) -> list[dict[str, Any]]:
    """A row for each precision: size of the plan, accuracy, and how far its outputs lie from torch's."""
    rows: list[dict[str, Any]] = []
    batches = deploy.test_batches(run, data_dir)
    for precision in PRECISIONS:
        deployed = deploy.compile_run(run, precision=precision, fallback=None, batches=[16], threads=None)
        path = folder / f"{precision}.plan"
        deployed.plan.save(path)
        engine: Engine = load(path)
        found = deploy.compare(deployed, engine, batches)
        rows.append(
            {
                "run": run.name,
                "sparsity": read_json(run / "result.json")["sparsity"]["asked"],
                "precision": precision,
                "plan_bytes": path.stat().st_size,
                "n_nonzero": deployed.plan.n_nonzero,
                "n_samples": found.n_samples,
                "accuracy_torch": found.accuracy_torch,
                "accuracy_engine": found.accuracy_engine,
                "n_differing": len(found.differing),
                "worst": found.worst,
                "isa": engine.isa,
            }
        )
    return rows


def main() -> None:
    """Measure every run and write the results file."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--run", type=Path, action="append", required=True, help="run folder; repeatable")
    arguments.add_argument("--data-dir", help="where the data lie now; by default where they lay in the run")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for run in options.run for row in measured(run, options.data_dir, Path(folder))]
    write_result("precision", {"rows": rows})


if __name__ == "__main__":
    main()
