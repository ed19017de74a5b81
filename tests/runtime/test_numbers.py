"""Infinities, bounds that are open or cross, small tails and long sums, against torch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.models import ENGINES, outputs_in, outputs_of
from runtime.test_ops import Function, check
from secateur.errors import CompileError
from secateur.runtime import compile as compile_model

INFINITE = torch.tensor([[-torch.inf, -3e38, -1.0, 0.0, 2.0, 3e38, torch.inf]]).repeat(2, 1)


def agrees(
    function: Callable[[Tensor], Tensor], x: Tensor, *, rtol: float = 0.0, exact: bool = False
) -> None:
    """Both engines give what torch gives, or what it gives in double precision."""
    model = Function(function)
    plan = compile_model(model, x)
    [expected] = outputs_of(model, [x.double() if exact else x])
    for engine in ENGINES:
        [found] = outputs_in(engine, plan, [x])
        np.testing.assert_allclose(found, expected, rtol=rtol)


BOUNDS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu of infinity": nn.Hardtanh(0, torch.inf),
    "no bounds": nn.Hardtanh(-torch.inf, torch.inf),
    "infinite maximum": lambda x: x.clamp(max=torch.inf),
    "infinite minimum": lambda x: x.clamp(min=-torch.inf, max=1.0),
    "open above": lambda x: x.clamp(min=0.5),
    "open below": lambda x: x.clamp(max=-0.5),
    "crossing": lambda x: x.clamp(1, -1),
    "absolute": torch.abs,
    "leaky": F.leaky_relu,
    "padding": nn.ConstantPad1d((1, 2), -torch.inf),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_bounds_and_padding_may_be_infinite(name: str) -> None:
    agrees(BOUNDS[name], INFINITE, rtol=1e-6)


ENDS = torch.tensor(
    [[-torch.inf, -3.4e38, -1e30, -104.0, -88.0, 0.0, 88.0, 89.0, 3.4e38, torch.inf, torch.nan]]
)


@pytest.mark.parametrize(
    "function", [torch.sigmoid, torch.tanh, F.silu, F.mish, torch.exp], ids=lambda f: f.__name__
)
def test_exponentials_where_floats_end(function: Callable[[Tensor], Tensor]) -> None:
    model = Function(function)
    plan, [expected] = compile_model(model, ENDS), outputs_of(model, [ENDS])
    for engine in ENGINES:
        [found] = outputs_in(engine, plan, [ENDS])
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-37)


def test_crossing_bounds_on_images() -> None:
    check(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Hardtanh(-1, 1), nn.Conv2d(4, 2, 1)), torch.randn(2, 3, 9, 7))
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Function(BOUNDS["crossing"]), nn.ReLU())
    check(model, torch.randn(2, 3, 9, 7))


REFUSED: list[Callable[[Tensor], Tensor]] = [lambda x: x.clamp(min=torch.inf), nn.ConstantPad1d(1, torch.inf)]


@pytest.mark.parametrize("function", REFUSED)
def test_what_no_operation_can_express_is_refused(function: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(CompileError, match="inf"):
        compile_model(Function(function), INFINITE)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_of_a_position_that_sees_none_is_zero(causal: bool) -> None:
    mask = torch.zeros(5, 6)
    mask[2] = -torch.inf
    mask[3, :4] = -torch.inf
    mask = mask.masked_fill(torch.ones(5, 6).triu(1) > 0, -torch.inf) if causal else mask

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    q, k, v = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 6, 8), torch.randn(2, 3, 6, 4)
    check(Function(attend), q, k, v, kinds={"attention", "constant"})
    assert not outputs_of(Function(attend), [q, k, v])[0][:, :, 2].any()


def test_softmax_of_minus_infinity_alone_is_no_number() -> None:
    x = torch.full((2, 7), -torch.inf)
    assert torch.isnan(x.softmax(-1)).all()
    agrees(lambda x: x.softmax(-1), x)


MASK = torch.tensor([True, False, True, True, False, True, True])
CHOICES: dict[str, Callable[[Tensor], Tensor]] = {
    "filled": lambda x: x.masked_fill(MASK, 2.5),
    "filled with infinity": lambda x: x.masked_fill(MASK, -torch.inf),
    "chosen": lambda x: torch.where(MASK, x, -x),
    "chosen or constant": lambda x: torch.where(MASK[:, None, None], torch.arange(7), x),
    "chosen or number": lambda x: torch.where(MASK, x, 7),
}


@pytest.mark.parametrize("name", CHOICES)
def test_what_a_mask_hides_has_no_effect(name: str) -> None:
    hostile = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, -1.0, torch.nan, -torch.inf])
    agrees(CHOICES[name], hostile.repeat(2, 1), rtol=1e-6)


TAILS: dict[str, Callable[[Tensor], Tensor]] = {
    "softplus": F.softplus,
    "softplus with beta": lambda x: F.softplus(x, beta=0.7),
    "log-sigmoid": lambda x: F.logsigmoid(-x),
    "log1p": lambda x: torch.log1p(x.exp()),
    "log1p of small": lambda x: torch.log1p(x / 1e9),
}


@pytest.mark.parametrize("name", TAILS)
def test_tails_are_as_exact_as_large_numbers(name: str) -> None:
    agrees(TAILS[name], torch.linspace(-60, 15, 3001)[None], rtol=3e-6)


def test_log1p_at_its_edges() -> None:
    agrees(
        torch.log1p,
        torch.tensor([[-torch.inf, -2, -1, -0.5, -0.0, 1e-42, 3e38, torch.inf, torch.nan]]),
        rtol=1e-6,
    )


def test_logsumexp_of_infinities() -> None:
    rows = torch.full((1, 5, 3), -torch.inf)
    rows[:, 1:3, 0], rows[:, 2, 1], rows[:, 3], rows[:, 4, 2] = 1.0, torch.inf, 2.0, torch.nan
    agrees(lambda x: x.logsumexp(-1), rows, rtol=1e-6)


STEPS: dict[str, Callable[[Tensor], Tensor]] = {
    **{f"row of {n}": lambda i, n=n: torch.floor(i / n) for n in (3, 7, 41, 47, 64)},
    "whole quotient": lambda i: (i / 41).long().float(),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_where_torch_has_it(name: str) -> None:
    agrees(STEPS[name], torch.arange(600.0).repeat(2, 1))


@pytest.mark.parametrize("n", [13, 41, 100])
def test_what_holds_is_counted_exactly(n: int) -> None:
    x = torch.ones(n, n).tril() - 0.5
    agrees(lambda x: (x > 0).float().sum(-1).long().float(), x)


LONG: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x.mean(-1),
    "mean of columns": lambda x: x.reshape(-1, 1 << 18, 4).mean(1),
    "pooled": lambda x: F.adaptive_avg_pool2d(x.reshape(-1, 1, 1024, 1024), (1, 2)),
    "variance": lambda x: x.var(-1),
    "deviation far from 0": lambda x: (x + 100).std(-1),
}


@pytest.mark.parametrize("name", LONG)
def test_long_sums_are_exact(name: str) -> None:
    torch.manual_seed(0)
    x = torch.rand(1, 1 << 20) + 1
    agrees(LONG[name], x, rtol=1e-5, exact=True)


def test_logarithms_of_powers_are_whole() -> None:
    powers = torch.tensor([[b**k for b in (2.0, 10.0) for k in range(-30, 31)]])
    agrees(lambda x: torch.stack([x.log2().floor(), x.log10().floor()], 1), powers)
