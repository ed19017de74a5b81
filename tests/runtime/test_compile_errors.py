"""What `compile` says of models and examples that it cannot take: what it is, where, and what to do."""

from __future__ import annotations

import copy
import logging
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from runtime.models import worst_error
from runtime.test_capture import With
from secateur import load_sparse, save_sparse
from secateur.errors import CheckpointError, CompileError, InvalidArgument
from secateur.runtime import compile as compile_model
from secateur.runtime import exporting

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
HERE = rf'\(File "{re.escape(__file__)}", line \d+, in'
ADVICE = "depends on values or on the batch size"


@dataclass
class Result:
    """An output of a kind that torch cannot look into."""

    scores: Tensor


class Named(nn.Module):
    """A network with inputs that only its callers name."""

    def forward(self, x: Tensor, **others: Tensor) -> Tensor:
        return x + others["extra"]


class Packed(nn.Module):
    """A recurrent layer on sequences of different lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.GRU(6, 3, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.layer(packed)[1]


@torch.library.custom_op("secateur_tests::doubled", mutates_args=())
def doubled(x: Tensor) -> Tensor:
    return x * 2


@doubled.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("secateur_tests::shapeless", mutates_args=())
def shapeless(x: Tensor) -> Tensor:
    return x * 2


def refusal(model: Any, example: Any, **options: Any) -> str:
    """What compile says of it."""
    with pytest.raises(CompileError) as refused:
        compile_model(model, example, threads=1, **options)
    return str(refused.value)


@pytest.mark.parametrize(
    "function",
    [
        lambda _, x: torch.cat([x, torch.zeros(4, 2)], 1),
        lambda _, x: x + torch.arange(24.0).reshape(4, 6),
        lambda _, x: x.reshape(4, 2, 3),
    ],
)
def test_a_batch_size_that_is_fixed_is_told_with_its_place(function: Callable[..., Tensor]) -> None:
    said = refusal(With(function), X)
    assert re.match(rf"forward can be captured for a batch of 4 alone: with 5 it fails {HERE} <lambda>", said)
    assert said.endswith("Take the number from x.shape[0].")


@pytest.mark.parametrize(
    "function",
    [lambda _, x: x.reshape(len(x), 2, 3), lambda _, x: torch.stack([row * 2 for row in x])],
)
def test_a_batch_size_made_a_plain_number_is_told(function: Callable[..., Tensor]) -> None:
    said = refusal(With(function), X)
    assert re.match(r"forward makes a plain number of the batch size, .*\. Use x\.shape\[0\] as it is", said)


def branching(_: nn.Module, x: Tensor) -> Tensor:
    return x * 2 if x.sum() > 0 else x


def density(_: nn.Module, x: Tensor) -> Tensor:
    # as it is by default, but for what torch's compiler has changed in a test before
    return torch.distributions.Normal(x, 1.0, validate_args=True).log_prob(x * 2)


@pytest.mark.parametrize(
    ("model", "example", "message"),
    [
        (With(branching), X, rf"depends on values {HERE} branching\).*torch\.where there"),
        (
            With(lambda _, x: x[:, : int((x > 0).sum())]),
            X,
            rf"depends on values {HERE} <lambda>.*another size",
        ),
        (With(density), X, rf"distribution .*checks the values .*{HERE} density\).*validate_args=False"),
        (With(lambda _, x: Result(x)), X, r"forward returns a .*Result\. Return a tensor, or a tuple"),
        (Named(), {"x": X, "extra": X + 1}, r"forward takes 'extra' in its \*\*others\. Name it in the sig"),
        (Packed(), [X[:, :, None].expand(4, 6, 6) * 1, torch.tensor([5, 3, 2, 1])], rf"packed seq.*{HERE}"),
        (
            With(lambda _, x: torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127)),
            X,
            rf"cannot capture aten\.fake_quantize_per_tensor_affine_cachemask\.default {HERE} <lambda>",
        ),
        (With(lambda _, x: shapeless(x)), X, rf"cannot capture secateur_tests::shapeless {HERE} <lambda>"),
        (
            With(lambda _, x: torch.tensor(x.numpy())),
            X,
            rf"any size {HERE} <lambda>\): \w+Error: .*\. Change",
        ),
    ],
    ids=["path", "size", "distribution", "dataclass", "names", "packed", "operator", "custom", "other"],
)
def test_what_export_refuses_is_told_with_its_place(
    model: nn.Module, example: Any, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    said = refusal(model.eval(), example)
    assert re.search(message, said)
    assert ADVICE not in said
    assert capfd.readouterr().err == ""


def test_torch_logs_nothing_of_a_model_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AvgPool2d(9)).eval()
    assert "the model itself fails" in refusal(model, torch.randn(2, 3, 8, 8))
    assert [record.name for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_failure_to_take_operators_apart_is_none_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise NotImplementedError("aten.strange has no kernel\nand more")

    monkeypatch.setattr(exporting, "_taken_apart", broken)
    said = refusal(nn.Linear(6, 4), X)
    assert "operators of this model apart: NotImplementedError: aten.strange has no kernel. Write" in said


def test_weights_made_in_inference_mode_are_told_by_name() -> None:
    with torch.inference_mode():
        model = nn.Sequential(nn.ReLU(), nn.Linear(6, 2))
    assert "parameter '1.weight' was made under torch.inference_mode()" in refusal(model, X)
    compile_model(copy.deepcopy(model), X, threads=1)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda _, x: doubled(x),
            r"secateur_tests\.doubled.*only operators of torch itself.*Write it in other",
        ),
        (
            lambda _, x: x.sort(1)[0],
            r"aten\.sort.*it returns 2 tensors, one is allowed\. Use x\.topk\(k, dim\)",
        ),
        (lambda _, x: x.median(1)[0], r"aten\.median.*it returns 2 tensors.*Use x\.topk"),
        (lambda _, x: x.kthvalue(2, 1)[0], r"aten\.kthvalue.*it returns 2 tensors.*Use x\.topk"),
        (lambda _, x: x.cumprod(1, dtype=torch.float32), r"argument torch\.float32; leave it out, .*\.to\("),
        (
            lambda _, x: x.double(),
            r"converts to torch\.float64; .*float32, int64 and bool are allowed",
        ),
        (lambda _, x: torch.cdist(x[:, None], x[:, None] + 1, p=torch.inf), "no place for its argument inf"),
    ],
)
@pytest.mark.parametrize("fallback", [None, "torch"])
def test_torch_is_offered_only_where_it_can_run(
    function: Callable[..., Tensor], message: str, fallback: Literal["torch"] | None
) -> None:
    """Not in a circle: what is refused with it is not advised without it."""
    said = refusal(With(function), X, fallback=fallback)
    assert re.search(message, said)
    assert "Compile with fallback" not in said


@pytest.mark.parametrize(
    ("model", "got"), [(lambda x: x, "<function"), (nn.Linear, "the class Linear"), (None, "None")]
)
def test_what_is_no_module_is_refused(model: Any, got: str) -> None:
    with pytest.raises(InvalidArgument, match=f"model must be a Module, such as nn.Linear.*, got {got}"):
        compile_model(model, X)


def test_the_mixed_precision_of_the_caller_does_not_matter() -> None:
    model = nn.Linear(6, 4)
    with torch.autocast("cpu"):
        plan = compile_model(model, X, threads=1)
        assert torch.is_autocast_enabled("cpu")
    assert worst_error(model, plan, [X]) < 1e-6


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_weight_without_numbers_is_told_by_its_shape() -> None:
    said = refusal(nn.Sequential(nn.ReLU(), nn.Linear(6, 0)), X)
    assert "aten.linear.default in 1 " in said
    assert "its 'weight' of shape (0, 6) holds no numbers" in said


def test_an_example_without_numbers_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"number 0 of the example has the shape \(4, 0\); every size"):
        compile_model(nn.Linear(6, 4), torch.zeros(4, 0))


def test_an_example_may_be_infinite() -> None:
    compile_model(nn.Linear(6, 4), X / 0, threads=1)


@pytest.mark.parametrize("how", ["inference", "expanded"])
def test_weights_that_a_checkpoint_cannot_be_written_to_are_told_by_name(how: str, tmp_path: Path) -> None:
    """And none before them is written."""
    save_sparse(nn.Linear(6, 4), tmp_path / "x")
    with torch.inference_mode(how == "inference"):
        model = nn.Linear(6, 4)
        model.bias = nn.Parameter(torch.zeros(4 if how == "inference" else 1).expand(4))
    before = model.state_dict()["weight"].clone()
    named = {
        "inference": r"'weight' .* under torch\.inference_mode",
        "expanded": r"'bias' .* is expanded.*clone",
    }
    with pytest.raises(CheckpointError, match=named[how]):
        load_sparse(tmp_path / "x", into=model)
    assert torch.equal(model.weight, before)
    if how == "inference":
        load_sparse(tmp_path / "x", into=copy.deepcopy(model))


@pytest.mark.parametrize(
    ("model", "number"), [(nn.LayerNorm(6), 1e30), (nn.GELU(), math.inf)], ids=["large", "infinite"]
)
def test_an_example_that_leads_to_no_ordinary_numbers_is_told(model: nn.Module, number: float) -> None:
    with pytest.raises(CompileError, match="infinite, NaN or very large: give one such as"):
        compile_model(model, X * number, threads=1)
