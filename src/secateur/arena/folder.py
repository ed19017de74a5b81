"""The folder of a suite: one result file a cell, filled by any number of processes and machines."""

from __future__ import annotations

import json
import shutil
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from secateur.arena.cells import Cell, networks_digest
from secateur.arena.suite import Suite
from secateur.config import dump_config
from secateur.errors import RunError
from secateur.files import atomic_write, locked, read_json, write_json
from secateur.masks import Masks, pack_bits, unpack_bits
from secateur.runs import RunFolder


@dataclass(frozen=True)
class SuiteFolder:
    """Where a suite keeps its files; several processes and machines may fill it.

    ::

        suite.yaml            the resolved suite
        cells/<id>.json       one file a finished cell
        masks/<id>.safetensors   its masks
        networks/seed-<n>-<digest>/  networks that were trained here
        work/<id>/            a cell in progress, to resume from
        suite.json, report.html  everything collected

    Attributes:
        path: The folder.
    """

    path: Path

    @classmethod
    def open(cls, path: str | Path, suite: Suite) -> SuiteFolder:
        """Make the folder, or go on in one that holds the same suite.

        Raises:
            RunError: if the folder cannot be written, or holds something else.
        """
        folder = cls(Path(path))
        if (folder.path / "config.yaml").exists():
            raise RunError(f"{str(path)!r} is the folder of a run of `secateur prune`. Choose another --out.")
        try:
            for name in ("cells", "masks", "networks", "work", "locks"):
                (folder.path / name).mkdir(parents=True, exist_ok=True)
            held = folder.path / "suite.yaml"
            title = f"# suite {suite.name}"
            first = held.read_text().partition("\n")[0] if held.is_file() else title
            if not first.startswith("# suite "):
                raise RunError(
                    f"{str(held)!r} was not written here, or is damaged. If the folder is this suite's, "
                    "delete it: it is written anew, and the cells stay."
                )
            if first != title:
                raise RunError(
                    f"{str(path)!r} holds another suite than {suite.name!r}. Choose another --out."
                )
            atomic_write(held, f"{title}\n{dump_config(suite)}")
        except OSError as error:
            raise RunError(f"cannot use {str(path)!r}: {error}. Choose another --out.") from error
        return folder

    def finished(self, cell: Cell) -> bool:
        """Whether a cell has its result file."""
        return (self.path / "cells" / f"{cell.id}.json").is_file()

    def result(self, cell: Cell) -> dict[str, Any]:
        """The content of a finished cell."""
        return read_json(self.path / "cells" / f"{cell.id}.json")

    def keep(self, cell: Cell, content: dict[str, Any], masks: Masks | None) -> None:
        """Write a finished cell; the masks first, so that a result never lacks them."""
        if masks is not None:
            bits = {
                name: torch.from_numpy(np.frombuffer(pack_bits(mask), np.uint8).copy())
                for name, mask in masks.items()
            }
            shapes = {name: list(mask.shape) for name, mask in masks.items()}
            atomic_write(self.masks_path(cell), save(bits, metadata={"shapes": json.dumps(shapes)}))
        write_json(self.path / "cells" / f"{cell.id}.json", content)
        shutil.rmtree(self.work(cell).path, ignore_errors=True)

    def masks(self, cell: Cell) -> Masks | None:
        """The masks of a finished cell; None if it has none.

        Raises:
            RunError: if their file is damaged.
        """
        path = self.masks_path(cell)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="np") as file:
                shapes = json.loads((file.metadata() or {})["shapes"])
                found = {
                    name: unpack_bits(file.get_tensor(name).tobytes(), tuple(shapes[name]))
                    for name in file.keys()  # noqa: SIM118 - not a mapping
                }
        except (SafetensorError, KeyError, ValueError) as error:
            raise RunError(f"{str(path)!r} is damaged ({error}); delete it and its cell.") from error
        return Masks(found)

    def masks_path(self, cell: Cell) -> Path:
        """Where a cell's masks are."""
        return self.path / "masks" / f"{cell.id}.safetensors"

    def work(self, cell: Cell) -> RunFolder:
        """Where a cell in progress keeps its trainings."""
        return RunFolder(self.path / "work" / cell.id)

    def networks(self, suite: Suite, seed: int) -> RunFolder:
        """Where networks that `suite` trains for `seed` are kept, apart from those of another recipe."""
        return RunFolder(self.path / "networks" / f"seed-{seed}-{networks_digest(suite)}")

    def claimed(self, name: str, *, wait: bool = False) -> AbstractContextManager[bool]:
        """Hold `name` against other processes; False if another one holds it. Freed when a process dies."""
        return locked(self.path / "locks" / name, wait=wait)
