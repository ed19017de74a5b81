"""Plans and batches that need more memory than there is: a MemoryError, and the engine goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from runtime.conftest import HAS_NATIVE
from secateur.runtime import Plan
from secateur.runtime.program import parse_program
from secateur.runtime.weights import Weight

pytestmark = pytest.mark.skipif(
    not HAS_NATIVE or sys.platform != "linux", reason="about the native engine on Linux"
)

PROCESS = """
import resource, sys
import numpy as np
from secateur.runtime import load
# If it did come to a kill, it should be of this process and no other.
open("/proc/self/oom_score_adj", "w").write("1000")
engine = load(sys.argv[1], threads=2)
batch, limit = int(sys.argv[2]), int(sys.argv[3])
if limit:
    used = 1024 * int(open("/proc/self/status").read().split("VmSize:")[1].split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (used + limit, -1))
shape = engine.inputs[0][1][1:]
small = np.full((1, *shape), 3.0, np.float32)
if limit:
    before = engine(small)
for attempt in range(2):
    try:
        engine(np.full((batch, *shape), 3.0, np.float32))
        print("computed")
    except MemoryError:
        print("MemoryError")
if limit:
    np.testing.assert_array_equal(engine(small), before)
most = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
print(most < 500 << 10)
"""


def plan_of(values: list[list[int]], ops: list[dict[str, object]], weight: Weight | None = None) -> Plan:
    """Operations one after the other, each from a value to the next."""
    weights = {} if weight is None else {"w": weight}
    program = {
        "precision": "fp32",
        "working_set": [],
        "one_thread": 0,
        "values": [{"shape": shape, "dtype": "f32"} for shape in values],
        "inputs": [{"name": "x", "value": 0}],
        "outputs": [{"name": "y", "value": len(values) - 1}],
        "weights": {n: {"shape": [*w.shape], "dtype": "f32", "coding": "delta8"} for n, w in weights.items()},
        "ops": [
            {"name": str(i), "inputs": [i], "output": i + 1, "activation": "none", **op}
            if op["op"] == "linear"
            else {"name": str(i), "inputs": [i], "output": i + 1, **op}
            for i, op in enumerate(ops)
        ],
        "provenance": {},
    }
    return Plan(parse_program(json.dumps(program)), weights)


def linear(kernel: str) -> dict[str, object]:
    return {"op": "linear", "weight": "w", "bias": None, "kernels": [[1, kernel]], "measured": []}


def one_number(*shape: int) -> Weight:
    return Weight(shape, "f32", np.ones(1, np.float32), np.zeros(1, np.uint32))


EXPAND = {"op": "expand"}


def run(plan: Plan, folder: Path, *, batch: int = 1, limit: int = 0) -> list[str]:
    """What two calls gave, and whether less than 500 MB were ever used."""
    plan.save(folder / "net.plan")
    assert (folder / "net.plan").stat().st_size < 10_000
    done = subprocess.run(
        [sys.executable, "-c", PROCESS, str(folder / "net.plan"), str(batch), str(limit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    return done.stdout.split()


def available_bytes() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))


@pytest.mark.parametrize("where", ["output", "within"])
def test_a_value_larger_than_the_memory_of_the_machine(where: str, tmp_path: Path) -> None:
    """A little more than there is, so that the system would promise it."""
    large = [-1, 1024, int(1.05 * available_bytes()) // 4096]
    plan = plan_of([[-1, 1, 1], large], [EXPAND])
    if where == "within":
        plan = plan_of(
            [[-1, 1, 1], large, [-1, 1, 1]], [EXPAND, {"op": "mean", "dims": [1, 2], "keep": True}]
        )
    assert run(plan, tmp_path) == ["MemoryError", "MemoryError", "True"]


@pytest.mark.parametrize("kernel", ["rows", "dense", "gather"])
def test_a_layer_whose_tables_are_larger_than_the_memory_of_the_machine(kernel: str, tmp_path: Path) -> None:
    """One weight in a file of a kilobyte that claims 2³¹ output channels."""
    n = 2**31 - 1
    if available_bytes() > 32 * n:
        pytest.skip("this machine could hold it")
    mean = {"op": "mean", "dims": [1], "keep": True}
    plan = plan_of([[-1, 1], [-1, n], [-1, 1]], [linear(kernel), mean], one_number(n, 1))
    assert run(plan, tmp_path) == ["MemoryError", "MemoryError", "True"]


LIMITED = {
    "output": ([[-1, 1], [-1, 1 << 20]], [EXPAND], None),
    "weights": (
        [[-1, 1], [-1, 1 << 14], [-1, 1 << 14]],
        [EXPAND, {**linear("rows"), "kernels": [[1, "rows"], [2, "dense"]]}],
        one_number(1 << 14, 1 << 14),
    ),
}


@pytest.mark.parametrize("name", LIMITED)
def test_a_batch_beyond_a_limit_of_the_process(name: str, tmp_path: Path) -> None:
    """512 MB are left; the batch needs a gigabyte. One image, before and after, does not."""
    values, ops, weight = LIMITED[name]
    found = run(plan_of(values, ops, weight), tmp_path, batch=256, limit=512 << 20)
    assert found == ["MemoryError", "MemoryError", "True"]
