"""Each kernel alone, whichever is the fastest on this machine; and which are timed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import secateur as sc
from runtime.conftest import HAS_NATIVE
from runtime.models import MobileNet, sparsify, worst_error
from secateur.models import resnet
from secateur.models.vgg import vgg16_bn
from secateur.runtime import Plan
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


@pytest.mark.parametrize("name", MODELS)
def test_every_kernel_gives_what_torch_gives(name: str) -> None:
    model = sparsify(MODELS[name]())
    plan = sc.runtime.compile(model, torch.zeros(2, 3, 32, 32))
    for kernel in ("dense", "winograd", "rows"):
        for n in (1, 3, 17):
            assert worst_error(model, forced(plan, kernel), [torch.randn(n, 3, 32, 32)]) < 1e-5


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
