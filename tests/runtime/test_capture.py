"""What `compile` makes of a model as a whole: its inputs and outputs, its state, its batch size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from runtime.models import worst_error
from secateur.errors import CompileError
from secateur.runtime import Engine
from secateur.runtime import compile as compile_model
from secateur.runtime.lowering import LOWERINGS

X = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))


class With(nn.Module):
    """A function of a module with a buffer and its inputs."""

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("seen", torch.ones(6))

    def forward(self, *inputs: Tensor) -> object:
        return self.function(self, *inputs)


def agrees(model: nn.Module, *example: Tensor) -> None:
    """A model gives what torch gives, for the batch size of the example and for others."""
    plan = compile_model(model.eval(), example, threads=1)
    for n in (2, 1, 5):
        assert worst_error(model, plan, [torch.cat([x] * 5)[:n] for x in example]) < 1e-5


def test_an_input_changed_in_place_is_no_output() -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 4)).eval()
    engine = Engine(compile_model(model, X.clone(), threads=1), threads=1)
    x = X.numpy().copy()
    y = engine(x)
    assert isinstance(y, np.ndarray)
    assert y.shape == (2, 4)
    np.testing.assert_array_equal(x, X.numpy())


def test_a_counter_that_no_output_depends_on_is_left_out() -> None:
    def counted(self: nn.Module, x: Tensor) -> Tensor:
        self.seen.add_(1)
        return x * 2

    model = With(counted)
    agrees(model, X)
    assert [name for name, _ in compile_model(model, X).program.outputs] == ["output"]


@pytest.mark.parametrize("first", [True, False])
def test_state_is_refused_by_name(first: bool) -> None:
    def stateful(self: nn.Module, x: Tensor) -> Tensor:
        before = x * self.seen
        self.seen.add_(1)
        return before if first else x * self.seen

    with pytest.raises(CompileError, match=r"changes its buffer 'seen'.*pass it in as an input"):
        compile_model(With(stateful), X)


def test_one_tensor_may_be_the_example_of_two_inputs() -> None:
    plan = compile_model(With(lambda _, a, b: a - b), (X, X), threads=1)
    a, b = np.ones((3, 6), np.float32), np.zeros((3, 6), np.float32)
    np.testing.assert_array_equal(Engine(plan, threads=1)(a, b), a)


@pytest.mark.parametrize("results", [(X, 3), (None, X)], ids=str)
def test_an_output_that_is_no_tensor_is_refused(results: tuple[object, ...]) -> None:
    with pytest.raises(CompileError, match=r"output [01] of the model is no tensor, but (3|None)"):
        compile_model(With(lambda _, x: [x if isinstance(r, Tensor) else r for r in results]), X)


@pytest.mark.parametrize(
    "function",
    [
        lambda _, x: x * x.shape[0],
        lambda _, x: x / x.numel(),
        lambda _, x: torch.add(x, x, alpha=x.shape[0]),
        lambda _, x: x ** x.shape[0],
        lambda _, x: x + torch.full((1, 6), x.shape[0]),
        lambda _, x: x.clamp(max=x.shape[0]),
        lambda _, x: x * x.shape[0] ** 0.5,
    ],
)
def test_arithmetic_with_the_batch_size_is_refused(function: Callable[..., Tensor]) -> None:
    with pytest.raises(CompileError, match=r"aten\..* depends on the batch size"):
        compile_model(With(function), X)


def test_arithmetic_with_the_batch_size_runs_in_torch_if_asked() -> None:
    model = With(lambda _, x: x * x.shape[0] - x / x.numel())
    plan = compile_model(model, X, fallback="torch", threads=1)
    assert worst_error(model, plan, [torch.ones(5, 6)]) < 1e-6


def test_the_batch_size_in_a_shape_is_none_in_arithmetic() -> None:
    agrees(
        With(lambda _, x: x.view(x.shape[0], 2, 3)[: x.shape[0]].reshape(x.shape[0] * 2, 3).view(-1, 6)), X
    )


def test_what_breaks_a_lowering_is_told_with_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> object:
        return {}["nothing"]

    monkeypatch.setitem(LOWERINGS, "aten.tanh.default", broken)
    with pytest.raises(CompileError, match=r"aten\.tanh\.default in the model itself .*KeyError: 'nothing'"):
        compile_model(With(lambda _, x: x.tanh()), X)


@pytest.mark.parametrize(
    "function",
    [
        lambda _, x: x.float() * 2,
        lambda _, x: x.to(torch.float32).to("cpu").to(x.device) * 2,
        lambda _, x: x.to(x.dtype) + 1,
    ],
)
def test_conversions_to_the_type_at_hand_change_nothing(function: Callable[..., Tensor]) -> None:
    agrees(With(function), X)
