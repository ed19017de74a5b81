"""How a network runs: the kernel of each layer, and how many images at a time; whole runs decide."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur.runtime.attributes import KERNELS
from secateur.runtime.engine import Engine, find_native
from secateur.runtime.plan import Plan
from secateur.runtime.program import Op, Program

SPARSE_BELOW = 0.35
"""Density below which a sparse kernel is assumed to win where nothing can be measured."""
WORKING_SETS: tuple[int, ...] = (1 << 20, 2 << 20, 4 << 20, 8 << 20)
"""Bytes that an operation may read and write at a time: between second- and third-level caches."""
_ABOUT = 1.02
_SECONDS = 0.3
_MOST_CALLS = 200
"""Of a network so small that it could be called more often in the time; its least time is known by then."""
_LONG = 0.1
"""Seconds of a call after which it does not matter what the caches held before."""
_LEAST_ROUNDS = 3
_LEAST_WARM_ROUNDS = 2
"""Where a call that is not timed goes before the first."""
_MOST_ROUNDS = 40


def choose_kernels(
    plan: Plan, inputs: Sequence[NDArray[Any]], *, batches: Iterable[int], threads: int
) -> Plan:
    """The plan with the fastest kernel for each layer and batch size, and what they were measured with.

    First, for each batch size, the working set with which whole calls take the least time, and whether
    one thread takes less than several. Then the network runs whole, with every kernel in turn, so that
    each layer finds the caches as it will find them later. Where there is no native engine nothing is
    measured, and density decides.

    Args:
        plan: With any kernels.
        inputs: One array for each input of the network.
        batches: Batch sizes to measure; the inputs are repeated or cut to them.
        threads: Threads that the engine will have.
    """
    native = find_native()
    plan = _advised(plan, ops=tuple(_by_density(op, plan) for op in plan.program.ops))
    if native is None:
        return plan
    sizes = sorted(set(batches))
    arrays = {batch: [np.resize(x, (batch, *x.shape[1:])) for x in inputs] for batch in sizes}
    working_set = tuple((batch, _working_set(plan, arrays[batch], threads)) for batch in sizes if batch > 1)
    plan = _advised(plan, working_set=working_set)
    plan = _advised(plan, one_thread=_one_thread(plan, arrays, threads))
    measured = [(batch, _measure(plan, arrays[batch], native.kernels, threads)) for batch in sizes]
    return _advised(
        plan,
        ops=tuple(_chosen(op, place, measured) for place, op in enumerate(plan.program.ops)),
        provenance={**plan.program.provenance, "isa": native.isa(plan.program.precision)},
    )


def _working_set(plan: Plan, arrays: Sequence[NDArray[Any]], threads: int) -> int:
    """The smallest of `WORKING_SETS` with which calls take about the least time, all tried by turns.

    Of two that are about as fast the smaller one depends less on the third-level cache, which others use too.
    """
    plans = {size: _advised(plan, working_set=((1, size),)) for size in WORKING_SETS}
    least = _least_seconds(plans, arrays, threads, seconds=_SECONDS * len(plans))
    return next(size for size in WORKING_SETS if least[size] <= _ABOUT * min(least.values()))


def _one_thread(plan: Plan, arrays: Mapping[int, Sequence[NDArray[Any]]], threads: int) -> int:
    """The largest batch size for which, as for all smaller ones, one thread is faster than several.

    Threads that work on one image wait for each other, and for what the other has in its cache.
    """
    largest = 0
    if threads == 1:
        return largest
    for batch, inputs in arrays.items():
        plans = {number: _advised(plan, one_thread=number) for number in (0, batch)}
        least = _least_seconds(plans, inputs, threads, seconds=_SECONDS)
        if least[0] <= least[batch]:
            break
        largest = batch
    return largest


def _least_seconds(
    plans: Mapping[int, Plan], arrays: Sequence[NDArray[Any]], threads: int, *, seconds: float
) -> dict[int, float]:
    """The least time of a call of each plan, all called by turns."""
    engines = {key: Engine(plan, threads=threads) for key, plan in plans.items()}
    least = dict.fromkeys(engines, float("inf"))
    end = time.perf_counter() + seconds
    for done in range(_MOST_CALLS):
        for key, engine in engines.items():
            if not _LONG <= least[key] < np.inf:
                engine(*arrays)  # what it needs is in the caches again
            started = time.perf_counter()
            engine(*arrays)
            least[key] = min(least[key], time.perf_counter() - started)
        if done + 1 >= _LEAST_WARM_ROUNDS and time.perf_counter() > end:
            break
    return least


def _measure(
    plan: Plan,
    arrays: Sequence[NDArray[Any]],
    kernels: Callable[[str], list[str]],
    threads: int,
) -> list[dict[str, float]]:
    """Microseconds of each operation by kernel, all kernels tried by turns.

    Each run is with another kernel of every operation that has one more, so that there are as many runs as
    the operation with most kernels has.
    """
    available: dict[str, list[str]] = {kind: kernels(kind) for kind in KERNELS}
    choices = [[k for k in available.get(op.kind, ()) if _takes(op, k, plan)] for op in plan.program.ops]
    runs = [
        [names[min(turn, len(names) - 1)] if names else "" for names in choices]
        for turn in range(max(map(len, choices), default=0))
    ]
    forced = [_advised(plan, ops=tuple(map(_forced, plan.program.ops, run))) for run in runs]
    engines = [Engine(each, threads=threads) for each in forced]
    # The least, not the median: what else a machine does can only add to a time.
    least = [dict.fromkeys(names, np.inf) for names in choices]
    took = [np.inf] * len(engines)
    end = time.perf_counter() + _SECONDS * len(engines)
    for done in range(_MOST_ROUNDS):
        for turn, engine in enumerate(engines):
            # the second finds in the caches what it needs
            found = engine.profile(*arrays, repeats=2 if took[turn] < _LONG else 1).min(axis=0)
            took[turn] = float(np.nansum(found))  # parts in torch have no time
            for place, kernel in enumerate(runs[turn]):
                if kernel:
                    least[place][kernel] = min(least[place][kernel], found[place])
        if done + 1 >= _LEAST_ROUNDS and time.perf_counter() > end:
            break
    return [{kernel: round(float(seconds) * 1e6, 2) for kernel, seconds in times.items()} for times in least]


def _takes(op: Op, kernel: str, plan: Plan) -> bool:
    """Whether a kernel of its kind can run it: but for `dense`, one group; but for `winograd` too, zeros."""
    if kernel == "dense":
        return True
    weight = plan.weights[op.attributes["weight"]]
    if op.attributes.get("groups", 1) != 1:
        return False
    if kernel == "winograd":
        window = (weight.shape[2:], op.attributes["stride"], op.attributes["dilation"])
        return window == ((3, 3), [1, 1], [1, 1]) and plan.program.precision != "fp16"
    return weight.positions is not None


def _forced(op: Op, kernel: str) -> Op:
    return _renewed(op, [[1, kernel]], []) if kernel else op


def _chosen(op: Op, place: int, measured: Sequence[tuple[int, list[dict[str, float]]]]) -> Op:
    if op.kind not in KERNELS:
        return op
    rows = [{"batch": batch, "us": times[place]} for batch, times in measured]
    kernels: list[list[Any]] = []
    for batch, times in measured:
        best = min(times[place], key=times[place].__getitem__)
        if not kernels or kernels[-1][1] != best:
            kernels.append([batch, best])
    return _renewed(op, kernels, rows)


def _by_density(op: Op, plan: Plan) -> Op:
    if op.kind not in KERNELS:
        return op
    sparse = (
        plan.weights[op.attributes["weight"]].density < SPARSE_BELOW and op.attributes.get("groups", 1) == 1
    )
    return _renewed(op, [[1, "rows" if sparse else "dense"]], [])


def _renewed(op: Op, kernels: list[list[Any]], measured: list[dict[str, Any]]) -> Op:
    return replace(op, attributes={**op.attributes, "kernels": kernels, "measured": measured})


def _advised(plan: Plan, **fields: Any) -> Plan:  # noqa: ANN401
    """The plan with other fields of its program."""
    program: Program = replace(plan.program, **fields)
    return replace(plan, program=program)
