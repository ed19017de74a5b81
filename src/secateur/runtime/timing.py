"""How fast a plan runs, beside other engines: outputs compared first, then timed by turns."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur.errors import InvalidArgument
from secateur.runtime.differences import largest_difference
from secateur.runtime.engine import Engine
from secateur.runtime.plan import Plan
from secateur.runtime.rivals import Rival, build_rival

Array = NDArray[Any]
_BLOCKS = 10
_HALF_TOLERANCE = 0.1
"""How far outputs of a plan that computes in fp16 may lie from those of an engine that computes in fp32."""
_PAUSE = 0.1
"""Seconds in which the threads of the engine before go to sleep."""


@dataclass(frozen=True)
class Timing:
    """How fast one engine runs a network.

    Attributes:
        name: Of the engine.
        version: Its version and precision.
        median_s: Median time of a call in the best block of calls, in seconds: what else happens on a machine
            only adds time, and may last for longer than a block.
        p95_s: Time that 95 % of the calls of that block do not exceed, in seconds.
        per_second: Samples in a second, the batch size over the median.
        n_runs: Calls timed.
        difference: Largest difference of its outputs from those of the plan, relative to the largest
            output; 0 for the plan itself.
        agrees: Whether the difference is within what its precision allows.
    """

    name: str
    version: str
    median_s: float
    p95_s: float
    per_second: float
    n_runs: int
    difference: float
    agrees: bool

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        # JSON has no infinity.
        return {**asdict(self), "difference": self.difference if math.isfinite(self.difference) else None}


def random_inputs(plan: Plan, *, batch: int, seed: int = 0) -> list[Array]:
    """Inputs for a plan: normal numbers, and indices that every table of the plan has.

    Where tables are not read at the indices given, as with an offset for each column, all are 0.

    Args:
        plan: The plan.
        batch: Batch size, at least 1.
        seed: Of the numbers.
    """
    rng = np.random.default_rng(seed)
    tables = [plan.weights[op.attributes["weight"]] for op in plan.program.ops if op.kind == "embedding"]
    largest = min((table.shape[0] for table in tables), default=1)
    inputs: list[Array] = []
    for _, value in plan.program.inputs:
        found = plan.program.values[value]
        shape = (batch, *found.shape[1:])
        whole = found.dtype == "i64"
        inputs.append(rng.integers(0, largest, shape) if whole else rng.standard_normal(shape, np.float32))
    if tables and any(x.dtype == np.int64 for x in inputs) and not _takes(plan, inputs):
        return [np.zeros_like(x) if x.dtype == np.int64 else x for x in inputs]
    return inputs


def _takes(plan: Plan, inputs: Sequence[Array]) -> bool:
    try:
        Engine(plan, threads=1)(*inputs)
    except InvalidArgument:
        return False
    return True


def time_plan(
    plan: Plan,
    inputs: Sequence[Array],
    *,
    threads: int | None = None,
    against: Sequence[str] = (),
    seconds: float = 2.0,
) -> list[Timing]:
    """Time a plan and other engines with the same network, input and number of threads, in turn.

    Args:
        plan: The plan.
        inputs: One array for each input.
        threads: Threads of every engine; None for as many as this process has cores.
        against: Names of other engines, keys of `secateur.runtime.rivals.RIVALS`.
        seconds: Time to spend on each engine, besides warming up.

    Returns:
        The plan first, then the others as asked for.

    Raises:
        InvalidArgument: if an engine is unknown or cannot hold the plan, or an input does not fit.
        MissingExtra: if an engine is not installed.
    """
    engine = Engine(plan, threads=threads)

    def run_plan(arrays: Sequence[Array]) -> list[Array]:
        found = engine(*arrays)
        return list(found) if isinstance(found, tuple) else [found]

    title = f"{engine.isa}, {plan.program.precision}"
    contenders = [Rival("secateur", title, run_plan)]
    contenders += [build_rival(name, plan, inputs, threads=engine.threads) for name in against]
    expected = run_plan(inputs)
    differences = {
        c.name: max(largest_difference(a, b) for a, b in zip(c.run(inputs), expected, strict=True))
        for c in contenders
    }
    calls = {c.name: partial(c.run, inputs) for c in contenders}
    blocks = time_in_turn(calls, seconds=seconds)
    own = _HALF_TOLERANCE if engine.isa.endswith("fp16") else 0.0
    best = {name: min(found, key=statistics.median) for name, found in blocks.items()}
    batch = inputs[0].shape[0]
    return [
        Timing(
            name=c.name,
            version=c.version,
            median_s=statistics.median(best[c.name]),
            p95_s=float(np.quantile(best[c.name], 0.95)),
            per_second=batch / statistics.median(best[c.name]),
            n_runs=sum(map(len, blocks[c.name])),
            difference=differences[c.name],
            agrees=differences[c.name] <= max(c.tolerance, own),
        )
        for c in contenders
    ]


def time_in_turn(
    calls: Mapping[str, Callable[[], object]], *, seconds: float
) -> dict[str, list[list[float]]]:
    """Seconds of each call in blocks, a block of each in turn, so that a machine's moods hit all alike.

    Not one call of each in turn: the threads of an engine wait busily for some milliseconds after a call,
    and would take the cores from the engine that comes next. So each block begins with a pause, and with
    a call that does not count.

    Args:
        calls: What to time, by name.
        seconds: Time to spend on each; a slow one is called fewer times, but twice a block at least.
    """
    blocks: dict[str, list[list[float]]] = {name: [] for name in calls}
    for _ in range(_BLOCKS):
        for name, call in calls.items():
            time.sleep(_PAUSE)
            call()
            blocks[name].append(_block(call, seconds / _BLOCKS))
    return blocks


def _block(call: Callable[[], object], seconds: float) -> list[float]:
    times: list[float] = []
    while len(times) < 2 or sum(times) < seconds:
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return times
