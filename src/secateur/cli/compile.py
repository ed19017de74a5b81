"""``secateur compile``."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import tyro

from secateur import deploy
from secateur.cli.console import PLAN_FILE, out, parse_sizes, print_json
from secateur.runtime import Engine


@dataclass(frozen=True)
class Compile:
    """Compile the pruned student of a run into a plan, which runs without torch.

    The network is run with every kernel for every layer on this machine, and the fastest is kept:
    compile where the plan will run.
    """

    run_folder: tyro.conf.Positional[Path]
    """Folder of a finished run."""
    out: Path | None = None
    """The plan file; by default student.plan in the run folder."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Type to store weights in; with fp16, layers also compute in it where the processor can."""
    batch: str = "1,16"
    """Batch sizes to choose kernels for."""
    threads: int | None = None
    """Threads to choose kernels for; by default all cores."""
    fallback: Literal["none", "torch"] = "none"
    """torch runs operators that a plan cannot hold in torch, which is then needed to run the plan."""
    test: bool = False
    """Also run the whole test split with torch and with the plan. Exit code 1 if they disagree."""
    data_dir: str | None = None
    """Where the data lie, for --test or a student of several inputs; by default where they lay in the run."""
    json: bool = False
    """Print JSON instead of tables."""

    def run(self) -> int:
        """Compile, save, and compare if asked to."""
        deployed = deploy.compile_run(
            self.run_folder,
            precision=self.precision,
            fallback=None if self.fallback == "none" else "torch",
            batches=parse_sizes("batch", self.batch),
            threads=self.threads,
            data_dir=self.data_dir,
        )
        path = self.out or self.run_folder / PLAN_FILE
        deployed.plan.save(path)
        size, n_nonzero = path.stat().st_size, deployed.plan.n_nonzero
        content: dict[str, object] = {
            "plan": str(path),
            "plan_bytes": size,
            "n_nonzero": n_nonzero,
            "layers": [asdict(layer) for layer in deployed.plan.layers()],
        }
        agreement = None
        if self.test:
            engine = Engine(deployed.plan, threads=self.threads)
            batches = deploy.test_batches(self.run_folder, self.data_dir)
            agreement = deploy.compare(deployed, engine, batches)
            content["test"] = asdict(agreement)
        if self.json:
            print_json(content)
        else:
            out.print(str(deployed.plan))
            each = f", {size / n_nonzero:.2f} for each weight that is not zero" if n_nonzero else ""
            out.print(f"plan  {path}, {size:,} bytes{each}")
            if agreement is not None:
                out.print(
                    f"test  {agreement.n_samples:,} samples: torch {agreement.accuracy_torch:.2%}, "
                    f"engine {agreement.accuracy_engine:.2%}, {len(agreement.differing)} classes differ; "
                    f"logits differ by at most {agreement.worst:.1e} of the largest"
                )
                for row in agreement.differing:
                    out.print(f"      sample {row['sample']}: torch {row['torch']}, engine {row['engine']}")
            rival = "onnxruntime" if find_spec("onnxruntime") else "torch"
            out.print(f"next  secateur time {shlex.quote(str(path))} --against {rival}")
        return 1 if agreement is not None and agreement.differing and self.precision == "fp32" else 0
