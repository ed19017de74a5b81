"""Every operation with the code of every instruction set of this machine, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.conftest import HAS_NATIVE
from runtime.models import Attention, Encoder, MobileNet, SqueezeExcite, outputs_of, sparsify
from runtime.test_ops import ACTIVATIONS, CONVS, FUNCTIONS, POOLS
from secateur.runtime import Engine, Plan
from secateur.runtime import compile as compile_model
from secateur.runtime.attributes import ATTRIBUTES

BATCHES = (1, 3, 17)
PROCESS = """
import sys
import numpy as np
import secateur as sc
for path in sys.argv[1:]:
    with np.load(path + ".npz") as file:
        inputs = dict(file)
    engine = sc.runtime.load(path + ".plan", threads=2)
    for name, x in inputs.items():
        y = engine(x)
        np.savez(f"{path}-{name}.npz", *(y if isinstance(y, tuple) else [y]))
print(engine.isa)
"""


class Convolutions(nn.Module):
    """The convolutions of the tests of operations side by side, each with an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(*sizes, **options) for sizes, options in CONVS.values())
        self.linear = nn.Linear(13, 9)

    def forward(self, x: Tensor) -> list[Tensor]:
        found = [conv(x) for conv in self.convs]
        found = [ACTIVATIONS[i % len(ACTIVATIONS)](y) for i, y in enumerate(found)]
        return [*found, self.linear(x), torch.tanh(x).clamp(-0.5, 0.25)]


class Functions(nn.Module):
    """The functions and pools of the tests of operations side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.batch_norm = nn.LayerNorm((9, 7)), nn.BatchNorm2d(3)
        self.hidden = torch.arange(63).reshape(9, 7) % 3 == 0

    def forward(self, x: Tensor) -> list[Tensor]:
        pooled = [pool(x) for pool in POOLS]
        found = [function(x) for function in FUNCTIONS.values()]
        return [*found, *pooled, self.norm(x), self.batch_norm(x), x.masked_fill(self.hidden, 3.0)]


class Edges(nn.Module):
    """Pools of numbers below zero whose last windows reach past the image; what is there must not count."""

    def forward(self, x: Tensor) -> list[Tensor]:
        x = -1 - x.abs()
        found: list[Tensor] = []
        for size in (3, 5, 7, 10, 11, 13, 17, 23, 29, 55, 113):
            part = x[:, :, :size, :size]
            found += [F.max_pool2d(part, k, k, ceil_mode=True) for k in (2, 3, (1, 3))]
            found.append(F.max_pool1d(part[:, 0], 3, 3, ceil_mode=True))
        return found


class Words(nn.Module):
    """Whole numbers, comparisons, and what they choose."""

    def forward(self, ids: Tensor) -> list[Tensor]:
        later, positions = ids > ids.flip(1), (ids > 9).cumsum(1)
        chosen = torch.where(later, ids.float(), 0.5)
        return [later, positions * 2 - ids, ids <= 20, ids == positions, chosen, chosen.cumsum(1) > 99]


MODELS = {
    "convolutions": (Convolutions, torch.zeros(2, 12, 11, 13)),
    "functions": (Functions, torch.zeros(2, 3, 9, 7)),
    "mobilenet": (MobileNet, torch.zeros(2, 3, 32, 32)),
    "squeeze-excite": (SqueezeExcite, torch.zeros(2, 3, 9, 7)),
    "encoder": (Encoder, torch.zeros(2, 12, dtype=torch.int64)),
    "words": (Words, torch.arange(24).view(2, 12)),
    "edges": (Edges, torch.zeros(2, 1, 113, 113)),
    "attention": (Attention, torch.zeros(2, 7, 24)),
}


HALF = ("avx512fp16",)
"""Instruction sets that compute in fp16; they run plans of that precision only."""


@pytest.fixture(scope="module")
def plans() -> dict[str, tuple[Plan, nn.Module]]:
    if not HAS_NATIVE:
        pytest.skip("there is no native engine")
    torch.manual_seed(0)
    models = {name: sparsify(build()) for name, (build, _) in MODELS.items()}
    return {name: (compile_model(model, MODELS[name][1]), model) for name, model in models.items()}


@pytest.fixture(scope="module")
def half_plans(plans: dict[str, tuple[Plan, nn.Module]]) -> dict[str, tuple[Plan, nn.Module]]:
    """All but the one whose mask of −1e9 is no number of fp16."""
    return {
        name: (compile_model(model, MODELS[name][1], precision="fp16"), model)
        for name, (_, model) in plans.items()
        if name != "attention"
    }


def test_the_models_hold_every_operation(plans: dict[str, tuple[Plan, nn.Module]]) -> None:
    kinds = {op.kind for plan, _ in plans.values() for op in plan.program.ops}
    assert set(ATTRIBUTES) - kinds == {"torch"}


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512", "neon"])
def test_every_instruction_set_gives_what_torch_gives(
    isa: str, plans: dict[str, tuple[Plan, nn.Module]], tmp_path: Path
) -> None:
    assert worst_errors(isa, plans, tmp_path) < 1e-5


@pytest.mark.parametrize("isa", ["avx512", *HALF])
def test_plans_of_fp16_run_with_and_without_arithmetic_in_it(
    isa: str, half_plans: dict[str, tuple[Plan, nn.Module]], tmp_path: Path
) -> None:
    """Were the forced instruction set not obeyed, both would be as exact."""
    rounded = {
        name: (replace(plan, program=replace(plan.program, precision="fp32")), model)
        for name, (plan, model) in half_plans.items()
    }
    error = worst_errors(isa, half_plans, tmp_path, expected=rounded)
    assert (1e-5 if isa in HALF else 0.0) <= error < (2e-2 if isa in HALF else 1e-6)


def test_arithmetic_in_fp16_is_refused_to_other_plans(
    plans: dict[str, tuple[Plan, nn.Module]], tmp_path: Path
) -> None:
    done = run_plans("avx512fp16", {"encoder": plans["encoder"][0]}, {"encoder": {}}, tmp_path)
    assert "SECATEUR_ISA is 'avx512fp16', this machine has" in done.stderr


def worst_errors(
    isa: str,
    plans: dict[str, tuple[Plan, nn.Module]],
    folder: Path,
    *,
    expected: dict[str, tuple[Plan, nn.Module]] | None = None,
) -> float:
    """Largest difference from torch, or from other plans run as usual, relative to the largest number."""
    inputs: dict[str, dict[str, np.ndarray]] = {}
    for name in plans:
        shape, words = MODELS[name][1].shape[1:], MODELS[name][1].dtype == torch.int64
        drawn = [torch.randint(0, 50, (n, *shape)) if words else torch.randn(n, *shape) for n in BATCHES]
        inputs[name] = {f"batch{len(x)}": x.numpy() for x in drawn}
    done = run_plans(isa, {name: plan for name, (plan, _) in plans.items()}, inputs, folder)
    if "this machine has" in done.stderr:
        assert isa != "baseline"
        pytest.skip(done.stderr.splitlines()[-1])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == isa
    errors: list[float] = []
    for name, (_, model) in plans.items():
        other = None if expected is None else Engine(expected[name][0], threads=2)
        for key, x in inputs[name].items():
            with np.load(folder / f"{name}-{key}.npz") as file:
                found = [file[f"arr_{i}"] for i in range(len(file))]
            wanted = outputs_of(model, [torch.from_numpy(x)]) if other is None else other(x)
            for y, z in zip(found, wanted if isinstance(wanted, (list, tuple)) else [wanted], strict=True):
                errors.append(float(np.abs(y - z.astype(y.dtype)).max() / max(np.abs(z).max(), 1e-6)))
    return max(errors)


def run_plans(
    isa: str, plans: dict[str, Plan], inputs: dict[str, dict[str, np.ndarray]], folder: Path
) -> subprocess.CompletedProcess[str]:
    """Run each plan with its inputs in a process of its own: the instruction set is chosen once."""
    for name, plan in plans.items():
        plan.save(folder / f"{name}.plan")
        np.savez(folder / f"{name}.npz", **inputs[name])
    return subprocess.run(
        [sys.executable, "-c", PROCESS, *plans],
        cwd=folder,
        env={**os.environ, "SECATEUR_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
