"""The commands by name, how their flags are read, and how what went wrong is told."""

from __future__ import annotations

import pkgutil
import warnings
from contextlib import suppress
from importlib.metadata import version

import tyro

from secateur.cli.console import Command, err, out
from secateur.cli.stopping import STOPPED, stopped_at_once
from secateur.errors import InvalidArgument, SecateurError
from secateur.values import unknown

COMMANDS = {
    "prune": "prune:Prune",
    "sweep": "prune:Sweep",
    "report": "report:Report",
    "inspect": "files:Inspect",
    "verify": "files:Verify",
    "compile": "compile:Compile",
    "time": "time:Time",
    "bench accuracy": "bench_accuracy:BenchAccuracy",
    "bench runtime": "bench_runtime:BenchRuntime",
}
"""Where the commands stand in this package. Only the one that is asked for is imported: most need torch,
which takes seconds."""

_RESUMED = (
    "the same command with --resume goes on from the last finished epoch of training; "
    "a cut, also one in stages, begins anew."
)
AFTER_STOP = {
    "prune": _RESUMED,
    "sweep": _RESUMED,
    "bench accuracy": "the same command goes on where it was, with the cells in progress.",
    "bench runtime": "the same command goes on after the last finished cell.",
}
"""What is left of commands that were stopped; nothing of the others."""

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
  bench     accuracy: methods × sparsities × seeds under one budget, with its report
            runtime: networks × batch sizes × sparsities, beside other engines

first try:  secateur prune --data digits --sparsity 0.9 --out runs/first
"""

BENCH_USAGE = """usage: secateur bench accuracy [options]        secateur bench accuracy --help
       secateur bench runtime [options]         secateur bench runtime --help

commands:
  accuracy  methods × sparsities × seeds under one budget, with its report
  runtime   networks × batch sizes × sparsities, beside other engines
"""


def run(arguments: list[str]) -> int:
    """The exit code of one command, see `secateur.cli.main`; what went wrong is told.

    Raises:
        BrokenPipeError: if nobody reads any more what the command prints.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        out.print(USAGE)
        return 0 if arguments else 2
    if arguments[0] == "--version":
        out.print(f"secateur {version('secateur')}")
        return 0
    name, flags = _split(arguments)
    if name in ("bench", "bench -h", "bench --help"):
        out.print(BENCH_USAGE)
        return 2 if name == "bench" else 0
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return _parse(name, flags).run()
    except InvalidArgument as error:
        return _tell(f"error: {error}", code=2)
    except SecateurError as error:
        return _tell(f"error: {error}", code=1)
    except MemoryError as error:
        return _tell(
            f"error: there is not enough memory: {error}. Take smaller batches or fewer inputs.", code=1
        )
    except KeyboardInterrupt:
        return _tell(f"stopped; {AFTER_STOP[name]}" if name in AFTER_STOP else "stopped.", code=STOPPED)


def _tell(message: str, *, code: int) -> int:
    """Print how a command ended; `code`, whether or not anybody reads that."""
    with suppress(BrokenPipeError):
        err.print(message)
    return code


def _split(arguments: list[str]) -> tuple[str, list[str]]:
    """The name of the command, of one word or two, and its flags."""
    n_words = 2 if arguments[0] == "bench" else 1
    return " ".join(arguments[:n_words]), arguments[n_words:]


def _parse(name: str, arguments: list[str]) -> Command:
    """The command with its flags, over the values of a ``--config`` file if one is given."""
    first, _, second = name.partition(" ")
    if second.startswith("-"):
        raise InvalidArgument(f"{first} needs to know which: accuracy or runtime, before {second}.")
    if name not in COMMANDS:
        raise InvalidArgument(unknown("command", name, COMMANDS))
    kind = command_class(name)
    default: Command | None = None
    if name in ("prune", "sweep"):
        path, arguments = _take_config(arguments)
        default = None if path is None else _configured(name, path)
    program, style = f"secateur {name}", (tyro.conf.FlagCreatePairsOff,)
    if default is None:
        return tyro.cli(kind, args=arguments, prog=program, config=style)
    return tyro.cli(kind, args=arguments, prog=program, config=style, default=default)


def command_class(name: str) -> type[Command]:
    """The class behind a key of `COMMANDS`."""
    with stopped_at_once():
        return pkgutil.resolve_name(f"secateur.cli.{COMMANDS[name]}")


def _configured(name: str, path: str) -> Command:
    """``prune`` or ``sweep`` with the values of a file."""
    from secateur.cli.prune import Prune, Sweep
    from secateur.config import RunConfig, SweepConfig, load_config

    return (
        Prune(load_config(path, RunConfig)) if name == "prune" else Sweep.of(load_config(path, SweepConfig))
    )


def _take_config(arguments: list[str]) -> tuple[str | None, list[str]]:
    """The file of ``--config FILE`` or ``--config=FILE``, and the other arguments."""
    for place, argument in enumerate(arguments):
        flag, equals, path = argument.partition("=")
        if flag == "--config":
            rest = arguments[place + 1 :]
            if not equals and not rest:
                raise InvalidArgument("--config needs a YAML file.")
            if any(other.partition("=")[0] == "--config" for other in rest):
                raise InvalidArgument("--config may be given once; put what differs into flags.")
            return (path, arguments[:place] + rest) if equals else (rest[0], arguments[:place] + rest[1:])
    return None, arguments


def _show_warning(message: Warning | str, *_: object) -> None:
    err.print(f"warning: {message}")
