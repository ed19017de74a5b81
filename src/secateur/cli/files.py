"""``secateur inspect`` and ``secateur verify``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.table import Column, Table

from secateur.checkpoint import inspect_checkpoint, verify_checkpoint
from secateur.cli.console import compared, out, print_json


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
            print_json(found.to_dict())
            return 0
        table = Table(Column("tensor", overflow="fold"), "shape", "type", "density", "coding", "bytes")
        for row in found.rows:
            shape = " × ".join(map(str, row.shape)) or "scalar"
            table.add_row(row.name, shape, row.dtype, f"{row.density:.4f}", row.coding, f"{row.size_bytes:,}")
        out.print(table)
        out.print(
            f"{found.kind} checkpoint, {found.size_bytes:,} bytes; "
            f"dense it would be {found.dense_size_bytes:,}: {compared(found.ratio, 2)}"
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
            print_json(found.to_dict())
        else:
            for check in found.checks:
                out.print(f"{'ok  ' if check.ok else 'FAIL'}  {check.name}: {check.detail}")
        return 0 if found.ok else 1


def _checkpoint(path: Path) -> Path:
    """A checkpoint file, or the one in a run folder."""
    return path / "student.safetensors" if path.is_dir() else path
