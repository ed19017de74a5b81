"""What a result file must hold before a report is drawn from it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from types import NoneType
from typing import Any, cast

from secateur.errors import RunError
from secateur.report.words import STAGES

Types = tuple[type, ...]

TEXT: Types = (str,)
NUMBER: Types = (int, float)
WHOLE: Types = (int,)
OBJECT: Types = (Mapping,)
LIST: Types = (list, tuple)
_LARGEST = 2**63
DAMAGED = "The file is damaged or was edited: run the command that wrote it again."
CURVES = ("teacher", "dense", "recovered", "recovered_kd")


def or_null(types: Types) -> Types:
    """`types`, or null."""
    return (*types, NoneType)


_SHARED: Mapping[str, Types] = {
    "run_id": TEXT,
    "criterion.name": TEXT,
    "data.name": TEXT,
    "models.student": OBJECT,
    "models.teacher": or_null(OBJECT),
    "versions": OBJECT,
    "hardware": OBJECT,
    "seed": or_null(WHOLE),
    "seconds.total": or_null(NUMBER),
}
_RUN: Mapping[str, Types] = {
    **_SHARED,
    **{f"accuracy.{stage}": or_null(NUMBER) for stage in STAGES},
    "sparsity.asked": NUMBER,
    "sparsity.prunable": NUMBER,
    "sparsity.all": NUMBER,
    "n_prune": WHOLE,
    "n_prunable": WHOLE,
    "n_parameters": WHOLE,
    "mask_digest": TEXT,
    "size_bytes.dense": or_null(NUMBER),
    "size_bytes.sparse": or_null(NUMBER),
    "commit": or_null(TEXT),
    "scope.name": TEXT,
    "data.n_test": or_null(WHOLE),
    "data.n_classes": or_null(WHOLE),
    "layers": LIST,
    **{f"curves.{name}": or_null(LIST) for name in CURVES},
    "selected_epoch.recovered": or_null(WHOLE),
    "selected_epoch.recovered_kd": or_null(WHOLE),
    "diagnostics.score_histogram": or_null(OBJECT),
    "diagnostics.agreement": or_null(OBJECT),
    "diagnostics.split_half": or_null(OBJECT),
    "warnings": LIST,
}
_FRACTIONS = frozenset(
    {f"accuracy.{stage}" for stage in STAGES}
    | {"sparsity.asked", "sparsity.prunable", "sparsity.all", "sparsity", "density", "dense_accuracy"}
    | {"val_accuracy", "cut", "batchnorm", "mask_overlap", "expected_random", "jaccard"}
)
_SWEEP: Mapping[str, Types] = {**_SHARED, "dense_accuracy": or_null(NUMBER), "rows": LIST}

_TERM: Mapping[str, Types] = {"counts": LIST, "n_zero": WHOLE}
_PARTS: Mapping[str, Mapping[str, Types]] = {
    "diagnostics.score_histogram": {
        **_TERM,
        "log10_edges": LIST,
        "log10_threshold": or_null(NUMBER),
        "terms": or_null(OBJECT),
    },
    "diagnostics.score_histogram.terms": {"task": OBJECT, "teacher": OBJECT},
    "diagnostics.score_histogram.terms.task": _TERM,
    "diagnostics.score_histogram.terms.teacher": _TERM,
    "diagnostics.agreement": {
        "spearman": or_null(NUMBER),
        "mask_overlap": or_null(NUMBER),
        "layers": LIST,
    },
    "diagnostics.split_half": {
        "mask_overlap": NUMBER,
        "expected_random": NUMBER,
        "n_samples_per_half": or_null(WHOLE),
    },
    "calibration_recovery": {"steps": WHOLE},
    "stages": {"n": WHOLE, "regrow": (bool,), "rows": LIST, "one_cut": or_null(OBJECT)},
    "stages.one_cut": {"cut": NUMBER, "batchnorm": or_null(NUMBER), "mask_overlap": NUMBER},
}
_EPOCH: Mapping[str, Types] = {
    "epoch": NUMBER,
    "loss": or_null(NUMBER),
    "val_accuracy": or_null(NUMBER),
}
_LATER: Mapping[str, Mapping[str, Types]] = {
    "": {"stages": OBJECT, "calibration_recovery": or_null(OBJECT)},
    "stages.rows": {
        "predicted": or_null(NUMBER),
        "loss": or_null(OBJECT),
        "n_steps": WHOLE,
        "recovery_s": NUMBER,
    },
}
"""Keys of the result and of its entries that older ones do not have."""
_LOSS: Mapping[str, Types] = {f"loss.{when}": or_null(NUMBER) for when in ("before", "cut", "recovered")}
_ITEMS: Mapping[str, Mapping[str, Types]] = {
    "layers": {"name": TEXT, "shape": LIST, "numel": WHOLE, "n_keep": WHOLE, "density": NUMBER},
    **{f"curves.{name}": _EPOCH for name in CURVES},
    "stages.rows": {"sparsity": NUMBER, "n_prune": WHOLE, "n_returned": WHOLE},
    "diagnostics.agreement.layers": {"name": TEXT, "spearman": or_null(NUMBER)},
    "rows": {
        "alpha": or_null(NUMBER),
        "sparsity": NUMBER,
        "cut": or_null(NUMBER),
        "batchnorm": or_null(NUMBER),
    },
}
_PLAIN: Mapping[str, Types] = {
    "seconds": or_null(NUMBER),
    "diagnostics.score_histogram.log10_edges": NUMBER,
    **{f"diagnostics.score_histogram.{term}counts": WHOLE for term in ("", "terms.task.", "terms.teacher.")},
}
"""Lists and objects of nothing but plain values."""


def read_run(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """A ``result.json`` that is known to hold all that a report needs.

    Args:
        result: The parsed file, ``"format": "secateur-result"``.

    Returns:
        A copy in which NaN and infinities are null.

    Raises:
        RunError: for another format or version, and for a key that is missing or of another type.
    """
    return _read(result, "secateur-result", _RUN)


def read_sweep(sweep: Mapping[str, Any]) -> Mapping[str, Any]:
    """Like `read_run`, for a ``"format": "secateur-sweep"`` file.

    Raises:
        RunError: for another format or version, a missing key, or a sweep without rows.
    """
    checked = _read(sweep, "secateur-sweep", _SWEEP)
    check_type(checked["data"].get("n_val"), or_null(WHOLE), "data.n_val")
    if not checked["rows"]:
        raise RunError(
            "key 'rows' of the sweep is empty, so there is nothing to draw. "
            "Run `secateur sweep` with at least one --sparsity."
        )
    return checked


def _read(source: Mapping[str, Any], format_name: str, spec: Mapping[str, Types]) -> Mapping[str, Any]:
    checked = check_format(source, format_name)
    check_keys(checked, {**spec, **_present(checked, _LATER[""])}, "")
    for path, part in _PARTS.items():
        if isinstance(found := _find(checked, path), Mapping):
            check_keys(found, part, f"{path}.")
    for path, item in _ITEMS.items():
        for name, entry in _entries(checked, path):
            check_type(entry, OBJECT, name)
            later = _present(entry, _LATER.get(path, {}))
            check_keys(entry, {**item, **later}, f"{name}.")
            if path == "stages.rows" and entry.get("loss") is not None:
                check_keys(entry, {**_LATER[path], **_LOSS}, f"{name}.")
    for path, types in _PLAIN.items():
        for name, entry in _entries(checked, path):
            check_type(entry, types, name)
    _check_histogram(checked)
    return checked


def check_format(
    source: Mapping[str, Any],
    format_name: str,
    *,
    where: str = "",
    which: str = "the result file that secateur wrote into the run folder",
) -> Mapping[str, Any]:
    """A copy of `source`, which says that it is of format `format_name`; NaN and infinities are null in it.

    Args:
        source: A parsed file, or a part of one.
        format_name: What its key ``format`` must say.
        where: Path of the part in the file, with the dot that follows; empty for a whole file.
        which: The file that ought to have been given.

    Raises:
        RunError: for another format or version.
    """
    found = source.get("format")
    if found != format_name:
        raise RunError(f"key '{where}format' must be {format_name!r}, got {found!r}. Give {which}.")
    if source.get("version") != 1:
        raise RunError(
            f"key '{where}version' must be 1, got {source.get('version')!r}. "
            "The file was written by another release of secateur: use that one, or run again."
        )
    return cast("Mapping[str, Any]", _finite(source))


def _finite(item: object) -> object:
    if isinstance(item, float):
        return item if math.isfinite(item) else None
    if isinstance(item, Mapping):
        return {key: _finite(part) for key, part in cast("Mapping[str, object]", item).items()}
    if isinstance(item, (list, tuple)):
        return [_finite(part) for part in cast("list[object]", item)]
    return item


def _find(source: object, path: str) -> object:
    for key in path.split("."):
        if not isinstance(source, Mapping):
            return None
        source = cast("Mapping[str, object]", source).get(key)
    return source


def _entries(source: object, path: str) -> Iterator[tuple[str, Any]]:
    """What a list or an object at a path holds, each with its name in errors; nothing if it is not there."""
    found = _find(source, path)
    if isinstance(found, Mapping):
        yield from ((f"{path}.{key}", part) for key, part in cast("Mapping[str, object]", found).items())
    elif isinstance(found, (list, tuple)):
        yield from ((f"{path}[{i}]", part) for i, part in enumerate(cast("Sequence[object]", found)))


def _present(source: Mapping[str, Any], spec: Mapping[str, Types]) -> Mapping[str, Types]:
    """Those of the keys that are there."""
    return {key: types for key, types in spec.items() if key in source}


def check_keys(source: object, spec: Mapping[str, Types], prefix: str) -> None:
    """Refuse `source` unless it has every key of `spec`, of the right type and range.

    Args:
        source: An object of the file.
        spec: Allowed types by key; a dot leads into an object.
        prefix: Path of `source` in the file, for the error.

    Raises:
        RunError: naming the key.
    """
    for path, types in spec.items():
        part: object = source
        walked = prefix
        for key in path.split("."):
            walked += key
            if not isinstance(part, Mapping) or key not in part:
                raise RunError(
                    f"key {walked!r} is missing, so no report can be drawn. "
                    "The file is incomplete or was edited: run the command that wrote it again."
                )
            part = cast("Mapping[str, object]", part)[key]
            walked += "."
        check_type(part, types, prefix + path)
        _check_fraction(path, prefix + path, part)


def check_type(part: object, types: Types, name: str) -> None:
    """Refuse what stands at a key unless it is of one of the allowed types.

    Raises:
        RunError: naming the key.
    """
    if not isinstance(part, types) or (isinstance(part, bool) and bool not in types):
        allowed = " or ".join("null" if kind is NoneType else kind.__name__ for kind in types)
        raise RunError(f"key {name!r} must be {allowed}, got {part!r}. {DAMAGED}")
    if isinstance(part, int) and abs(part) >= _LARGEST:
        raise RunError(f"key {name!r} must be below 2^63, got {part}. {DAMAGED}")


def _check_fraction(path: str, name: str, part: object) -> None:
    if path in _FRACTIONS and isinstance(part, (int, float)) and not 0 <= part <= 1:
        raise RunError(f"key {name!r} must be a fraction in [0, 1], got {part!r}. {DAMAGED}")


def _check_histogram(checked: Mapping[str, Any]) -> None:
    histogram = cast("Mapping[str, Any] | None", _find(checked, "diagnostics.score_histogram"))
    if histogram is None:
        return
    n_bins = len(histogram["log10_edges"]) - 1
    if n_bins < 1:
        raise RunError(
            "key 'diagnostics.score_histogram.log10_edges' must have at least 2 entries, "
            f"got {n_bins + 1}. {DAMAGED}"
        )
    terms = {"": histogram, **{f"terms.{name}.": term for name, term in (histogram["terms"] or {}).items()}}
    for name, term in terms.items():
        if len(term["counts"]) != n_bins:
            raise RunError(
                f"key 'diagnostics.score_histogram.{name}counts' must have {n_bins} entries, one fewer than "
                f"'log10_edges', got {len(term['counts'])}. {DAMAGED}"
            )
