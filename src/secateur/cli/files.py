"""``secateur inspect`` and ``secateur verify``."""

from __future__ import annotations

import shlex
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro
from rich.table import Column, Table

from secateur.checkpoint import verify_checkpoint
from secateur.checkpoint.container import read
from secateur.checkpoint.inspection import inspect_container
from secateur.checkpoint.loading import is_plan
from secateur.cli.console import compared, out, print_json
from secateur.runtime import read_plan


@dataclass(frozen=True)
class Inspect:
    """Show what a checkpoint holds: size, sparsity and coding of every tensor. Or the layers of a plan."""

    file: tyro.conf.Positional[Path]
    """A checkpoint, the run folder that holds one, or a plan."""
    json: bool = False
    """Print JSON."""

    def run(self) -> int:
        """Print the table."""
        path = _checkpoint(self.file)
        container = read(path)
        if is_plan(container):
            self._show_plan(path)
            return 0
        found = inspect_container(container, path)
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

    def _show_plan(self, path: Path) -> None:
        plan, size_bytes = read_plan(path), path.stat().st_size
        if self.json:
            counts = {"size_bytes": size_bytes, "n_weights": plan.n_weights, "n_nonzero": plan.n_nonzero}
            layers = [asdict(layer) for layer in plan.layers()]
            print_json({"path": str(path), "kind": "plan", **counts, "layers": layers})
            return
        out.print(str(plan))
        out.print(f"a plan, no checkpoint; {size_bytes:,} bytes")
        out.print(f"next  secateur time {shlex.quote(str(path))}")


@dataclass(frozen=True)
class Verify:
    """Check a checkpoint: digests, finite numbers, asked against achieved sparsity. Exit code 1 if not."""

    file: tyro.conf.Positional[Path]
    """A checkpoint, or the run folder that holds one."""
    json: bool = False
    """Print JSON."""

    def run(self) -> int:
        """Print the checks."""
        found = verify_checkpoint(_checkpoint(self.file))
        # the exit code is the answer, whether or not anybody reads the checks
        with suppress(BrokenPipeError):
            if self.json:
                print_json(found.to_dict())
            else:
                for check in found.checks:
                    out.print(f"{'ok  ' if check.ok else 'FAIL'}  {check.name}: {check.detail}")
        return 0 if found.ok else 1


def _checkpoint(path: Path) -> Path:
    """A checkpoint file, or the one in a run folder."""
    return path / "student.safetensors" if path.is_dir() else path
