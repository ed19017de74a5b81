"""Reports: results as one HTML page to look at, with no files beside it and nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from secateur.errors import RunError
from secateur.report.arena.grid import Grid
from secateur.report.arena.page import suite_page
from secateur.report.arena.schema import read_suite
from secateur.report.arena.tables import accuracy_markdown
from secateur.report.comparison import comparison_page
from secateur.report.html import render
from secateur.report.page import Command
from secateur.report.run import run_page
from secateur.report.schema import read_run, read_sweep
from secateur.report.sweep import sweep_page

__all__ = ["render_comparison", "render_run", "render_suite", "render_sweep", "suite_table"]


def render_run(result: Mapping[str, Any], commands: Sequence[Command] = ()) -> str:
    """The report of one run as HTML.

    The same result and commands give the same bytes.

    Args:
        result: A parsed ``result.json``. What was not run is null and is left out of the page.
        commands: What to do next, see `secateur.suggestions`; by default what can be done with any run.

    Returns:
        A complete document: styles and figures inside, no scripts, nothing loaded.

    Raises:
        RunError: naming the key, if it is missing, of the wrong type, or of another format.
    """
    return render(run_page(read_run(result), commands))


def render_comparison(results: Sequence[Mapping[str, Any]], commands: tuple[Command, ...] = ()) -> str:
    """The report over several runs: accuracy against sparsity by criterion, sizes, costs, a table.

    Runs that differ only in their seed count as repeats and are averaged.

    Args:
        results: Parsed ``result.json`` files, at least one.
        commands: What to do next, see `secateur.suggestions`.

    Returns:
        A complete document, as `render_run` gives it.

    Raises:
        RunError: if there is no result, or one that `render_run` would refuse; says which.
    """
    if not results:
        raise RunError("a comparison needs at least one result, got none. Name the run folders to compare.")
    runs: list[Mapping[str, Any]] = []
    for position, result in enumerate(results, start=1):
        try:
            runs.append(read_run(result))
        except RunError as error:
            raise RunError(f"result {position} of {len(results)}: {error}") from error
    return render(comparison_page(runs, commands))


def render_sweep(sweep: Mapping[str, Any], commands: Sequence[Command] = ()) -> str:
    """The report of a sweep: accuracy of every cut over alpha and sparsity.

    Args:
        sweep: A parsed sweep file, ``"format": "secateur-sweep"``.
        commands: What to do next with what it found, see `secateur.suggestions`.

    Returns:
        A complete document, as `render_run` gives it.

    Raises:
        RunError: naming the key, if it is missing, of the wrong type, or of another format.
    """
    return render(sweep_page(read_sweep(sweep), commands))


def render_suite(content: Mapping[str, Any], commands: Sequence[Command] = ()) -> str:
    """The report over a suite: curves, tables, paired differences, costs, masks, controls, and its limits.

    Args:
        content: A parsed ``suite.json``, ``"format": "secateur-suite"``; cells may be missing.
        commands: What to do next, in place of running a suite of its name.

    Returns:
        A complete document, as `render_run` gives it.

    Raises:
        RunError: naming the key, if it is missing, of the wrong type, or of another format; and if no
            cell is finished.
    """
    return render(suite_page(read_suite(content), commands))


def suite_table(content: Mapping[str, Any]) -> str:
    """The result of a suite as Markdown: accuracies at the last stage, and paired differences.

    Args:
        content: As for `render_suite`.

    Raises:
        RunError: as `render_suite` does.
    """
    return accuracy_markdown(Grid(read_suite(content)))
