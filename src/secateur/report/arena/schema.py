"""What a collected suite must hold before a report is drawn from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from secateur.errors import RunError
from secateur.report.schema import (
    DAMAGED,
    LIST,
    NUMBER,
    OBJECT,
    TEXT,
    WHOLE,
    Types,
    check_format,
    check_keys,
    or_null,
)

STAGES: Mapping[str, str] = {
    "recovered": "after recovery",
    "pruned": "without recovery",
    "cut": "right after the cut",
}
"""Where a cell's accuracy may be read, the furthest stage first; see `accuracy_at`."""

FAMILIES: Mapping[str, str] = {
    "baseline": "Baselines",
    "one-shot": "One-shot scores",
    "published": "Published methods",
    "iterative": "Iterative references",
    "ablation": "Ablations",
    "control": "Sanity controls",
}
"""What a method's ``family`` may be, in the order of the page."""

EXPECTATIONS = ("below", "level", "above")
"""Where a control may be expected to come out, against the method that it controls."""

_SUITE: Mapping[str, Types] = {
    "suite.name": TEXT,
    "suite.description": or_null(TEXT),
    "suite.sparsities": LIST,
    "suite.seeds": LIST,
    "suite.methods": OBJECT,
    "suite.recovery": or_null(OBJECT),
    "n_planned": WHOLE,
    "cells": LIST,
    "overlaps": LIST,
}
_METHOD: Mapping[str, Types] = {"label": TEXT, "family": TEXT}
_OPTIONAL: Mapping[str, Types] = {"of": TEXT, "expect": TEXT, "shows": TEXT}
_CELL: Mapping[str, Types] = {
    "id": TEXT,
    "suite": TEXT,
    "method": TEXT,
    "about": OBJECT,
    "seed": WHOLE,
    "sparsity.asked": NUMBER,
    "sparsity.prunable": NUMBER,
    "sparsity.all": NUMBER,
    "n_prune": WHOLE,
    **{f"accuracy.{key}": or_null(NUMBER) for key in ("dense", "cut", "batchnorm", "recovered")},
    "layers": LIST,
    **{f"cost.{key}": or_null(NUMBER) for key in ("score_s", "train_s", "total_s", "epochs")},
    "warnings": LIST,
    "versions": OBJECT,
    "hardware": OBJECT,
    "commit": (*or_null(TEXT), Mapping),
    "data": OBJECT,
    "models": OBJECT,
}
_LAYER: Mapping[str, Types] = {"name": TEXT, "n_weights": WHOLE, "density": NUMBER}
_OVERLAP: Mapping[str, Types] = {
    "sparsity": NUMBER,
    "seed": WHOLE,
    "a": TEXT,
    "b": TEXT,
    "jaccard": NUMBER,
    "expected_random": NUMBER,
}


def read_suite(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """A collected suite that is known to hold all that a report needs.

    Args:
        content: The parsed file, ``"format": "secateur-suite"``.

    Returns:
        A copy in which NaN and infinities are null.

    Raises:
        RunError: for another format or version; for a key that is missing, of another type or out of
            range; for a method that the suite does not name; and for a suite without a finished cell.
    """
    checked = check_format(content, "secateur-suite", which="the suite.json of a folder of `secateur bench`")
    check_keys(checked, _SUITE, "")
    methods: Mapping[str, Any] = checked["suite"]["methods"]
    _check_methods(methods)
    _check_square(checked["suite"], methods)
    _check_cells(checked)
    for index, overlap in enumerate(checked["overlaps"]):
        check_keys(overlap, _OVERLAP, f"overlaps[{index}].")
        for side in ("a", "b"):
            _check_known(f"overlaps[{index}].{side}", overlap[side], methods)
    return checked


def _check_methods(methods: Mapping[str, Any]) -> None:
    for key, method in methods.items():
        where = f"suite.methods.{key}."
        check_keys(method, _METHOD, where)
        _check_one_of(f"{where}family", method["family"], FAMILIES)
        given = {name: types for name, types in _OPTIONAL.items() if method.get(name) is not None}
        check_keys(method, given, where)
        if "of" in given:
            _check_known(f"{where}of", method["of"], methods)
        if "expect" in given:
            _check_one_of(f"{where}expect", method["expect"], EXPECTATIONS)


def _check_square(suite: Mapping[str, Any], methods: Mapping[str, Any]) -> None:
    square = suite.get("two_by_two")
    if square is None:
        return
    if not _is_list(square, 2) or not all(_is_list(row, 2) for row in square):
        raise RunError(
            "key 'suite.two_by_two' must be two rows of two methods, [[A, B], [C, D]]: the score without and "
            f"with the teacher, each recovered without and with KD; got {square!r}. Correct it in the suite."
        )
    for row in square:
        for key in row:
            _check_known("suite.two_by_two", key, methods)


def _is_list(item: object, length: int) -> bool:
    return isinstance(item, list) and len(item) == length


def _check_cells(checked: Mapping[str, Any]) -> None:
    cells: Sequence[Any] = checked["cells"]
    suite, n_planned = checked["suite"], checked["n_planned"]
    if not cells:
        raise RunError(
            "key 'cells' of the suite is empty, so there is nothing to report. "
            "Run `secateur bench accuracy` until at least one cell is finished."
        )
    if len(cells) > n_planned:
        raise RunError(
            f"key 'n_planned' must be at least the number of cells, {len(cells)}, got {n_planned}. {DAMAGED}"
        )
    seen: dict[tuple[str, float, int], str] = {}
    for index, cell in enumerate(cells):
        where = f"cells[{index}]."
        check_format(cell, "secateur-cell", where=where, which="cells that `secateur bench accuracy` wrote")
        check_keys(cell, _CELL, where)
        _check_known(f"{where}method", cell["method"], suite["methods"])
        _check_one_of(f"{where}suite", cell["suite"], [suite["name"]])
        if cell["sparsity"]["asked"] == 1:
            raise RunError(
                f"key '{where}sparsity.asked' must be below 1, got {cell['sparsity']['asked']!r}. {DAMAGED}"
            )
        for number, layer in enumerate(cell["layers"]):
            check_keys(layer, _LAYER, f"{where}layers[{number}].")
        place = (cell["method"], cell["sparsity"]["asked"], cell["seed"])
        if place in seen:
            raise RunError(
                f"cells {seen[place]!r} and {cell['id']!r} are both {place[0]!r} at sparsity {place[1]:g} "
                f"with seed {place[2]}. A place of the grid may be filled once: remove one of the two files."
            )
        seen[place] = cell["id"]


def _check_known(where: str, name: object, methods: Mapping[str, Any]) -> None:
    if name not in methods:
        raise RunError(
            f"key {where!r} must be a method of the suite ({', '.join(methods)}), got {name!r}. "
            "Correct the suite, or take cells of this suite alone."
        )


def _check_one_of(where: str, found: str, allowed: Iterable[str]) -> None:
    if found not in (names := list(allowed)):
        among = names[0] if len(names) == 1 else f"one of {', '.join(names)}"
        raise RunError(f"key {where!r} must be {among}, got {found!r}. Correct the suite, or leave it out.")
