"""``secateur report``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from secateur.cli.console import out
from secateur.config import RunConfig, SweepConfig, load_config
from secateur.errors import InvalidArgument, RunError
from secateur.files import atomic_write, read_json
from secateur.report import render_comparison, render_run, render_suite, render_sweep
from secateur.report.arena.schema import read_suite
from secateur.report.page import Command
from secateur.report.schema import read_run, read_sweep
from secateur.suggestions import after_comparison, after_run, after_suite, after_sweep

_RESULTS = ("result.json", "sweep.json", "suite.json")


@dataclass(frozen=True)
class Report:
    """Draw the report of a finished run, a sweep or a suite, or of several runs side by side."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, or the result.json, sweep.json or suite.json in them, under any name."""
    out: Path | None = None
    """HTML file; by default report.html in the run folder, or comparison.html here for several runs."""

    def run(self) -> int:
        """Draw, and say where."""
        contents = [_content(path) for path in self.runs]
        folders = [path.parent if path.is_file() else path for path in self.runs]
        if not contents:
            raise InvalidArgument("report needs at least one run folder.")
        if len(contents) > 1:
            _check_runs(folders, contents)
        path, content = folders[0], contents[0]
        default = path / "report.html"
        if len(contents) > 1:
            page, default = render_comparison(contents, after_comparison(path)), Path("comparison.html")
        elif content.get("format") == "secateur-suite":
            page = render_suite(content, _next(path, content))
        elif content.get("format") == "secateur-sweep":
            page = render_sweep(content, _next(path, content))
        else:
            page = render_run(content, _next(path, content))
        atomic_write(self.out or default, page)
        out.print(f"report {self.out or default}")
        return 0


def _next(path: Path, content: dict[str, Any]) -> tuple[Command, ...]:
    """What to do with what is in a folder; nothing of its own where there is no configuration to go by."""
    file = path / "config.yaml"
    if content.get("format") == "secateur-suite":
        return after_suite(read_suite(content), path) if (path / "suite.yaml").is_file() else ()
    try:
        if content.get("format") == "secateur-sweep":
            return after_sweep(load_config(file, SweepConfig), read_sweep(content), path)
        return after_run(load_config(file, RunConfig), read_run(content), path)
    except InvalidArgument:  # copied without it, say, or made by another version
        return ()


def _check_runs(paths: Sequence[Path], contents: Sequence[dict[str, Any]]) -> None:
    """Refuse a sweep or a suite among what is to be compared.

    Raises:
        RunError: naming its folder.
    """
    for path, content in zip(paths, contents, strict=True):
        kind = {"secateur-sweep": "a sweep", "secateur-suite": "a suite"}.get(str(content.get("format")))
        if kind is not None:
            raise RunError(
                f"{str(path)!r} holds {kind}, and runs are compared with runs. Leave it out, or draw it by "
                f"itself: secateur report {path}"
            )


def _content(path: Path) -> dict[str, Any]:
    """The result, sweep or suite that a folder holds, or a file is.

    Raises:
        RunError: if it holds none of them.
    """
    for file in [path] if path.is_file() else [path / name for name in _RESULTS]:
        if file.is_file():
            return read_json(file)
    raise RunError(f"{str(path)!r} holds no result.json, sweep.json or suite.json; is the run finished?")
