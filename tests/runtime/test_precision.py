"""Plans whose weights are stored in half precision."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
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


class Places(nn.Module):
    """Where the largest stands, found by comparing with it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        p = (30 * self.conv(x)).softmax(1)
        rows = p.mean((2, 3)).softmax(1)
        peaks = p == F.max_pool2d(p, 3, 1, 1)
        return rows.argmax(1), rows.topk(2, 1).indices, rows.min(1).indices, peaks.float().sum((1, 2, 3))


def test_a_largest_number_is_found_again_in_half_precision() -> None:
    model, x = Places().eval(), torch.randn(4, 3, 12, 12)
    found = Engine(compile_model(model, x, precision="fp16", threads=1), threads=1)(x.numpy())
    assert isinstance(found, tuple)
    *places, peaks = outputs_of(model, [x])
    for a, b in zip(found, places, strict=False):
        np.testing.assert_array_equal(a, b)
    assert peaks.min() > 50
    np.testing.assert_allclose(found[-1], peaks, rtol=0.05)  # of two that are nearly equal, either may be one


def response(x: torch.Tensor) -> torch.Tensor:
    """Global response normalisation."""
    size = torch.norm(x, p=2, dim=(2, 3), keepdim=True)
    return x * (size / (size.mean(1, keepdim=True) + 1e-6))


SQUARES = {
    "RMSNorm": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.RMSNorm(8)),
    "normalize": Function(lambda x: F.normalize(x, eps=1e-30)),
    "response": Function(response),
    "LocalResponseNorm": nn.LocalResponseNorm(3, k=0.0, alpha=3.0, beta=0.5),
    "by hand": Function(lambda x: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True))),
    "deviation": Function(
        lambda x: ((x - x.mean((2, 3), keepdim=True)) ** 2).mean((2, 3)).sqrt() / x.std((2, 3))
    ),
}


@pytest.mark.parametrize("name", SQUARES)
def test_squares_beyond_the_range_of_half_precision(name: str) -> None:
    conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    conv.weight.data.div_(4)
    model, images = nn.Sequential(conv, SQUARES[name]).eval(), torch.randn(2, 3, 16, 16)
    engine = Engine(compile_model(model, images, precision="fp16", threads=1), threads=1)
    for x in (3000 * images, images / 1000):
        [expected] = outputs_of(model, [x])
        assert np.abs(engine(x.numpy()) - expected).max() < 0.02 * np.abs(expected).max()


TINY = {
    "bound": Function(lambda x: x.clamp(min=1e-12)),
    "bound to divide by": Function(lambda x: 1 / x.abs().clamp(min=1e-10)),
    "constant to divide by": Function(lambda x: x / (x.abs() + 1e-8)),
    "normalize": Function(lambda x: F.normalize(x, dim=1)),
    "largest": Function(lambda x: x / x.amax((2, 3), keepdim=True).clamp(min=1e-10)),
}


@pytest.mark.parametrize("name", TINY)
def test_numbers_that_half_precision_would_take_for_zero(name: str) -> None:
    """Where all that a network sees is black."""
    conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    model, images = nn.Sequential(conv, nn.ReLU(), TINY[name]).eval(), torch.randn(2, 3, 16, 16)
    engine = Engine(compile_model(model, images, precision="fp16", threads=1), threads=1)
    black = torch.zeros(2, 3, 16, 16)
    np.testing.assert_allclose(engine(black.numpy()), outputs_of(model, [black])[0], rtol=1e-3)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_tables_of_whole_numbers_are_exact(precision: Literal["fp16", "bf16"]) -> None:
    table = torch.arange(5000).flip(0)
    model, places = Function(lambda i: table[i]), torch.arange(5000)[None]
    found = Engine(compile_model(model, places, precision=precision, threads=1), threads=1)(places.numpy())
    np.testing.assert_array_equal(found, table.numpy()[None])
