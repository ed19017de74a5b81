"""The grid: runs every cell of a suite once, whoever asks and however often it is stopped."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from typing import Any

import torch
from rich.console import Console
from torch import nn

from secateur.arena.cell import Bench, build_method
from secateur.arena.cells import Cell, plan
from secateur.arena.folder import SuiteFolder
from secateur.arena.networks import Networks
from secateur.arena.suite import Suite
from secateur.counts import check_whole
from secateur.errors import InvalidArgument, RunError, SecateurError, SuiteError
from secateur.interrupts import on_interrupt
from secateur.progress import Watcher


def run_suite(
    suite: Suite,
    folder: SuiteFolder,
    *,
    device: str = "auto",
    shard: tuple[int, int] = (1, 1),
    watcher: Watcher,
) -> int:
    """Run the cells that have no result yet and that nobody else is running.

    A cell that fails, as where training diverges, does not keep the others from being run; it is tried again
    the next time.

    Args:
        suite: What to run; may be a part of the suite that the folder holds.
        folder: Where results go.
        device: auto, cpu, cuda or cuda:N.
        shard: ``(i, n)``: this process takes every n-th cell, beginning with the i-th, counted from 1.
        watcher: Who is told of progress.

    Returns:
        Number of cells that were run here.

    Raises:
        SuiteError: in the end, if cells failed.
        SecateurError: if no cell can be run, as without the data.
    """
    cells = _cells_of(suite, shard)
    for method in suite.methods.values():
        build_method(method, nn.Identity(), seed=0)  # a wrong option is refused before anything runs
    n_run = 0
    failed: list[str] = []
    bench: Bench | None = None
    for number, cell in enumerate(cells, start=1):
        if folder.finished(cell):
            continue
        with folder.claimed(cell.id) as mine:
            # Looked at again under the lock: another process may just have finished it.
            if not mine or folder.finished(cell):
                continue
            if bench is None or bench.networks.seed != cell.seed:
                bench = Bench(suite, _networks(suite, cell.seed, folder, device, watcher))
            work = folder.work(cell)
            work.path.mkdir(parents=True, exist_ok=True)
            try:
                content, masks = bench.run(cell, work)
            except RunError:  # of the folder
                raise
            except SecateurError as error:
                failed.append(f"{cell.method} at {cell.sparsity:g}, seed {cell.seed}: {error}")
                watcher.say(f"{number:>4}/{len(cells)}  failed: {failed[-1]}")
                continue
            folder.keep(cell, content, masks)
            n_run += 1
            watcher.say(f"{number:>4}/{len(cells)}  {_line(content)}")
    if failed:
        raise SuiteError(f"{len(failed)} of {len(cells)} cells failed, the first of them {failed[0]}")
    return n_run


def run_in_parallel(
    suite: Suite,
    folder: SuiteFolder,
    *,
    jobs: int,
    device: str = "auto",
    shard: tuple[int, int] = (1, 1),
    watcher: Watcher,
) -> None:
    """`run_suite` in `jobs` processes at once, each with its share of the cores.

    Raises:
        InvalidArgument: if `jobs` is below 1, or there is no such shard.
        SuiteError: if cells failed in one of them, or it did; the others go on to their end.
    """
    check_whole("jobs", jobs, least=1)
    cells = _cells_of(suite, shard)
    context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA or OpenMP again
    n_threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    workers = [
        context.Process(target=_work, args=(suite, folder, device, shard, n_threads)) for _ in range(jobs)
    ]
    seen = sum(map(folder.finished, cells))
    try:
        with on_interrupt(signal.SIG_IGN):  # which the workers inherit: the one that began them ends them
            for worker in workers:
                worker.start()
        with watcher.stage("cells", len(cells) - seen) as step:
            while any(worker.is_alive() for worker in workers):
                time.sleep(0.5)
                done = sum(map(folder.finished, cells))
                for _ in range(done - seen):
                    step()
                seen = done
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()
    failed = [worker.exitcode for worker in workers if worker.exitcode]
    if failed:
        raise SuiteError(f"{len(failed)} of {jobs} processes failed (exit codes {failed}), see above.")


def _cells_of(suite: Suite, shard: tuple[int, int]) -> list[Cell]:
    """Every n-th cell of a suite, beginning with the i-th."""
    first, step = shard
    if not 1 <= first <= step:
        raise InvalidArgument(f"a shard is I/N with 1 ≤ I ≤ N, got {first}/{step}.")
    cells = plan(suite)
    if not cells:
        raise InvalidArgument(
            f"suite {suite.name!r} has no cell: there must be methods, sparsities and seeds, and each method "
            "must have one of the sparsities chosen."
        )
    return cells[first - 1 :: step]


def _work(suite: Suite, folder: SuiteFolder, device: str, shard: tuple[int, int], n_threads: int) -> None:
    """One of several processes, which ends with the one that began it."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(n_threads)
    watcher = Watcher(Console(stderr=True, soft_wrap=True))
    try:
        run_suite(suite, folder, device=device, shard=shard, watcher=watcher)
    except SecateurError as error:
        watcher.say(f"error: {error}")
        sys.exit(1)


def _end_with_parent() -> None:
    """A parent that is killed cannot end its workers; finished cells stay, and the others are resumed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _networks(suite: Suite, seed: int, folder: SuiteFolder, device: str, watcher: Watcher) -> Networks:
    """Networks for a seed; one process trains them, the others wait and load what it kept."""
    place = folder.networks(suite, seed)
    place.path.mkdir(parents=True, exist_ok=True)
    with folder.claimed(f"networks-{place.path.name}", wait=True):
        return Networks.prepare(suite, seed, place, device, watcher)


def _line(content: dict[str, Any]) -> str:
    """A finished cell in one line."""
    accuracy = content["accuracy"]
    stages = "  ".join(
        f"{name} {accuracy[name]:.2%}"
        for name in ("cut", "batchnorm", "recovered")
        if accuracy[name] is not None
    )
    return (
        f"{content['method']:<24} {content['sparsity']['asked']:<6g} seed {content['seed']}  {stages}  "
        f"({content['cost']['total_s']:.0f} s)"
    )
