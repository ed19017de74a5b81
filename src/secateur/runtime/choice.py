"""Which kernel each layer runs with: decided by running the whole network with each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur.runtime.engine import Engine, find_native
from secateur.runtime.plan import Plan
from secateur.runtime.program import Op, Program

SPARSE_BELOW = 0.35
"""Density below which a sparse kernel is assumed to win where nothing can be measured."""
_SECONDS = 0.3
_REPEATS = (5, 40)


def choose_kernels(
    plan: Plan, inputs: Sequence[NDArray[Any]], *, batches: Iterable[int], threads: int | None
) -> Plan:
    """The plan with the fastest kernel for each layer and batch size, and what they were measured with.

    The network runs whole, with every kernel in turn, so that each layer finds the caches as it will
    find them later. Where there is no native engine nothing is measured, and density decides.

    Args:
        plan: With any kernels.
        inputs: One array for each input of the network.
        batches: Batch sizes to measure; the inputs are repeated or cut to them.
        threads: Threads that the engine will have; None for as many as there are cores.
    """
    native = find_native()
    if native is None:
        return _with_ops(plan, [_by_density(op, plan) for op in plan.program.ops])
    measured: list[tuple[int, list[dict[str, float]]]] = []
    for batch in sorted(set(batches)):
        arrays = [np.resize(x, (batch, *x.shape[1:])) for x in inputs]
        measured.append((batch, _measure(plan, arrays, native.kernels, threads)))
    chosen = _with_ops(plan, [_chosen(op, place, measured) for place, op in enumerate(plan.program.ops)])
    about = {**plan.program.provenance, "isa": native.isa(plan.program.precision)}
    return replace(chosen, program=replace(chosen.program, provenance=about))


def _measure(
    plan: Plan,
    arrays: Sequence[NDArray[Any]],
    kernels: Callable[[str], list[str]],
    threads: int | None,
) -> list[dict[str, float]]:
    """Microseconds of each operation by kernel."""
    times: list[dict[str, float]] = [{} for _ in plan.program.ops]
    available: dict[str, list[str]] = {kind: kernels(kind) for kind in ("conv", "linear")}
    for kernel in dict.fromkeys(k for names in available.values() for k in names):
        places = [i for i, op in enumerate(plan.program.ops) if _takes(op, kernel, available, plan)]
        if not places:
            continue
        ops = [_forced(op, kernel if i in places else "dense") for i, op in enumerate(plan.program.ops)]
        engine = Engine(_with_ops(plan, ops), threads=threads)
        seconds = float(np.nansum(engine.profile(*arrays)))
        repeats = int(np.clip(_SECONDS / max(seconds, 1e-6), *_REPEATS))
        # The least, not the median: what else a machine does can only add to a time.
        least = np.min(engine.profile(*arrays, repeats=repeats), axis=0)
        for place in places:
            times[place][kernel] = round(float(least[place]) * 1e6, 2)
    return times


def _takes(op: Op, kernel: str, available: Mapping[str, Sequence[str]], plan: Plan) -> bool:
    """Whether a kernel can run an operation; sparse ones need zeros, and convolutions in one group."""
    if kernel not in available.get(op.kind, ()):
        return False
    sparse = plan.weights[op.attributes["weight"]].positions is not None
    return kernel == "dense" or (sparse and op.attributes.get("groups", 1) == 1)


def _forced(op: Op, kernel: str) -> Op:
    return _renewed(op, [[1, kernel]], []) if op.kind in ("conv", "linear") else op


def _chosen(op: Op, place: int, measured: Sequence[tuple[int, list[dict[str, float]]]]) -> Op:
    if op.kind not in ("conv", "linear"):
        return op
    rows = [{"batch": batch, "us": times[place]} for batch, times in measured]
    kernels: list[list[Any]] = []
    for batch, times in measured:
        best = min(times[place], key=times[place].__getitem__)
        if not kernels or kernels[-1][1] != best:
            kernels.append([batch, best])
    return _renewed(op, kernels, rows)


def _by_density(op: Op, plan: Plan) -> Op:
    if op.kind not in ("conv", "linear"):
        return op
    sparse = (
        plan.weights[op.attributes["weight"]].density < SPARSE_BELOW and op.attributes.get("groups", 1) == 1
    )
    return _renewed(op, [[1, "rows" if sparse else "dense"]], [])


def _renewed(op: Op, kernels: list[list[Any]], measured: list[dict[str, Any]]) -> Op:
    return replace(op, attributes={**op.attributes, "kernels": kernels, "measured": measured})


def _with_ops(plan: Plan, ops: Sequence[Op]) -> Plan:
    program: Program = replace(plan.program, ops=tuple(ops))
    return replace(plan, program=program)
