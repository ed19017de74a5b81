"""``secateur bench runtime``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.table import Table

from secateur import deploy
from secateur.cli.console import err, out, parse_names, parse_sizes, parse_values, print_json
from secateur.errors import InvalidArgument
from secateur.files import write_json
from secateur.progress import Watcher
from secateur.runtime.bench import Grid, run_grid, summary
from secateur.runtime.zoo import ZOO


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
        if not (grid.models or self.runs):
            raise InvalidArgument("there is nothing to time: name --models, or folders with --runs.")
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
