"""The recipe of a recovery: its precision, and the numbers that it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from secateur.errors import InvalidArgument
from secateur.recovery import Recovery, autocast_for, resolve_precision


@pytest.mark.parametrize(("has_bf16", "auto"), [(True, "bf16"), (False, "fp32")])
def test_precisions(has_bf16: bool, auto: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: has_bf16)
    cpu = torch.device("cpu")
    assert resolve_precision("fp32", cpu) == "fp32"
    assert resolve_precision("bf16", cpu) == "bf16"
    assert resolve_precision("auto", cpu) == auto
    assert resolve_precision("auto", torch.device("meta")) == "fp32"


@pytest.mark.parametrize(
    ("options", "bf16"),
    [
        ({}, True),
        ({"precision": "fp32"}, False),
        ({"kd": "mse"}, False),
        ({"kd": "mse", "precision": "bf16"}, True),
    ],
    ids=str,
)
def test_auto_compares_only_logits_in_bf16(
    options: dict[str, Any], bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: True)
    with autocast_for(Recovery(**options), torch.device("cpu")):
        assert torch.is_autocast_enabled("cpu") == bf16


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": -1},
        {"kd_weight": 1.1},
        {"kd_weight": math.nan},
        {"temperature": 0.0},
        {"temperature": -4.0},
        {"kd": "l1"},
        {"beta": 1.5},
        {"lr": -0.1},
        {"lr": math.inf},
        {"momentum": 1.0},
        {"weight_decay": -1e-4},
        {"warmup": 1.0},
        {"precision": "fp16"},
        {"teacher_views": -1},
        {"epochs": "2"},
        {"epochs": 2.5},
        {"epochs": True},
        {"teacher_views": 1.0},
        {"lr": None},
        {"weight_decay": "0"},
        {"temperature": "4"},
        {"momentum": None},
    ],
    ids=str,
)
def test_a_recipe_checks_its_numbers(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(InvalidArgument, match=f"{name} must be"):
        Recovery(**options)
