"""Everything a suite has found so far, in one file."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from secateur.arena.cells import Cell, plan
from secateur.arena.folder import SuiteFolder
from secateur.arena.suite import Suite
from secateur.diagnostics import mask_overlap
from secateur.errors import RunError
from secateur.files import atomic_write, read_json, write_json
from secateur.masks import Masks
from secateur.report import render_suite
from secateur.statistics import random_jaccard
from secateur.suggestions import after_suite
from secateur.values import plain


def collect(suite: Suite, folder: SuiteFolder) -> dict[str, Any]:
    """Write ``suite.json`` and ``report.html`` from the cells that are finished.

    Returns:
        The content of ``suite.json``.

    Raises:
        RunError: if no cell is finished, or a result file is damaged.
    """
    cells = plan(suite)
    finished = [cell for cell in cells if folder.finished(cell)]
    if not finished:
        raise RunError(f"{str(folder.path)!r} holds no finished cell of suite {suite.name!r} yet.")
    about = plain(suite)
    for role in ("student_weights", "teacher_weights"):
        about[role] = None if about[role] is None else Path(about[role]).name
    for key, method in about["methods"].items():
        method["label"] = method["label"] or key
    about["dataset"]["data_dir"] = None  # where the data lay is no part of what was found
    content: dict[str, Any] = {
        "format": "secateur-suite",
        "version": 1,
        "suite": about,
        "n_planned": len(cells),
        "cells": [folder.result(cell) for cell in finished],
        "overlaps": overlaps(folder, finished, suite.seeds[0]),
    }
    write_json(folder.path / "suite.json", content)
    atomic_write(folder.path / "report.html", render_suite(content, after_suite(content, folder.path)))
    return content


def overlaps(folder: SuiteFolder, cells: Sequence[Cell], seed: int) -> list[dict[str, Any]]:
    """Jaccard overlap of the kept weights between methods, at each sparsity, for one seed."""
    rows: list[dict[str, Any]] = []
    for sparsity in dict.fromkeys(cell.sparsity for cell in cells):
        masks: dict[str, Masks] = {}
        for cell in cells:
            if cell.sparsity == sparsity and cell.seed == seed:
                found = folder.masks(cell)
                if found is not None:
                    masks[cell.method] = found
        for a, b in combinations(masks, 2):
            rows.append(
                {
                    "sparsity": sparsity,
                    "seed": seed,
                    "a": a,
                    "b": b,
                    "jaccard": mask_overlap(masks[a], masks[b]),
                    "expected_random": random_jaccard(1 - masks[a].sparsity, 1 - masks[b].sparsity),
                }
            )
    return rows


def merge(suite: Suite, folder: SuiteFolder, sources: Sequence[Path]) -> int:
    """Take over the finished cells of other folders, such as those of other machines.

    Args:
        suite: The whole suite; cells that it does not plan are left where they are.
        folder: Where they go.
        sources: Folders of the same suite, or collected ``suite.json`` files, which hold no masks.

    Returns:
        Number of cells that were new.

    Raises:
        RunError: if a source is neither.
    """
    n_new = 0
    for source in sources:
        found = _cells_of(source)
        for cell in plan(suite):
            if cell.id in found and not folder.finished(cell):
                masks = SuiteFolder(source).masks(cell) if source.is_dir() else None
                folder.keep(cell, found[cell.id], masks)
                n_new += 1
    return n_new


def _cells_of(source: Path) -> dict[str, dict[str, Any]]:
    """Finished cells of a folder or a collected file, by id."""
    if (source / "suite.yaml").is_file():
        contents = [read_json(path) for path in sorted((source / "cells").glob("*.json"))]
    else:
        collected = read_json(source) if source.is_file() else {}
        contents = collected.get("cells", []) if collected.get("format") == "secateur-suite" else [{}]
    if not all("id" in content for content in contents):
        raise RunError(f"{str(source)!r} is neither the folder of a suite nor a collected suite.json.")
    return {content["id"]: content for content in contents}
