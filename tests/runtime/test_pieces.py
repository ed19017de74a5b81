"""Plans with parts in torch, between which values pass with the batch elsewhere, in parts, or not at all."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from runtime.models import worst_error
from runtime.test_ops import Function
from secateur.runtime import compile as compile_model

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "several rows for each": lambda x: torch.atan(x.reshape(-1, 3)) * 2,
    "batch last": lambda x: (torch.atan(x.t()) * 2).t() + x,
    "no batch": lambda x: (x * 2 + torch.atan(x[:1].sum(0))) * x,
    "no dimension": lambda x: x * 2 + torch.median(x[:1]) * x,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_of_any_shape_pass_between_parts(name: str) -> None:
    model = Function(FUNCTIONS[name])
    x = torch.randn(100, 6)
    plan = compile_model(model, x[:2], fallback="torch")
    assert "torch" in {op.kind for op in plan.program.ops}
    for n in (1, 2, 5, 100):
        assert worst_error(model, plan, [x[:n]]) < 1e-5
