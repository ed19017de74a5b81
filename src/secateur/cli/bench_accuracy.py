"""``secateur bench accuracy``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from secateur.arena import (
    Suite,
    SuiteFolder,
    collect,
    load_suite,
    merge,
    narrowed,
    run_in_parallel,
    run_suite,
    suite_names,
)
from secateur.cli.console import err, out, parse_names, parse_sizes, parse_values, percent, print_json
from secateur.errors import InvalidArgument, SuiteError
from secateur.progress import Watcher
from secateur.report.arena.grid import Grid
from secateur.report.arena.schema import STAGES, read_suite


@dataclass(frozen=True)
class BenchAccuracy:
    """Run a grid of methods × sparsities × seeds under one budget, and draw its report.

    Every cell is run once and kept as a file: a command that was stopped goes on where it was, with the
    cell in progress. Cells spread over processes with --jobs, and over machines with --shard; --merge
    then brings the folders together.
    """

    suite: str = "digits-quick"
    """A suite of the package (--list shows them), or a YAML file."""
    out: Path | None = None
    """Folder of the suite, new or to go on in; by default runs/bench-<suite>."""
    list: bool = False
    """Show the suites and stop."""
    methods: str | None = None
    """Only these methods, by key: a,b,c."""
    sparsity: str | None = None
    """Only these sparsities: 0.8,0.9."""
    seeds: str | None = None
    """Only these seeds: 0,1."""
    epochs: int | None = None
    """Training budget in epochs instead of the suite's; makes other cells."""
    data_dir: str | None = None
    """Folder with the data, see `secateur prune --help`."""
    student_weights: str | None = None
    """Trained weights of the student; trained here, once a seed, when left out."""
    teacher_weights: str | None = None
    """Trained weights of the teacher; trained here, once a seed, when left out."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    jobs: int = 1
    """Processes that work on the grid at once."""
    shard: str = "1/1"
    """I/N: take every N-th cell beginning with the I-th, for the I-th of N machines."""
    merge: tuple[Path, ...] | None = None
    """Folders or collected suite.json files to take finished cells from; nothing is run then."""
    json: bool = False
    """Print the content of suite.json and nothing else; with --list, names and descriptions."""

    def run(self) -> int:
        """Run what is missing, collect, and print the table."""
        if self.list:
            suites = {name: load_suite(name).description for name in suite_names()}
            if self.json:
                print_json(suites)
                return 0
            width = max(map(len, suites))
            for name, description in suites.items():
                out.print(f"{name:<{width}}  {description}")
            return 0
        whole = self._suite()
        part = self._part(whole)
        watcher = Watcher(None if self.json else err)
        folder = SuiteFolder.open(self.out or Path("runs") / f"bench-{whole.name}", whole)
        failed = None
        if self.merge is not None:
            if not self.merge:
                raise InvalidArgument(
                    "--merge needs folders or suite.json files to take cells from, got none."
                )
            watcher.say(f"{merge(whole, folder, self.merge)} new cells")
        else:
            failed = self._run_cells(part, folder, watcher)
        content = collect(whole, folder)
        if self.json:
            print_json(content)
        else:
            out.print(_table(content))
            n_cells = f"{len(content['cells'])} of {content['n_planned']} cells"
            out.print(f"{n_cells}; report {folder.path / 'report.html'}")
        if failed is not None:
            raise failed
        return 0

    def _run_cells(self, part: Suite, folder: SuiteFolder, watcher: Watcher) -> SuiteError | None:
        """Run them; what is to be said of those that failed, after what the others found was shown."""
        shard, device = parse_shard(self.shard), self.device
        try:
            if self.jobs == 1:
                run_suite(part, folder, device=device, shard=shard, watcher=watcher)
            else:
                run_in_parallel(part, folder, jobs=self.jobs, device=device, shard=shard, watcher=watcher)
        except SuiteError as error:
            return error
        return None

    def _suite(self) -> Suite:
        suite = load_suite(self.suite)
        dataset = replace(suite.dataset, data_dir=self.data_dir or suite.dataset.data_dir)
        if self.epochs is not None:
            if suite.recovery is None:
                raise InvalidArgument(f"suite {suite.name!r} trains nothing, so --epochs does not apply.")
            suite = replace(suite, recovery=replace(suite.recovery, epochs=self.epochs))
        return replace(
            suite,
            dataset=dataset,
            student_weights=self.student_weights or suite.student_weights,
            teacher_weights=self.teacher_weights or suite.teacher_weights,
        )

    def _part(self, suite: Suite) -> Suite:
        methods = () if self.methods is None else parse_names(self.methods)
        if self.methods is not None and not methods:
            raise InvalidArgument(
                f"--methods takes keys such as a,b,c, got {self.methods!r}. Or leave it out."
            )
        return narrowed(
            suite,
            methods=methods,
            sparsities=() if self.sparsity is None else parse_values("sparsity", self.sparsity),
            seeds=() if self.seeds is None else parse_sizes("seeds", self.seeds, least=0),
        )


def parse_shard(text: str) -> tuple[int, int]:
    """``I/N`` as two integers.

    Raises:
        InvalidArgument: if the text is something else.
    """
    first, slash, count = text.partition("/")
    if not (slash and first.isdigit() and count.isdigit()):
        raise InvalidArgument(f"--shard takes I/N such as 2/8, got {text!r}.")
    return int(first), int(count)


def _table(content: dict[str, Any]) -> Table:
    """Mean accuracy of each method at each sparsity, at the stage that the report goes by."""
    grid = Grid(read_suite(content))
    title = f"test accuracy {STAGES[grid.final]}, mean over seeds"
    table = Table("method", *(f"{s:g}" for s in grid.sparsities), title=title)
    for method in grid.methods:
        found = [grid.accuracy(method.key, grid.final, sparsity) for sparsity in grid.sparsities]
        if any(found):
            table.add_row(method.label, *(percent(None if e is None else e.mean) for e in found))
    return table
