"""Other engines with the network of a plan: each agrees, an absent one is named, a wrong one gets no time."""

from __future__ import annotations

import json
import shutil
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from runtime.models import Encoder, Padded, sparsify
from secateur.cli import main
from secateur.errors import MissingExtra
from secateur.runtime import Plan, rivals
from secateur.runtime.differences import largest_difference
from secateur.runtime.rivals import RIVALS, Rival
from secateur.runtime.timing import random_inputs, time_plan

MODULES = {"mnn": "MNN", "mnn-sparse": "MNN", "openvino-default": "openvino", "torch.compile": "torch"}


class Images(nn.Module):
    """Several outputs, among them planes of channels that are no multiple of what engines pack together."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.down = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 5, 3, stride=2)

    def forward(self, x: Tensor) -> list[Tensor]:
        y = torch.relu(self.conv(x))
        return [self.down(y), y.mean((2, 3)), y]


def plan_of(model: nn.Module, example: Tensor) -> Plan:
    return sc.runtime.compile(sparsify(model), example, threads=1)


@pytest.fixture(scope="module")
def plans() -> dict[str, Plan]:
    torch.manual_seed(0)
    return {
        "images": plan_of(Images(), torch.zeros(2, 3, 9, 7)),
        "words": plan_of(Encoder(), torch.zeros(2, 12, dtype=torch.int64)),
        "padded": plan_of(Padded(), torch.arange(24).view(2, 12) % 9),
    }


@pytest.fixture(scope="module")
def plan_file(plans: dict[str, Plan], tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("rivals") / "net.plan"
    plans["images"].save(path)
    return str(path)


def need(name: str) -> None:
    """Skips if the engine, or what it needs to be built, is not installed."""
    pytest.importorskip(MODULES.get(name, name))
    if name == "torch.compile":
        if shutil.which("c++") is None:
            pytest.skip("torch.compile needs a C++ compiler")
    elif name != "torch":
        pytest.importorskip("onnx")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # torch.compile imports what torch deprecates
@pytest.mark.parametrize("network", ["images", "words", "padded"])
@pytest.mark.parametrize("name", RIVALS)
def test_every_engine_computes_what_the_plan_does(name: str, network: str, plans: dict[str, Plan]) -> None:
    need(name)
    plan = plans[network]
    timings = time_plan(plan, random_inputs(plan, batch=3), threads=1, against=[name], seconds=0.01)
    rival = timings[1]
    assert rival.name == name
    assert rival.agrees
    if not rival.version.endswith("bf16"):
        assert rival.difference < 1e-4
    assert 0 < rival.median_s <= rival.p95_s


@pytest.mark.parametrize("name", ["onnxruntime", "mnn", "mnn-sparse"])
def test_only_json_comes_out_for_programs(
    name: str, plan_file: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Not what an engine prints past Python, either."""
    need(name)
    command = ["time", plan_file, "--seconds", "0.01", "--threads", "1", "--json", "--against", name]
    assert main(command) == 0
    assert [t["name"] for t in json.loads(capfd.readouterr().out)["timings"]] == ["secateur", name]


@pytest.mark.parametrize("name", RIVALS)
def test_an_absent_package_is_named_with_its_extra(
    name: str, plans: dict[str, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(rivals, "version", absent)
    package = RIVALS[name][0]
    with pytest.raises(MissingExtra, match=rf"needs the package {package}: pip install 'secateur\[bench\]'"):
        rivals.build_rival(name, plans["images"], [], threads=1)


def test_an_absent_onnx_is_named_with_its_extra(
    plans: dict[str, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    need("onnxruntime")
    monkeypatch.setitem(sys.modules, "onnx", None)
    inputs = random_inputs(plans["images"], batch=1)
    with pytest.raises(MissingExtra, match=r"package onnx: pip install 'secateur\[bench\]'"):
        rivals.build_rival("onnxruntime", plans["images"], inputs, threads=1)


def test_an_engine_that_computes_something_else_gets_no_time(
    plan_file: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def build(title: str, plan: Plan, inputs: object, threads: int) -> Rival:
        good = RIVALS["torch"][1](title, plan, [], threads)
        return Rival("wrong", title, lambda arrays: [y + np.float32(0.1) for y in good.run(arrays)])

    monkeypatch.setitem(RIVALS, "wrong", ("torch", build))
    assert main(["time", plan_file, "--seconds", "0.01", "--threads", "1", "--against", "torch,wrong"]) == 1
    shown = capsys.readouterr()
    assert "outputs of wrong differ" in " ".join(shown.err.split())
    assert "wrong" not in shown.out
    assert "torch" in shown.out


@pytest.mark.parametrize(
    ("found", "expected", "difference"),
    [
        ([1.0, -2.0], [1.5, -2.0], 0.25),
        ([np.nan, 1.0], [np.nan, 1.0], 0.0),
        ([np.nan, 1.0], [0.5, 1.0], np.inf),
        ([0.5, 1.0], [np.nan, 1.0], np.inf),
        ([np.inf, 1.0], [np.inf, 2.0], 0.5),
        ([np.inf, 1.0], [-np.inf, 1.0], np.inf),
        ([1.0], [1.0, 1.0], np.inf),
    ],
)
def test_what_is_no_number_differs_from_numbers(
    found: list[float], expected: list[float], difference: float
) -> None:
    a, b = (np.array([x], np.float32) for x in (found, expected))
    assert largest_difference(a, b) == difference


def test_a_network_that_an_engine_cannot_hold_is_refused_before_it_is_converted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    need("mnn")

    class Strange(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.atan(x)

    plan = sc.runtime.compile(Strange(), torch.zeros(2, 3), fallback="torch", threads=1)
    plan.save(tmp_path / "net.plan")
    assert main(["time", str(tmp_path / "net.plan"), "--against", "mnn"]) == 2
    assert "no other engine can run this plan" in " ".join(capsys.readouterr().err.split())
