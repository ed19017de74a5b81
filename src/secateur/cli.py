"""The command line: the only place that prints, and that turns text into values."""

from __future__ import annotations

import json
import shlex
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Protocol

import tyro
from rich.console import Console
from rich.table import Column, Table

from secateur import cli_runtime
from secateur.checkpoint import inspect_checkpoint, verify_checkpoint
from secateur.config import RunConfig, Setup, SweepConfig, dump_config, load_config, run_id, unknown
from secateur.errors import InvalidArgument, RunError, SecateurError
from secateur.files import atomic_write, read_json
from secateur.launch import launch, launch_sweep
from secateur.progress import Watcher
from secateur.report import render_comparison, render_run, render_sweep
from secateur.runs import RunFolder

out = Console(highlight=False, markup=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)

LABELS = {
    "teacher": "teacher",
    "dense": "dense student",
    "cut": "after the cut",
    "batchnorm": "after BatchNorm re-estimation",
    "recovered": "recovered on labels",
    "recovered_kd": "recovered with the teacher",
}
"""What each accuracy is called in a table."""


class Command(Protocol):
    """One subcommand: its fields are its flags."""

    def run(self) -> int:
        """Do it; returns the exit code."""
        ...


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
        path = self.out or Path("runs") / run_id(self.config)
        folder = _claim(path, self.config, resume=self.resume)
        result = launch(self.config, folder, Watcher(None if self.json else err))
        if self.json:
            _print_json(result)
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
            f"file {sizes['dense'] / sizes['sparse']:.1f} times smaller ({sizes['sparse'] / 1e3:,.0f} kB)"
        )
        out.print(f"report      {path / 'report.html'}")
        out.print(f"checkpoint  {path / 'student.safetensors'}")
        out.print(f"result      {path / 'result.json'}")
        out.print(f"next        secateur verify {path}")
        out.print(f"            {_suggested_sweep(self.config.setup, path)}")
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
        folder = _claim(path, config, resume=self.resume)
        content = launch_sweep(config, folder, Watcher(None if self.json else err))
        if self.json:
            _print_json(content)
            return 0
        table = Table("alpha", "sparsity", "after the cut", "after BatchNorm", title="accuracy on validation")
        for row in content["rows"]:
            cells = (row["alpha"], row["sparsity"])
            table.add_row(
                *("" if c is None else f"{c:g}" for c in cells),
                *map(_percent, (row["cut"], row["batchnorm"])),
            )
        out.print(table)
        out.print(f"dense student {content['dense_accuracy']:.2%}; report {path / 'report.html'}")
        return 0


@dataclass(frozen=True)
class Report:
    """Draw the report of a finished run or sweep, or of several runs side by side."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders."""
    out: Path | None = None
    """HTML file; by default report.html in the run folder, or comparison.html here for several runs."""

    def run(self) -> int:
        """Draw, and say where."""
        contents = [_content(path) for path in self.runs]
        if not contents:
            raise InvalidArgument("report needs at least one run folder.")
        if len(contents) > 1:
            page, default = render_comparison(contents), Path("comparison.html")
        elif contents[0].get("format") == "secateur-sweep":
            page, default = render_sweep(contents[0]), self.runs[0] / "report.html"
        else:
            page, default = render_run(contents[0]), self.runs[0] / "report.html"
        atomic_write(self.out or default, page)
        out.print(f"report {self.out or default}")
        return 0


@dataclass(frozen=True)
class Inspect:
    """Show what a checkpoint holds: size, sparsity and coding of every tensor."""

    file: tyro.conf.Positional[Path]
    """A checkpoint, or the run folder that holds one."""
    json: bool = False
    """Print JSON."""

    def run(self) -> int:
        """Print the table."""
        found = inspect_checkpoint(_checkpoint(self.file))
        if self.json:
            _print_json(found.to_dict())
            return 0
        table = Table(Column("tensor", overflow="fold"), "shape", "type", "density", "coding", "bytes")
        for row in found.rows:
            shape = " × ".join(map(str, row.shape)) or "scalar"
            table.add_row(row.name, shape, row.dtype, f"{row.density:.4f}", row.coding, f"{row.size_bytes:,}")
        out.print(table)
        out.print(
            f"{found.kind} checkpoint, {found.size_bytes:,} bytes; "
            f"dense it would be {found.dense_size_bytes:,}: {found.ratio:.2f} times larger"
        )
        if found.sparsity is not None and found.sparsity_all is not None:
            asked = "not recorded" if found.sparsity_asked is None else f"{found.sparsity_asked:g}"
            out.print(
                f"sparsity {found.sparsity:.6f} of the prunable weights (asked: {asked}), "
                f"{found.sparsity_all:.6f} of all parameters"
            )
            out.print(f"mask digest {found.mask_digest}")
        return 0


@dataclass(frozen=True)
class Verify:
    """Check a checkpoint: asked against achieved sparsity, digest, zeros really zero. Exit code 1 if not."""

    file: tyro.conf.Positional[Path]
    """A checkpoint, or the run folder that holds one."""
    json: bool = False
    """Print JSON."""

    def run(self) -> int:
        """Print the checks."""
        found = verify_checkpoint(_checkpoint(self.file))
        if self.json:
            _print_json(found.to_dict())
        else:
            for check in found.checks:
                out.print(f"{'ok  ' if check.ok else 'FAIL'}  {check.name}: {check.detail}")
        return 0 if found.ok else 1


COMMANDS: dict[str, type[Command]] = {
    "prune": Prune,
    "sweep": Sweep,
    "report": Report,
    "inspect": Inspect,
    "verify": Verify,
    **cli_runtime.COMMANDS,
}

USAGE = """secateur: prune a trained PyTorch network in one cut, guided by a teacher

usage: secateur COMMAND [options]        secateur COMMAND --help

commands:
  prune     train or load teacher and student, score, cut, recover, save, report
  sweep     one scoring pass, many cuts: alphas and sparsities side by side
  report    draw the report of a run, a sweep, or several runs together
  inspect   what a checkpoint holds
  verify    is a checkpoint what it says it is
  compile   the student of a run as a plan: a file that runs fast, without torch
  time      how fast a plan runs, beside other engines
  bench     runtime: networks × batch sizes × sparsities, beside other engines

first try:  secateur prune --data digits --sparsity 0.9 --out runs/first
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments without the program's name; by default those of the process.

    Returns:
        0 if all is well, 1 if the work failed or a check did not hold, 2 if the command was wrong.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        out.print(USAGE)
        return 0 if arguments else 2
    if arguments[0] == "--version":
        out.print(f"secateur {version('secateur')}")
        return 0
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return _parse(arguments[0], arguments[1:]).run()
    except InvalidArgument as error:
        err.print(f"error: {error}")
        return 2
    except SecateurError as error:
        err.print(f"error: {error}")
        return 1
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        err.print("stopped; the same command with --resume goes on from the last finished epoch.")
        return 130


def parse_values(name: str, text: str) -> tuple[float, ...]:
    """Numbers from ``0.8,0.9`` or from ``START:STOP:STEP``, exact in decimals, both ends included.

    Raises:
        InvalidArgument: if the text is neither.
    """
    try:
        if ":" in text:
            start, stop, step = (Fraction(part) for part in text.split(":"))
            if step <= 0 or stop < start:
                raise ValueError
            return tuple(float(start + i * step) for i in range(int((stop - start) / step) + 1))
        return tuple(float(Fraction(part)) for part in text.split(","))
    except (ValueError, ZeroDivisionError) as error:
        raise InvalidArgument(
            f"--{name} takes numbers such as 0.8,0.9 or a rising range START:STOP:STEP, got {text!r}."
        ) from error


def _parse(name: str, arguments: list[str]) -> Command:
    """The command with its flags, over the values of a ``--config`` file if one is given."""
    if name == "bench" and arguments:
        name, arguments = f"{name} {arguments[0]}", arguments[1:]
    if name not in COMMANDS:
        raise InvalidArgument(unknown("command", name, COMMANDS))
    kind = COMMANDS[name]
    default: Command | None = None
    if kind in (Prune, Sweep):
        path, arguments = _take_config(arguments)
        if path is not None:
            default = (
                Prune(load_config(path, RunConfig))
                if kind is Prune
                else Sweep.of(load_config(path, SweepConfig))
            )
    program, style = f"secateur {name}", (tyro.conf.FlagCreatePairsOff,)
    if default is None:
        return tyro.cli(kind, args=arguments, prog=program, config=style)
    return tyro.cli(kind, args=arguments, prog=program, config=style, default=default)


def _take_config(arguments: list[str]) -> tuple[str | None, list[str]]:
    """The file of ``--config FILE`` or ``--config=FILE``, and the other arguments."""
    for place, argument in enumerate(arguments):
        flag, equals, path = argument.partition("=")
        if flag == "--config":
            rest = arguments[place + 1 :]
            if not equals and not rest:
                raise InvalidArgument("--config needs a YAML file.")
            return (path, arguments[:place] + rest) if equals else (rest[0], arguments[:place] + rest[1:])
    return None, arguments


def _suggested_sweep(setup: Setup, path: Path) -> str:
    """A sweep over the networks of a finished run, with those that it trained read from its folder."""
    flags = {"data": setup.dataset.data, "data-dir": setup.dataset.data_dir, "student": setup.student}
    flags["student-weights"] = setup.student_weights or str(path / "dense.safetensors")
    if (path / "teacher.safetensors").exists() or setup.teacher_weights:
        flags["teacher"] = setup.teacher
        flags["teacher-weights"] = setup.teacher_weights or str(path / "teacher.safetensors")
    words = [f"--{name} {shlex.quote(value)}" for name, value in flags.items() if value is not None]
    return " ".join(["secateur sweep", *words, "--alpha 0:1:0.1"])


def _claim(path: Path, config: RunConfig | SweepConfig, *, resume: bool) -> RunFolder:
    return RunFolder.create(path, run_id=run_id(config), config=dump_config(config), resume=resume)


def _checkpoint(path: Path) -> Path:
    """A checkpoint file, or the one in a run folder."""
    return path / "student.safetensors" if path.is_dir() else path


def _content(path: Path) -> dict[str, Any]:
    """The result or sweep that a run folder holds.

    Raises:
        RunError: if it holds neither.
    """
    for name in ("result.json", "sweep.json"):
        if (path / name).is_file():
            return read_json(path / name)
    raise RunError(f"{str(path)!r} holds no result.json or sweep.json; is it the folder of a finished run?")


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def _print_json(content: object) -> None:
    out.print(json.dumps(content, indent=2, allow_nan=False))


def _show_warning(message: Warning | str, *_: object) -> None:
    err.print(f"warning: {message}")
