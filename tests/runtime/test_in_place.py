"""Tensors that a model changes in place: what else is seen of the change, and what it costs to find out."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.models import ENGINES, Function, outputs_in, worst_error
from secateur.runtime import compile as compile_model

X = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))


def later(x: Tensor) -> Tensor:
    """An input, as long as nobody changes what was made of it."""
    y = x * 2
    view = y[:, 1:4]
    F.relu_(y)
    return view


IN_PLACE: dict[str, Callable[[Tensor], object]] = {
    "a new tensor": lambda x: F.relu_(x * 2).mul_(3).add_(x),
    "with itself": lambda x: (y := x * 2).add_(y),
    "what others see": lambda x: [y := x * 2, F.relu_(y)],
    "what is seen later": lambda x: F.relu_(y := x * 2) + y,
    "what a view sees": later,
    "a view": lambda x: F.relu_((y := x * 2).view(-1, 2, 3)).flatten(1) + y,
    "what a conversion hands on": lambda x: F.relu_((y := x * 2).float()) + y,
    "what dropout hands on": lambda x: F.relu_(F.dropout(y := x * 2, training=False)) + y,
    "what dropout returns": lambda x: [F.dropout(y := x * 2, training=False), F.relu_(y)],
    "what dropout of nothing returns": lambda x: [F.dropout(y := x * 2, 0.0), F.relu_(y)],
    "a part": lambda x: [y := x * 2, y.unbind(1)[2].mul_(3)],
    "an input": lambda x: F.relu_(x) + x,
    "a comparison": lambda x: (x * 2).gt_(0.5) + x,
    "whole numbers": lambda x: (x.long() * 2).logical_not_() + x,
    "a condition": lambda x: (x > 0).logical_not_().float().add_(x),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_what_is_changed_in_place(name: str) -> None:
    plan = compile_model(Function(IN_PLACE[name]), X.clone(), threads=1)
    for n in (2, 1, 5):
        x = torch.cat([X] * 3)[:n]
        expected = IN_PLACE[name](x.clone())
        expected = expected if isinstance(expected, list) else [expected]
        for found, y in zip(outputs_in(ENGINES[0], plan, [x]), expected, strict=True):
            np.testing.assert_allclose(found, y.numpy(), rtol=1e-6)


def test_networks_of_common_layers_are_exported_once() -> None:
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(), nn.ReLU6(inplace=True)]
    model = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    x = torch.randn(2, 3, 9, 9)
    with mock.patch.object(torch.export.ExportedProgram, "run_decompositions", side_effect=AssertionError):
        plan = compile_model(model.eval(), x, threads=1)
    assert worst_error(model, plan, [x]) < 1e-5
