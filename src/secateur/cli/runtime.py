"""``secateur compile``, ``secateur time`` and ``secateur bench runtime``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.table import Table

from secateur import deploy
from secateur.cli.console import err, out, parse_names, parse_sizes, parse_values, print_json
from secateur.errors import InvalidArgument, PlanError
from secateur.files import write_json
from secateur.progress import Watcher
from secateur.runtime import Engine, Plan, read_plan
from secateur.runtime.bench import Grid, run_grid, summary
from secateur.runtime.timing import random_inputs, time_plan
from secateur.runtime.zoo import ZOO

_PLAN = "student.plan"


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
        path = self.out or self.run_folder / _PLAN
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
            out.print(
                f"plan  {path}, {size:,} bytes, {size / n_nonzero:.2f} for each weight that is not zero"
            )
            if agreement is not None:
                out.print(
                    f"test  {agreement.n_samples:,} samples: torch {agreement.accuracy_torch:.2%}, "
                    f"engine {agreement.accuracy_engine:.2%}, {len(agreement.differing)} classes differ; "
                    f"logits differ by at most {agreement.worst:.1e} of the largest"
                )
                for row in agreement.differing:
                    out.print(f"      sample {row['sample']}: torch {row['torch']}, engine {row['engine']}")
            out.print(f"next  secateur time {path} --against onnxruntime")
        return 1 if agreement is not None and agreement.differing and self.precision == "fp32" else 0


@dataclass(frozen=True)
class Time:
    """Time a plan: median, 95th percentile and throughput, beside other engines if asked to.

    All engines run the same network on the same random input with the same number of threads, in
    turn, after warming up. Outputs are compared before any time is printed; exit code 1 if they
    differ by more than the precision of an engine allows.
    """

    plan: tyro.conf.Positional[Path]
    """A plan file."""
    against: str = ""
    """Other engines, between commas: onnxruntime, openvino (in fp32), openvino-default, torch,
    torch.compile, mnn, mnn-sparse."""
    batch: int = 1
    """Batch size."""
    threads: int | None = None
    """Threads of every engine; by default all cores."""
    seconds: float = 2.0
    """Time for each engine."""
    json: bool = False
    """Print JSON."""

    def run(self) -> int:
        """Print the table."""
        if self.batch < 1 or self.seconds <= 0:
            raise InvalidArgument("--batch must be at least 1 and --seconds more than 0.")
        plan = _plan(self.plan)
        names = parse_names(self.against)
        inputs = random_inputs(plan, batch=self.batch)
        timings = time_plan(plan, inputs, threads=self.threads, against=names, seconds=self.seconds)
        failed = [t for t in timings if not t.agrees]
        if self.json:
            rows = [t.to_dict() for t in timings]
            threads = Engine(plan, threads=self.threads).threads
            print_json({"batch": self.batch, "threads": threads, "timings": rows})
        for t in failed:
            err.print(
                f"outputs of {t.name} differ by {t.difference:.1e} of the largest: its time means nothing."
            )
        if not self.json:
            table = Table("engine", "version", "median ms", "p95 ms", "samples/s", "×", "difference")
            for t in timings:
                if t.agrees:
                    numbers = (1e3 * t.median_s, 1e3 * t.p95_s)
                    ratio = "" if t is timings[0] else f"{t.median_s / timings[0].median_s:.2f}"
                    cells = (
                        *(f"{x:.3f}" for x in numbers),
                        f"{t.per_second:,.0f}",
                        ratio,
                        f"{t.difference:.0e}",
                    )
                    table.add_row(t.name, t.version, *cells)
            out.print(table)
            out.print("× says how many times longer than the plan.")
        return 1 if failed else 0


def _plan(path: Path) -> Plan:
    """The plan that a file holds.

    Raises:
        PlanError: as `read_plan` does; for a folder, saying which file of it to give, or how to make one.
    """
    if path.is_dir():
        inside = path / _PLAN
        fix = (
            f"Give its plan: {inside}" if inside.is_file() else f"Make a plan first: secateur compile {path}"
        )
        raise PlanError(f"{str(path)!r} is a folder, not a plan. {fix}")
    return read_plan(path)


@dataclass(frozen=True)
class BenchRuntime:
    """Time networks of several kinds, batch sizes and sparsities, beside other engines.

    Weights and masks are random, the first layer is dense; the students of runs have theirs. Every
    cell is measured once and kept as a file: a command that was stopped goes on where it was.
    """

    out: Path = Path("runs/bench-runtime")
    """Folder for the cells, new or to go on in."""
    models: str = ",".join(ZOO)
    """Networks, by name; may be empty."""
    runs: str = ""
    """Folders of finished runs, between commas: their students too, really pruned."""
    batch: str = "1,16"
    """Batch sizes."""
    sparsity: str = "0.8,0.9,0.95,0.98"
    """Fractions of the weights that are zero."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the plans, see `secateur compile --help`."""
    against: str = "onnxruntime"
    """Other engines, see `secateur time --help`."""
    threads: int = 2
    """Threads of every engine."""
    seconds: float = 2.0
    """Time for each engine in each cell."""
    json: bool = False
    """Print JSON."""

    def run(self) -> int:
        """Measure what is not measured yet, and print the table."""
        grid = Grid(
            models=parse_names(self.models),
            batches=parse_sizes("batch", self.batch),
            sparsities=parse_values("sparsity", self.sparsity),
            precision=self.precision,
            against=parse_names(self.against),
            threads=self.threads,
            seconds=self.seconds,
        )
        networks = [deploy.network_of_run(Path(name)) for name in parse_names(self.runs)]
        watcher = Watcher(None if self.json else err)
        cells = list(watcher.track(run_grid(grid, self.out, pruned_networks=networks), "cells"))
        rows = summary(cells)
        write_json(self.out / "summary.json", {"rows": rows})
        if self.json:
            print_json(rows)
        else:
            table = Table("network", "batch", "zeros", "ms", *(f"× {name}" for name in grid.against))
            for row in rows:
                ratios = (f"{row['times_faster'][name]:.2f}" for name in grid.against)
                numbers = (str(row["batch"]), f"{row['sparsity']:.0%}", f"{row['ms']:.3f}")
                table.add_row(row["model"], *numbers, *ratios)
            out.print(table)
            out.print("× says how many times longer the other engine takes.")
        return 0 if all(row["agrees"] for row in rows) else 1
