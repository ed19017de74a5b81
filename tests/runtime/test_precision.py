"""Plans whose weights are stored in half precision."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn

from runtime.models import outputs_of
from runtime.test_ops import Function
from secateur.errors import CompileError
from secateur.runtime import Engine
from secateur.runtime import compile as compile_model
from secateur.runtime.engine import find_native

pytestmark = pytest.mark.usefixtures("engine")
MASK = torch.tensor([0.0, 1, 0, 0, 1, 0])


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_constants_are_stored_as_they_are(precision: Literal["fp16", "bf16"]) -> None:
    """Weights of layers are rounded, but not the numbers that a model computes with."""
    model = nn.Sequential(nn.Linear(6, 4), Function(lambda x: (x + 1e-8, x * -1e9, x * (1 + 2**-12))))
    plan = compile_model(model.eval(), torch.randn(2, 6), precision=precision, threads=1)
    constants = [op.attributes["weight"] for op in plan.program.ops if op.kind == "constant"]
    numbers = sorted(plan.weights[name].to_dense().item() for name in constants)
    assert numbers == [-1e9, float(np.float32(1e-8)), 1 + 2**-12]
    stored = {"fp16": "f16", "bf16": "bf16"}[precision]
    kinds = {name: weight.dtype for name, weight in plan.weights.items()}
    assert {name for name, kind in kinds.items() if kind == stored} == {"0.weight", "0.bias"}


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (Function(lambda x: torch.log(x + 1e-8)), torch.zeros(2, 6)),
        (nn.RMSNorm(6, eps=1e-8), torch.zeros(2, 6)),
        (Function(lambda x: x.std(1)), torch.randn(2, 6) * 100),
        (Function(lambda x: (x + MASK * -1e9).softmax(1)), torch.randn(2, 6)),
    ],
    ids=["log", "norm", "deviation", "mask"],
)
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_what_is_computed_with_constants(
    model: nn.Module, x: torch.Tensor, precision: Literal["fp16", "bf16"]
) -> None:
    found = Engine(compile_model(model, x, precision=precision, threads=1), threads=1)(x.numpy())
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(found, outputs_of(model, [x])[0], rtol=2e-3, atol=1e-6)


def test_compiling_for_arithmetic_in_fp16_alone(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    native = find_native()
    if native is None or native.isa("fp16") != "avx512fp16":
        pytest.skip("this machine does not compute in fp16")
    monkeypatch.setenv("SECATEUR_ISA", "avx512fp16")
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval()
    plan = compile_model(model, torch.randn(2, 3, 8, 8), precision="fp16", threads=1)
    assert plan.program.provenance["isa"] == "avx512fp16"
    branch = Function(lambda x: x * 2 if x.shape[0] == 1 else x)
    with pytest.raises(CompileError, match=r"with a batch of 1.* by 0\.5 .* at most 0\.2"):
        compile_model(branch, torch.randn(2, 6), precision="fp16", threads=1)
