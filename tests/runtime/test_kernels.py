"""Each kernel alone, whichever is the fastest on this machine; and which are timed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from runtime.conftest import HAS_NATIVE
from runtime.models import MobileNet, sparsify, worst_error
from secateur.models import resnet
from secateur.models.vgg import vgg16_bn
from secateur.runtime import Engine, Plan, choice, engine
from secateur.runtime.attributes import KERNELS

pytestmark = pytest.mark.skipif(not HAS_NATIVE, reason="there is no native engine")
MODELS = {"resnet20": resnet.resnet20, "vgg16": vgg16_bn, "mobilenet": MobileNet}


def forced(plan: Plan, kernel: str) -> Plan:
    """The plan with one kernel for all convolutions; where a layer has no such kernel, another one runs."""
    ops = tuple(
        replace(op, attributes={**op.attributes, "kernels": [[1, kernel]]}) if op.kind == "conv" else op
        for op in plan.program.ops
    )
    return replace(plan, program=replace(plan.program, ops=ops))


class Atan(nn.Module):
    """An operator that plans have no operation for."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.atan(x)


@pytest.mark.parametrize("name", MODELS)
def test_every_kernel_gives_what_torch_gives(name: str) -> None:
    model = sparsify(MODELS[name]())
    plan = sc.runtime.compile(model, torch.zeros(2, 3, 32, 32))
    for kernel in ("dense", "winograd", "rows"):
        for n in (1, 3, 17):
            x = torch.randn(n, 3, 32, 32)
            assert worst_error(model, forced(plan, kernel), [x], engines=["native"]) < 1e-5


@pytest.mark.parametrize("op", KERNELS)
def test_the_format_names_the_kernels_that_there_are(op: str) -> None:
    from secateur.runtime import _native

    assert set(KERNELS[op]) == set(_native.kernels(op))


@pytest.mark.parametrize(("precision", "fits"), [("fp32", True), ("bf16", True), ("fp16", False)])
def test_winograd_is_timed_for_filters_of_3x3_that_fit(precision: str, fits: bool) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.Conv2d(16, 16, 3, groups=2),
        nn.Conv2d(16, 16, 3, stride=2),
        nn.Conv2d(16, 16, 3, dilation=2),
        nn.Conv2d(16, 16, (1, 3)),
    )
    plan = sc.runtime.compile(model, torch.zeros(2, 3, 24, 24), precision=precision)
    timed = [{kernel for row in op.attributes["measured"] for kernel in row["us"]} for op in plan.program.ops]
    assert ["winograd" in kernels for kernels in timed] == [fits, False, False, False, False]
    assert all("dense" in kernels for kernels in timed)


@pytest.mark.skipif(not HAS_NATIVE, reason="needs the native engine")
def test_one_core_gives_no_advice_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread against one is a draw, which noise would decide."""
    monkeypatch.setattr(engine.os, "sched_getaffinity", lambda _: {0}, raising=False)
    monkeypatch.setattr(
        choice, "_least_seconds", lambda plans, *_, **__: dict.fromkeys(plans, 0.0) | {1: -1.0}
    )
    plan = sc.runtime.compile(nn.Linear(4, 4).eval(), torch.zeros(1, 4))
    assert plan.program.one_thread == 0
    monkeypatch.setattr(engine.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert sc.runtime.compile(nn.Linear(4, 4).eval(), torch.zeros(1, 4)).program.one_thread == 1


@pytest.mark.skipif(not HAS_NATIVE, reason="needs the native engine")
def test_parts_in_torch_do_not_hide_how_long_a_run_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short run is measured with what it needs in the caches: twice, but for the first time."""
    seen: list[int] = []
    profile = Engine.profile

    def watched(self: Engine, *inputs: object, repeats: int = 1) -> object:
        seen.append(repeats)
        return profile(self, *inputs, repeats=repeats)

    monkeypatch.setattr(Engine, "profile", watched)
    model = nn.Sequential(nn.Linear(4, 4), Atan()).eval()
    sc.runtime.compile(model, torch.zeros(1, 4), fallback="torch", threads=1, batches=[1])
    assert 2 in seen
