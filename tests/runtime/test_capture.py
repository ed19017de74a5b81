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

    with pytest.raises(CompileError, match="changes its buffer 'seen'.*pass it in as an input"):
        compile_model(With(stateful), X)


def test_one_tensor_may_be_the_example_of_two_inputs() -> None:
    plan = compile_model(With(lambda _, a, b: a - b), (X, X), threads=1)
    a, b = np.ones((3, 6), np.float32), np.zeros((3, 6), np.float32)
    np.testing.assert_array_equal(Engine(plan, threads=1)(a, b), a)


@pytest.mark.parametrize("results", [(X, 3), (None, X)], ids=str)
def test_an_output_that_is_no_tensor_is_refused(results: tuple[object, ...]) -> None:
    with pytest.raises(CompileError, match=r"output [01] of the model is no tensor, but (3|None)"):
        compile_model(With(lambda _, x: [x if isinstance(r, Tensor) else r for r in results]), X)
