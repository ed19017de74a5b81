"""Conditions, whole numbers and what depends on the batch size alone: what masks are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.models import ENGINES, Function, Padded, outputs_in, outputs_of
from secateur.errors import CompileError, InvalidArgument
from secateur.runtime import Engine, Plan
from secateur.runtime import compile as compile_model

X = torch.tensor([[0.5, -1.0, 0.0, torch.nan, torch.inf, -torch.inf], [-0.0, 2.0, 1.0, 3.0, -7.5, 2.0]])
Y = torch.tensor([[0.5, 1.0, -0.0, torch.nan, torch.inf, 0.0], [0.0, -2.0, 2.0, 3.0, -7.5, 1.0]])
IDS = torch.tensor([[3, 0, 5, 1, 0, 0], [2, 7, 1, 1, 4, 0]])
HUGE = torch.tensor([[2**62, 2**24 + 1, -1, 0, 5, 2**53 + 1], [2**62, 1, -(2**63), 7, -3, 2**24]])


def agrees(
    function: Callable[..., object],
    *inputs: Tensor,
    tolerance: float = 0.0,
    fallback: Literal["torch"] | None = None,
) -> Plan:
    """A function gives in both engines what it gives in torch, at all batch sizes; conditions as 1 and 0."""
    model = Function(function)
    plan = compile_model(model, inputs, threads=1, fallback=fallback)
    for n in (2, 1, 5):
        batch = [torch.cat([x] * 3)[:n] for x in inputs]
        expected = outputs_of(model, batch)
        for engine in ENGINES:
            for a, b in zip(outputs_in(engine, plan, batch, threads=2), expected, strict=True):
                assert a.dtype == (np.int64 if b.dtype in (np.int64, np.int32) else np.float32)
                np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
    return plan


COMPARISONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "equal": lambda a, b: a == b,
    "not equal": lambda a, b: a != b,
    "less": lambda a, b: a < b,
    "at most": lambda a, b: a <= b,
    "more": lambda a, b: a > b,
    "at least": lambda a, b: a >= b,
    "than a number": lambda a, b: torch.stack([a < 2, b <= 1, a != 0, b == 1]).transpose(0, 1),
    "than a constant": lambda a, b: a < torch.arange(6) - b[:, :1],
    "broadcast": lambda a, b: a[:, :, None] <= b[:, None],
}


@pytest.mark.parametrize("name", COMPARISONS)
def test_comparisons(name: str) -> None:
    agrees(COMPARISONS[name], X, Y)
    agrees(COMPARISONS[name], IDS, IDS.flip(1))
    agrees(lambda x, ids: COMPARISONS[name](x, ids), Y, IDS)


def test_whole_numbers_are_compared_exactly() -> None:
    """As floats, 2^24 + 1 would be 2^24."""
    agrees(lambda a: [a == 2**24, a > 2**53, a < HUGE[0]], HUGE)


JOINED: dict[str, Callable[[Tensor, Tensor], object]] = {
    "and": lambda a, b: (a > 0) & (b > 0),
    "or": lambda a, b: (a > 0) | (b > 0),
    "xor": lambda a, b: (a > 0) ^ (b > 0),
    "not": lambda a, b: [~(a > 0), torch.logical_not(b)],
    "logical": lambda a, b: [torch.logical_and(a, b), torch.logical_or(a, b), torch.logical_xor(a, b)],
    "with constants": lambda a, b: (a > 0) & (torch.arange(6) > 2) | (b > torch.tensor(1.0)),
    "product": lambda a, b: (a > 0) * (b > 0),
    "nan": lambda a, b: [torch.isnan(a), (a > 0).float() * 3, (b > 0) * 2.5],
    "any and all": lambda a, b: [(a > 0).any(1), (b > 0).all(1, keepdim=True), a.bool().any(-1)],
    "counted": lambda a, b: [(a > 0).sum(1), (b > 0).sum(1, keepdim=True), (a > b).cumsum(1)],
    "as numbers": lambda a, b: [(a > 0).long() + 1, (b > 0).float() - 0.5, (a > 0).int()],
    "moved": lambda a, b: torch.cat([(a > 0)[:, 2:], (b > 0).flip(1)], 1).view(-1, 5, 2).transpose(1, 2),
    "chosen": lambda a, b: torch.where(a > b, a > 0, b > 0),
}


@pytest.mark.parametrize("name", JOINED)
def test_conditions(name: str) -> None:
    agrees(JOINED[name], X, Y)
    agrees(JOINED[name], IDS - 2, IDS.flip(1))


WHOLE: dict[str, Callable[[Tensor], object]] = {
    "sums": lambda a: [a + 1, a - a.flip(1), 3 - a, a + torch.arange(6), a.add(a, alpha=2)],
    "products": lambda a: [a * a, a * -3, -a, a[:, :, None] * a[:, None]],
    "absolute": lambda a: a[:, 1:].abs(),
    "clamped": lambda a: [a.clamp(min=0), a.clamp(max=3), a.clamp(-2, 4)],
    "extremes": lambda a: [torch.maximum(a, a.flip(1)), torch.minimum(a, torch.arange(6))],
    "chosen": lambda a: [torch.where(a > 0, a, -1), a.masked_fill(a == 0, 9), torch.where(a < 2, a, a * 2)],
    "added up": lambda a: [a.cumsum(1), a.sum(1), a.view(-1, 2, 3).sum((1, 2)), a.sum(1, keepdim=True)],
    "largest": lambda a: [a.amax(1), a.view(-1, 2, 3).amin((1, 2)), a.max(1).values, a.amin(1, keepdim=True)],
    "as floats": lambda a: [
        a.float(),
        a * 0.5,
        a / 2,
        a / (a * a + 1),
        a + 1.5,
        torch.sqrt(a * a),
        a.clamp(min=0.5),
    ],
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers(name: str) -> None:
    agrees(WHOLE[name], IDS - 2, tolerance=1e-6)
    if name in ("sums", "products", "chosen", "added up"):
        agrees(WHOLE[name], HUGE)  # what is too large goes on at the other end


def test_numbers_are_cut_off_towards_zero() -> None:
    agrees(lambda x: [x.long(), (x * 1e6).long().float()], torch.tensor([[0.9, -0.9, 1.5, -2.5, 7.0, -0.0]]))


def test_numbers_that_are_no_integers_become_the_nearest() -> None:
    plan = compile_model(Function(lambda x: x.long()), torch.ones(1, 6), threads=1)
    x = torch.tensor([[torch.nan, torch.inf, -torch.inf, 1e19, -1e19, 2.0**62]])
    largest = np.iinfo(np.int64).max
    for engine in ENGINES:
        [found] = outputs_in(engine, plan, [x])
        np.testing.assert_array_equal(found, [[0, largest, -largest - 1, largest, -largest - 1, 2**62]])


def test_sums_up_to_here_do_not_lose_digits() -> None:
    agrees(lambda x: x.cumsum(2), torch.full((1, 3, 10_000), 0.1), tolerance=1e-6)
    agrees(lambda x: x.cumsum(1), torch.randn(2, 3, 5), tolerance=1e-6)


PLACES: dict[str, Callable[[Tensor], object]] = {
    "of the largest": lambda x: [x.argmax(1), x.argmax(-1, keepdim=True), x.view(-1, 2, 3).argmax(1)],
    "of the smallest": lambda x: [x.argmin(1), (x * 0 == 0).long().argmin(1), x.abs().argmin(1)],
    "what is there": lambda x: x[torch.arange(x.shape[0]), (x > 1).long().argmax(1)],
    "from the end": lambda x: x[torch.arange(x.shape[0]), (x > 0).sum(1) - 6],
    "rows": lambda x: x.view(-1, 3, 2)[torch.arange(x.shape[0]), (x > 0).sum(1).clamp(max=2)],
}


@pytest.mark.parametrize("name", PLACES)
def test_places_that_are_found(name: str) -> None:
    for x in (X, Y, IDS - 2, IDS % 3, HUGE):
        agrees(PLACES[name], x)


def test_a_place_outside_is_refused() -> None:
    plan = compile_model(Function(lambda x, ids: x[torch.arange(x.shape[0]), ids[:, 0]]), (X, IDS), threads=1)
    with pytest.raises(InvalidArgument, match="index"):
        Engine(plan)(X.numpy(), np.full((2, 6), 6))


SIZED: dict[str, Callable[[Tensor], object]] = {
    "positions of each": lambda a: a + torch.arange(6).expand(a.shape[0], 6).cumsum(1),
    "a mask for each": lambda a: a.masked_fill(torch.ones(a.shape[0], 6, dtype=torch.bool).triu(2)[0], 7),
    "places of each": lambda a: a[torch.arange(a.shape[0])[:, None], torch.tensor([[2, 0, 0, 5, -1]])],
    "places of planes": lambda a: a.view(-1, 2, 3)[torch.arange(a.shape[0]), 1, 2],
    "one of each": lambda a: torch.arange(3).repeat(a.shape[0], 2) + a,
    "blocks of each": lambda a: a.view(-1, 3) + torch.arange(6).repeat(a.shape[0]).view(-1, 3),
    "looked up": lambda a: torch.arange(0, 80, 10).expand(a.shape[0], 8).gather(1, a),
    "nothing more": lambda a: torch.cat([a[:, 6:], a * 2, torch.zeros(a.shape[0], 0).long()], 1),
    "nothing else": lambda a: [a * 2, torch.zeros(a.shape[0], 3) + torch.arange(3)],
}


@pytest.mark.parametrize("name", SIZED)
def test_what_depends_on_the_batch_size_alone(name: str) -> None:
    agrees(SIZED[name], IDS)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x + torch.arange(x.shape[0])[:, None],
        lambda x: x * torch.ones(x.shape[0], 6).cumsum(0),
        lambda x: x.float() @ torch.ones(6, x.shape[0]),
        lambda x: x + torch.ones(x.shape[0], 6).sum(),
        lambda x: x[torch.arange(x.shape[0]).flip(0), 2],
    ],
)
def test_what_differs_from_image_to_image_is_refused(function: Callable[..., Tensor]) -> None:
    with pytest.raises(CompileError, match=r"batch size|image to image|batch"):
        compile_model(Function(function), IDS)


@pytest.mark.parametrize("given", [False, True], ids=["found", "given"])
def test_a_transformer_with_padding(given: bool) -> None:
    torch.manual_seed(0)
    model = Padded().eval()
    ids = torch.tensor([[3, 1, 5, 1, 0, 0], [2, 7, 1, 1, 4, 0], [1, 0, 0, 0, 0, 0]])
    inputs = (ids, ids == 0) if given else (ids,)
    plan = compile_model(model, inputs, threads=1)
    for n in (3, 1, 2):
        batch = [x[-n:] for x in inputs]
        [expected] = outputs_of(model, batch)
        for engine in ENGINES:
            [found] = outputs_in(engine, plan, batch)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_mask_for_attention_may_be_computed() -> None:
    def masked(x: Tensor, ids: Tensor) -> Tensor:
        q = x.view(-1, 1, 6, 1)
        seen = (ids > 0)[:, None, None, :] & torch.ones(6, 6, dtype=torch.bool).tril()
        return F.scaled_dot_product_attention(q, q, q, attn_mask=seen)

    agrees(masked, torch.randn(2, 6, generator=torch.Generator().manual_seed(0)), IDS, tolerance=1e-6)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.bucketize(x, torch.tensor([-1.0, 0.0, 1.0])) * 0.5,
        lambda x: torch.bucketize(x, torch.tensor([-1.0, 0.0, 1.0])) + 1,
    ],
)
def test_conditions_and_whole_numbers_pass_through_torch(function: Callable[..., Tensor]) -> None:
    plan = agrees(function, X, fallback="torch")
    assert any(op.kind == "torch" for op in plan.program.ops)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.isin(x, torch.tensor([0.5, 2.0])) & (x > 1),
        lambda x: torch.count_nonzero(x > 0, 1) * 2,
        lambda x: torch.isinf(1 / x) | torch.isfinite(x),
    ],
)
def test_conditions_that_torch_takes_apart(function: Callable[..., Tensor]) -> None:
    agrees(function, X)


def test_a_mask_holds_where_it_is_not_zero() -> None:
    """Bytes of an image as a mask are 255, and may come as floats."""
    mask = torch.tensor([[True, False, True]])
    engine = Engine(compile_model(Function(lambda m: (m.sum(1), ~m)), mask, threads=1), threads=1)
    for given in (mask.numpy(), np.array([[255.0, 0.0, -1e-30]], np.float32)):
        count, others = engine(given)
        assert count.tolist() == [2]
        assert others.tolist() == [[0, 1, 0]]
