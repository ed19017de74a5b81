"""``secateur time``, which needs no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.table import Column, Table

from secateur.cli.console import PLAN_FILE, err, out, parse_names, print_json
from secateur.errors import InvalidArgument, PlanError
from secateur.runtime import Engine, Plan, read_plan
from secateur.runtime.timing import Timing, random_inputs, time_plan


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
        if self.batch < 1 or not 0 < self.seconds < math.inf:
            raise InvalidArgument("--batch must be at least 1, and --seconds more than 0 and finite.")
        plan = _plan(self.plan)
        against = parse_names(self.against)
        inputs = random_inputs(plan, batch=self.batch)
        timings = time_plan(plan, inputs, threads=self.threads, against=against, seconds=self.seconds)
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
            out.print(_table(timings))
            out.print("× says how many times longer than the plan.")
        return 1 if failed else 0


def _table(timings: Sequence[Timing]) -> Table:
    """The times that mean something, that of the plan first."""
    names = ("engine", "version", "median ms", "p95 ms", "samples/s", "×", "difference")
    table = Table(*(Column(name, overflow="fold") for name in names))
    for t in timings:
        if t.agrees:
            table.add_row(
                t.name,
                t.version,
                f"{1e3 * t.median_s:.3f}",
                f"{1e3 * t.p95_s:.3f}",
                f"{t.per_second:,.0f}",
                "" if t is timings[0] else f"{t.median_s / timings[0].median_s:.2f}",
                f"{t.difference:.0e}",
            )
    return table


def _plan(path: Path) -> Plan:
    """The plan that a file holds.

    Raises:
        PlanError: as `read_plan` does; for a folder, saying which file of it to give, or how to make one.
    """
    if path.is_dir():
        inside = path / PLAN_FILE
        fix = (
            f"Give its plan: {inside}" if inside.is_file() else f"Make a plan first: secateur compile {path}"
        )
        raise PlanError(f"{str(path)!r} is a folder, not a plan. {fix}")
    return read_plan(path)
