"""Recurrent layers, which a plan does step by step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from runtime.models import worst_error
from secateur.runtime import Plan
from secateur.runtime import compile as compile_model

N_STEPS = 5


class Reader(nn.Module):
    """Reads a sequence, and tells something of its last step and of the state."""

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.read = getattr(nn, kind)(3, 8, batch_first=True, **options)
        self.head = nn.LazyLinear(4)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, last = self.read(x) if state is None else self.read(x, state.transpose(0, 1))
        last = last[0] if isinstance(last, tuple) else last
        return self.head(y[:, -1]), last.transpose(0, 1)


class Cells(nn.Module):
    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell, self.head = getattr(nn, kind)(3, 8, **options), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        for step in range(N_STEPS):
            state = self.cell(x[:, step], state)
        return self.head(state[0] if isinstance(state, tuple) else state)


def sequences(batch: int = 4) -> Tensor:
    return torch.randn(batch, N_STEPS, 3, generator=torch.Generator().manual_seed(1))


def made(kind: str, **options: Any) -> Reader:
    model = Reader(kind, **options).eval()
    model(sequences())
    return model


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_layers(kind: str, options: dict[str, Any]) -> None:
    model, x = made(kind, **options), sequences()
    plan = compile_model(model, x)
    for batch in (1, 2, 7):
        assert worst_error(model, plan, [sequences(batch)]) < 1e-5


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize(
    ("kind", "options"), [("RNN", {"nonlinearity": "relu", "bias": False}), ("LSTM", {"proj_size": 5})]
)
def test_variants(kind: str, options: dict[str, Any]) -> None:
    model, x = made(kind, **options), sequences()
    assert worst_error(model, compile_model(model, x), [x]) < 1e-5


def test_the_first_state_may_be_an_input() -> None:
    model, inputs = made("GRU"), [sequences(), torch.randn(4, 1, 8)]
    assert worst_error(model, compile_model(model, inputs), inputs) < 1e-5


@pytest.mark.parametrize(
    ("kind", "options"),
    [("RNNCell", {}), ("RNNCell", {"nonlinearity": "relu"}), ("GRUCell", {}), ("LSTMCell", {"bias": False})],
)
def test_cells(kind: str, options: dict[str, Any]) -> None:
    model, x = Cells(kind, **options).eval(), sequences()
    assert worst_error(model, compile_model(model, x), [x]) < 1e-5


def test_a_pruned_layer_is_stored_once_and_shown_once() -> None:
    model, x = made("LSTM"), sequences()
    masks = sc.cut(model, None, sc.Magnitude(), sparsity=0.9, include=("*", "read.weight_*"))
    plan: Plan = compile_model(model, x, batches=[1])
    assert worst_error(model, plan, [x]) < 1e-5
    (weight,) = (w for w in plan.weights.values() if w.shape == (32, 8))
    assert weight.numbers.size == int(masks["read.weight_hh_l0"].sum())
    shown = [line for line in str(plan).splitlines() if line.startswith("read")]
    assert (
        sum(int(line.split(", ")[1].split()[0]) if "times" in line else 1 for line in shown) == N_STEPS
    )  # the first state is zero
    assert len(shown) < N_STEPS
