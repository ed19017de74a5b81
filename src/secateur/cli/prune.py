"""``secateur prune`` and ``secateur sweep``."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Table

from secateur.cli.console import compared, err, out, parse_values, percent, print_json
from secateur.config import RunConfig, Setup, SweepConfig, dump_config, run_id
from secateur.launch import launch, launch_sweep
from secateur.progress import Watcher
from secateur.runs import RunFolder
from secateur.suggestions import after_run

LABELS = {
    "teacher": "teacher",
    "dense": "dense student",
    "cut": "after the cut",
    "batchnorm": "after BatchNorm re-estimation",
    "recovered": "recovered on labels",
    "recovered_kd": "recovered with the teacher",
}
"""What each accuracy is called in a table."""


@dataclass(frozen=True)
class Prune:
    """Prune a trained student in one cut, recover it, save it small, and report.

    Without weights, teacher and student are trained first. Options can also come from a YAML file
    (--config FILE, such as the config.yaml of another run); flags given besides it win.
    """

    config: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)
    out: Path | None = None
    """Run folder, new or empty; by default runs/<run id>."""
    resume: bool = False
    """Go on with the run in the folder instead of refusing it."""
    json: bool = False
    """Print the content of result.json and nothing else."""

    def run(self) -> int:
        """Run, and say where things lie."""
        config = self.config.resolved()
        path = self.out or Path("runs") / run_id(config)
        with _claimed(path, config, resume=self.resume) as folder:
            result = launch(config, folder, Watcher(None if self.json else err))
        if self.json:
            print_json(result)
            return 0
        accuracies = Table("accuracy on the test split", "")
        for name, label in LABELS.items():
            if result["accuracy"][name] is not None:
                accuracies.add_row(label, f"{result['accuracy'][name]:.2%}")
        out.print(accuracies)
        achieved, sizes = result["sparsity"], result["size_bytes"]
        out.print(
            f"sparsity {achieved['prunable']:.4f} of {result['n_prunable']:,} prunable weights "
            f"({achieved['all']:.4f} of all parameters); "
            f"file {compared(sizes['sparse'] / sizes['dense'], 1)} ({sizes['sparse'] / 1e3:,.0f} kB)"
        )
        n_steps, seconds = sum(row["n_steps"] for row in result["stages"]["rows"]), result["seconds"]
        if n_steps:
            out.print(f"{n_steps} calibration steps in {seconds['calibration']:.1f} s, without labels")
        out.print(f"report      {path / 'report.html'}")
        out.print(f"checkpoint  {path / 'student.safetensors'}")
        out.print(f"result      {path / 'result.json'}")
        for number, command in enumerate(after_run(config, result, path)):
            out.print(f"{'' if number else 'next':<12}{command.text}")
        return 0


@dataclass(frozen=True)
class Sweep:
    """Score once, then cut at many alphas and sparsities. Nothing is trained after the cuts.

    Each cut is tried on the validation split, before and after BatchNorm re-estimation. Lists are
    written 0.8,0.9,0.95 or as a range START:STOP:STEP with both ends included. Options can also come
    from the config.yaml of another sweep (--config FILE); flags given besides it win.
    """

    setup: Annotated[Setup, tyro.conf.arg(name="")] = field(default_factory=Setup)
    alpha: str | None = None
    """Weights of the task term to try, such as 0:1:0.1; left out, the criterion's own alpha is used."""
    sparsity: str = "0.5,0.8,0.9,0.95"
    """Fractions of the prunable weights to remove."""
    out: Path | None = None
    """Run folder, new or empty; by default runs/sweep-<run id>."""
    resume: bool = False
    """Go on with the sweep in the folder instead of refusing it."""
    json: bool = False
    """Print the content of sweep.json and nothing else."""

    @classmethod
    def of(cls, config: SweepConfig) -> Sweep:
        """The flags that make `config`."""
        lists = [",".join(map(repr, values)) for values in (config.alphas, config.sparsities)]
        return cls(config.setup, lists[0] or None, lists[1])

    def run(self) -> int:
        """Run, and print the table."""
        alphas = parse_values("alpha", self.alpha) if self.alpha is not None else ()
        config = SweepConfig(self.setup, alphas, parse_values("sparsity", self.sparsity))
        path = self.out or Path("runs") / f"sweep-{run_id(config)}"
        with _claimed(path, config, resume=self.resume) as folder:
            content = launch_sweep(config, folder, Watcher(None if self.json else err))
        if self.json:
            print_json(content)
            return 0
        table = Table("alpha", "sparsity", "after the cut", "after BatchNorm", title="accuracy on validation")
        for row in content["rows"]:
            cells = (row["alpha"], row["sparsity"])
            table.add_row(
                *("" if c is None else f"{c:g}" for c in cells),
                *map(percent, (row["cut"], row["batchnorm"])),
            )
        out.print(table)
        out.print(f"dense student {content['dense_accuracy']:.2%}; report {path / 'report.html'}")
        return 0


def _claimed(
    path: Path, config: RunConfig | SweepConfig, *, resume: bool
) -> AbstractContextManager[RunFolder]:
    return RunFolder.claimed(path, run_id=run_id(config), config=dump_config(config), resume=resume)
