"""The benchmark of the engine: a grid of networks, batch sizes and sparsities, a file for each cell."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from secateur import provenance
from secateur.errors import InvalidArgument, RunError
from secateur.files import read_json, write_json
from secateur.runtime.compiler import compile_model
from secateur.runtime.engine import load
from secateur.runtime.plan import Plan
from secateur.runtime.rivals import RIVALS
from secateur.runtime.timing import random_inputs, time_plan
from secateur.runtime.zoo import ZOO, pruned


@dataclass(frozen=True)
class Grid:
    """What to measure.

    Attributes:
        models: Keys of `secateur.runtime.zoo.ZOO`.
        batches: Batch sizes.
        sparsities: Fractions of the weights that are zero, in [0, 1).
        against: Other engines, keys of `secateur.runtime.rivals.RIVALS`.
        precision: Of the plan; other engines have theirs.
        threads: Threads of every engine.
        seconds: Time for each engine in each cell.

    Raises:
        InvalidArgument: if a model or engine is unknown, or a number makes no sense.
    """

    models: tuple[str, ...] = tuple(ZOO)
    batches: tuple[int, ...] = (1, 16)
    sparsities: tuple[float, ...] = (0.8, 0.9, 0.95, 0.98)
    against: tuple[str, ...] = ("onnxruntime",)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    threads: int = 2
    seconds: float = 2.0

    def __post_init__(self) -> None:
        for what, names, known in (("model", self.models, ZOO), ("engine", self.against, RIVALS)):
            unknown = [name for name in names if name not in known]
            if unknown:
                raise InvalidArgument(f"unknown {what} {unknown[0]!r}; known are {', '.join(known)}.")
        if min(self.batches, default=1) < 1 or self.threads < 1:
            raise InvalidArgument("batch sizes and threads must be at least 1.")
        if any(not 0 <= s < 1 for s in self.sparsities):
            raise InvalidArgument(f"sparsities must lie in [0, 1), got {self.sparsities}.")


@dataclass(frozen=True)
class Network:
    """A network to measure.

    Attributes:
        name: In the results and in names of files.
        sparsity: Fraction of its prunable weights that are zero.
        masks: "random", or "pruned" for what a criterion chose.
        build: Batch size → the network in eval mode, and an example input.
    """

    name: str
    sparsity: float
    masks: str
    build: Callable[[int], tuple[nn.Module, Tensor]]


@dataclass(frozen=True)
class Cell:
    """One cell of the grid."""

    network: Network
    batch: int
    precision: str

    @property
    def file(self) -> str:
        """Name of its file."""
        precision = "" if self.precision == "fp32" else f"-{self.precision}"
        return f"{self.network.name}-b{self.batch}{precision}-s{self.network.sparsity:g}.json"


def cells_of(grid: Grid, pruned_networks: Sequence[Network] = ()) -> list[Cell]:
    """All cells, those of one network behind each other, the networks of the grid first."""
    random = [_from_zoo(model, sparsity) for model in grid.models for sparsity in grid.sparsities]
    networks = (*random, *pruned_networks)
    return [Cell(network, batch, grid.precision) for network in networks for batch in grid.batches]


def run_grid(
    grid: Grid,
    folder: Path,
    *,
    pruned_networks: Sequence[Network] = (),
    also: Sequence[Callable[[Plan, int], dict[str, Any]]] = (),
) -> Iterator[dict[str, Any]]:
    """Measure every cell that has no file in `folder` yet; yields all of them in order.

    Args:
        grid: What to measure.
        folder: Where the files lie; it is created if need be.
        pruned_networks: Networks besides those of the grid, such as `secateur.deploy.network_of_run` gives.
        also: Time a plan at a batch size in ways of their own; what they return is listed with the others.

    Raises:
        RunError: if the folder cannot be made.
        InvalidArgument: if a file there was measured with other threads, for another time, or without some
            of the engines.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot use the folder {str(folder)!r}: {error}. Choose another.") from error
    for cell in cells_of(grid, pruned_networks):
        path = folder / cell.file
        if not path.is_file():
            model, example = cell.network.build(cell.batch)
            started = time.perf_counter()
            plan = compile_model(
                model, example, precision=grid.precision, batches=[cell.batch], threads=grid.threads
            )
            seconds = time.perf_counter() - started
            found = measure(plan, cell.batch, grid, folder)
            found["timings"] += [time_it(plan, cell.batch) for time_it in also]
            network = cell.network
            about = {"model": network.name, "batch": cell.batch, "sparsity": network.sparsity}
            about |= {"masks": network.masks, "precision": grid.precision}
            write_json(path, {**about, **found, "compile_s": seconds})
        yield _measured_alike(path, grid)


def _measured_alike(path: Path, grid: Grid) -> dict[str, Any]:
    """A cell from its file, which may be one that was measured before.

    Raises:
        InvalidArgument: if it was measured with other threads, for another time, or without some of the
            engines.
    """
    cell = read_json(path)
    timed = {timing["name"] for timing in cell["timings"]}
    lacking = [f"without {name}" for name in grid.against if name not in timed]
    if cell["threads"] != grid.threads:
        lacking.append(f"with {cell['threads']} threads, not {grid.threads}")
    if cell["seconds"] != grid.seconds:
        lacking.append(f"for {cell['seconds']:g} seconds an engine, not {grid.seconds:g}")
    if lacking:
        raise InvalidArgument(
            f"{str(path)!r} was measured {' and '.join(lacking)}. Remove it, or give another folder."
        )
    return cell


def _from_zoo(model: str, sparsity: float) -> Network:
    return Network(
        model, sparsity, "random", lambda batch: (pruned(model, sparsity), ZOO[model].example(batch))
    )


def measure(plan: Plan, batch: int, grid: Grid, folder: Path) -> dict[str, Any]:
    """Times of a plan and of the other engines, its size, and how long it takes to load.

    Args:
        plan: What to measure.
        batch: Batch size.
        grid: Engines, threads and time.
        folder: For a temporary file.
    """
    path = folder / "temporary.plan"
    plan.save(path)
    started = time.perf_counter()
    load(path, threads=grid.threads)
    load_s = time.perf_counter() - started
    size = path.stat().st_size
    path.unlink()
    inputs = random_inputs(plan, batch=batch)
    timings = time_plan(plan, inputs, threads=grid.threads, against=grid.against, seconds=grid.seconds)
    return {
        "n_nonzero": plan.n_nonzero,
        "n_weights": plan.n_weights,
        "plan_bytes": size,
        "load_s": load_s,
        "threads": grid.threads,
        "seconds": grid.seconds,
        "timings": [timing.to_dict() for timing in timings],
        "versions": provenance.versions(),
        "commit": provenance.commit(),
    }


def summary(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each cell: milliseconds of the plan, and how many times longer each other engine takes."""
    rows: list[dict[str, Any]] = []
    for cell in cells:
        ours, *others = cell["timings"]
        row = {key: cell[key] for key in ("model", "batch", "sparsity", "masks")}
        row["ms"] = 1e3 * ours["median_s"]
        row["times_faster"] = {t["name"]: t["median_s"] / ours["median_s"] for t in others}
        row["agrees"] = all(t["agrees"] for t in others)
        rows.append(row)
    return rows
