"""``secateur report``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from secateur.cli.console import out
from secateur.errors import InvalidArgument, RunError
from secateur.files import atomic_write, read_json
from secateur.report import render_comparison, render_run, render_suite, render_sweep


@dataclass(frozen=True)
class Report:
    """Draw the report of a finished run, a sweep or a suite, or of several runs side by side."""

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
        elif contents[0].get("format") == "secateur-suite":
            page, default = render_suite(contents[0]), self.runs[0] / "report.html"
        elif contents[0].get("format") == "secateur-sweep":
            page, default = render_sweep(contents[0]), self.runs[0] / "report.html"
        else:
            page, default = render_run(contents[0]), self.runs[0] / "report.html"
        atomic_write(self.out or default, page)
        out.print(f"report {self.out or default}")
        return 0


def _content(path: Path) -> dict[str, Any]:
    """The result, sweep or suite that a folder holds.

    Raises:
        RunError: if it holds none of them.
    """
    for name in ("result.json", "sweep.json", "suite.json"):
        if (path / name).is_file():
            return read_json(path / name)
    raise RunError(f"{str(path)!r} holds no result.json, sweep.json or suite.json; is the run finished?")
