"""Images in tables: parquet files in a folder, and data sets of the Hugging Face hub."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np

from secateur.data.catalog import DatasetSpec
from secateur.data.records import Picture, Records, Source
from secateur.errors import DataError
from secateur.factories import needs_extra

# pyarrow ships no types
Schema: TypeAlias = Any
Table: TypeAlias = Any
ArrowType: TypeAlias = Any

_PREFIXES = ("train", "val", "test")
"""How the names of files and hub splits begin; "val" also finds valid and validation."""


@dataclass(frozen=True)
class Columns:
    """Which columns of a table hold image and label, and the names of the classes if the table tells."""

    image: str
    label: str
    classes: tuple[str, ...]


def find_parquet(folder: Path) -> dict[str, list[Path]]:
    """Parquet files by split, in `folder` itself or in the one subfolder that has training files.

    Raises:
        DataError: if more than one subfolder has some.
    """
    if not (own := _by_split(folder)).get("train"):
        parts = [part for part in sorted(folder.iterdir()) if part.is_dir() and _by_split(part).get("train")]
        if len(parts) > 1:
            names = ", ".join(part.name for part in parts)
            raise DataError(
                f"{str(folder)!r} holds several data sets: {names}. Give one of them as data_dir."
            )
        return _by_split(parts[0]) if parts else {}
    return own


def read_parquet(files: dict[str, list[Path]], spec: DatasetSpec) -> Source:
    """The splits in `files` of `find_parquet`.

    Raises:
        DataError: if a file is unreadable or missing from a series, or its columns cannot be told.
        MissingExtra: if pyarrow is not installed.
    """
    splits: dict[str, Records] = {}
    classes: tuple[str, ...] = ()
    for split, paths in files.items():
        _check_complete(paths)
        parts: list[Records] = []
        for path in paths:
            columns, table = _read_file(path, spec)
            classes = classes or columns.classes
            parts.append(_records(table, columns, path.name))
        splits[split] = _join(parts)
    return Source(splits, classes)


def read_hub(hub_id: str, spec: DatasetSpec) -> Source:
    """A data set of the Hugging Face hub, through the cache that `datasets` keeps.

    Raises:
        DataError: if it cannot be fetched, or its columns cannot be told.
        MissingExtra: if `datasets` is not installed.
    """
    with needs_extra("data", f"data set {hub_id!r} of the Hugging Face hub"):
        import datasets
    try:
        found: Any = datasets.load_dataset(hub_id)
    except Exception as cause:  # network, authentication, configuration: each with an exception of its own
        reason = f"{type(cause).__name__}: {cause}"
        raise DataError(
            f"data set {hub_id!r} could not be fetched from the Hugging Face hub ({reason}). "
            "Check the name and the network, or fetch it once and give its folder as data_dir."
        ) from cause
    splits: dict[str, Records] = {}
    classes: tuple[str, ...] = ()
    for name, part in found.items():
        split = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None)
        if split is not None:
            columns = pick_columns(part.features.arrow_schema, spec, where=hub_id)
            classes = classes or columns.classes
            table = part.select_columns([columns.image, columns.label]).with_format("arrow")[:]
            splits[split] = _records(table, columns, f"split {name!r} of {hub_id}")
    return Source(splits, classes)


def pick_columns(schema: Schema, spec: DatasetSpec, *, where: str) -> Columns:
    """Image and label column of an Arrow schema: those of `spec`, or the only ones that can be meant.

    Args:
        schema: A `pyarrow.Schema`, with the metadata of `datasets` or without.
        spec: May name the columns.
        where: What the error message calls the table.

    Raises:
        DataError: if there is none or more than one, naming the columns.
    """
    import pyarrow as pa

    features = _features(schema)
    types = {name: schema.field(name).type for name in schema.names}
    integers = [name for name, kind in types.items() if pa.types.is_integer(kind)]
    labels = [name for name in integers if features.get(name, {}).get("_type") == "ClassLabel"] or integers
    images = [name for name, kind in types.items() if _holds_bytes(kind)]
    image = _only(images, spec.image_column, "image", list(types), where)
    meant = spec.label_column or ("" if integers else "label")
    if meant in types and meant not in integers:
        raise DataError(
            f"{where}: column {meant!r} holds {types[meant]}, and labels must be whole numbers, 0 for the "
            "first class. Write the column as integers, or as a ClassLabel of `datasets`."
        )
    label = _only(labels, spec.label_column, "label", list(types), where)
    return Columns(image, label, tuple(features.get(label, {}).get("names") or ()))


def _by_split(folder: Path) -> dict[str, list[Path]]:
    found = {split: sorted(folder.glob(f"{split}*.parquet")) for split in _PREFIXES}
    return {split: paths for split, paths in found.items() if paths}


def _check_complete(paths: list[Path]) -> None:
    """Refuse a series train-00000-of-00003, … with a hole."""
    for path in paths:
        series = re.search(r"-of-(\d+)", path.stem)
        if series and int(series[1]) != len(paths):
            raise DataError(
                f"{path.name} is one of {int(series[1])} files, but {len(paths)} are there. Fetch the others."
            )


def _read_file(path: Path, spec: DatasetSpec) -> tuple[Columns, Table]:
    with needs_extra("data", "reading parquet files"):
        import pyarrow as pa
        from pyarrow import parquet
    try:
        file: Any = parquet.ParquetFile(path)
        columns = pick_columns(file.schema_arrow, spec, where=path.name)
        return columns, file.read(columns=[columns.image, columns.label])
    except (pa.ArrowException, OSError) as cause:
        raise DataError(f"{str(path)!r} is not a readable parquet file ({cause}). Fetch it again.") from cause


def _records(table: Table, columns: Columns, name: str) -> Records:
    labels = table.column(columns.label)
    if labels.null_count:
        raise DataError(f"{name} has {labels.null_count} rows without a value in column {columns.label!r}.")
    pictures: list[Picture] = []
    for chunk in table.column(columns.image).chunks:
        cells: list[object] = chunk.to_pylist()
        for cell in cells:
            picture = _picture(cell)
            if picture is None:
                raise DataError(f"row {len(pictures)} of {name} has no image in column {columns.image!r}.")
            pictures.append(picture)
    return Records(pictures, labels.to_numpy().astype(np.int64), ((name, len(pictures)),))


def _picture(cell: object) -> Picture | None:
    """A cell is the bytes of an image, or a struct of bytes and a path of which one is there."""
    if not isinstance(cell, dict):
        return cast("bytes | None", cell)
    fields = cast("dict[str, Any]", cell)
    return fields["bytes"] or (Path(fields["path"]) if fields.get("path") else None)


def _join(parts: list[Records]) -> Records:
    pictures = [picture for part in parts for picture in part.pictures]
    files = tuple(file for part in parts for file in part.files)
    return Records(pictures, np.concatenate([part.labels for part in parts]), files)


def _features(schema: Schema) -> dict[str, Any]:
    """What `datasets` wrote about the columns, by name; empty if it was not there."""
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return {}
    try:
        return json.loads(text)["info"]["features"]
    except (ValueError, KeyError, TypeError) as cause:
        raise DataError(f"the metadata that `datasets` left in a table is damaged ({cause!r}).") from cause


def _holds_bytes(kind: ArrowType) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _only(candidates: Sequence[str], wanted: str | None, what: str, every: list[str], where: str) -> str:
    if wanted is not None:
        candidates = [wanted] if wanted in candidates else []
    if len(candidates) == 1:
        return candidates[0]
    looked_for = "" if wanted is None else f" {wanted!r}"
    found = f"candidates are {', '.join(candidates)}" if candidates else "there is none"
    raise DataError(
        f"{where}: cannot tell the {what} column{looked_for}; {found}. Its columns are {', '.join(every)}. "
        "Write a pkg.mod:factory that returns secateur.data.Data for such a table."
    )
