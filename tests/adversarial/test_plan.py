"""Plan files that are damaged or made to do harm: refused with an error, never run, never a crash."""

from __future__ import annotations

import copy
import hashlib
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import secateur as sc
from secateur.errors import PlanError, SecateurError
from secateur.runtime import Engine, read_plan
from secateur.runtime.program import parse_program

Json = dict[str, Any]


class Net(nn.Module):
    """A little of everything."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.pool, self.norm = nn.MaxPool2d(2), nn.LayerNorm(16)
        self.linear = nn.Linear(16, 20)
        with torch.no_grad():
            self.conv.weight.mul_(torch.rand(self.conv.weight.shape) < 0.2)
            self.linear.weight.mul_(torch.rand(self.linear.weight.shape) < 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(torch.relu(self.conv(x)))
        x = self.norm(x.flatten(2)[:, 1:].mean(1) + x.flatten(2)[:, 0])
        return torch.softmax(torch.cat([self.linear(x), x], 1), 1)


@pytest.fixture(scope="module")
def plan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("plan") / "net.plan"
    sc.runtime.compile(Net().eval(), torch.zeros(2, 3, 8, 8)).save(path)
    return path


def opened(path: Path) -> tuple[Json, bytes]:
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def program_of(path: Path) -> Json:
    header, data = opened(path)
    start, stop = header["__program__"]["data_offsets"]
    return json.loads(zlib.decompress(data[start:stop]))


def closed(header: Json, data: bytes, path: Path) -> Path:
    """Write a file whose digest is right, so that only what was changed can be at fault."""
    header["__metadata__"]["content_digest"] = f"sha256:{hashlib.sha256(data).hexdigest()}"
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def with_program(source: Path, target: Path, change: Callable[[Json], None]) -> Path:
    program = program_of(source)
    change(program)
    return with_program_bytes(source, target, zlib.compress(json.dumps(program).encode()))


def with_program_bytes(source: Path, target: Path, packed: bytes) -> Path:
    """The file with other bytes for the program; the entries behind it move."""
    header, data = opened(source)
    start, stop = header["__program__"]["data_offsets"]
    for entry in header.values():
        if "data_offsets" in entry and entry["data_offsets"][0] >= stop:
            entry["data_offsets"] = [n + len(packed) - (stop - start) for n in entry["data_offsets"]]
    header["__program__"].update(shape=[len(packed)], data_offsets=[start, start + len(packed)])
    return closed(header, data[:start] + packed + data[stop:], target)


def op_of(program: Json, kind: str) -> Json:
    return next(op for op in program["ops"] if op["op"] == kind)


def put(kind: str, key: str, value: object) -> Callable[[Json], None]:
    return lambda program: op_of(program, kind).__setitem__(key, value)


CHANGES: dict[str, Callable[[Json], object]] = {
    "unknown operation": put("conv", "op", "run_shell"),
    "operation without kind": lambda p: p["ops"][0].pop("op"),
    "missing attribute": lambda p: op_of(p, "conv").pop("stride"),
    "attribute too many": put("conv", "extra", 1),
    "key too many": lambda p: p.__setitem__("extra", 1),
    "missing key": lambda p: p.pop("values"),
    "ops is no list": lambda p: p.__setitem__("ops", {}),
    "op is no object": lambda p: p["ops"].__setitem__(0, 3),
    "stride 0": put("conv", "stride", [0, 1]),
    "stride of text": put("conv", "stride", ["1", "1"]),
    "stride true": put("conv", "stride", [True, 1]),
    "stride huge": put("conv", "stride", [2**31, 1]),
    "one stride": put("conv", "stride", [1]),
    "negative padding": put("conv", "padding", [-1, 1, 1, 1]),
    "padding wider than the window": put("conv", "padding", [3, 1, 1, 1]),
    "dilation huge": put("conv", "dilation", [2**30, 2**30]),
    "groups that do not divide": put("conv", "groups", 2),
    "groups 0": put("conv", "groups", 0),
    "unknown activation": put("conv", "activation", "explode"),
    "unknown kernel": put("conv", "kernels", [[1, "gather"]]),
    "no kernel": put("conv", "kernels", []),
    "kernels that fall": put("conv", "kernels", [[4, "dense"], [1, "rows"]]),
    "kernel is no pair": put("conv", "kernels", [3]),
    "measured is wrong": put("conv", "measured", [{"batch": 1, "us": {"dense": "fast"}}]),
    "unknown weight": put("conv", "weight", "nothing"),
    "weight of another shape": put("conv", "weight", "linear.weight"),
    "weight is null": put("conv", "weight", None),
    "bias of another shape": put("conv", "bias", "linear.bias"),
    "input that does not exist": put("conv", "inputs", [99]),
    "negative input": put("conv", "inputs", [-1]),
    "input read before it is written": lambda p: op_of(p, "conv").__setitem__(
        "inputs", [len(p["values"]) - 1]
    ),
    "no input": put("conv", "inputs", []),
    "three inputs": put("conv", "inputs", [0, 0, 0]),
    "residual of another shape": put("conv", "inputs", [0, 0]),
    "output written twice": lambda p: p["ops"][1].__setitem__("output", p["ops"][0]["output"]),
    "output is the input": put("conv", "output", 0),
    "output that does not exist": put("conv", "output", 99),
    "output is text": put("conv", "output", "1"),
    "shape that does not follow": lambda p: p["values"][1].__setitem__("shape", [-1, 8, 8, 9]),
    "two batches": lambda p: p["values"][1].__setitem__("shape", [-1, 8, -8, 8]),
    "dimension 0": lambda p: p["values"][1].__setitem__("shape", [-1, 8, 0, 8]),
    "shape without end": lambda p: p["values"][1].__setitem__("shape", [1] * 33),
    "value huge": lambda p: p["values"][0].__setitem__("shape", [-1, 2**30, 2**30, 8]),
    "input of another batch": lambda p: p["values"][0].__setitem__("shape", [-2, 3, 8, 8]),
    "value of another type": lambda p: p["values"][0].__setitem__("dtype", "f64"),
    "input of indices": lambda p: p["values"][0].__setitem__("dtype", "i64"),
    "value never written": lambda p: p["values"].append({"shape": [1], "dtype": "f32"}),
    "no inputs": lambda p: p.__setitem__("inputs", []),
    "no outputs": lambda p: p.__setitem__("outputs", []),
    "unknown output": lambda p: p["outputs"][0].__setitem__("value", 99),
    "pool of windows in the padding": put("max_pool", "padding", [2, 2, 2, 2]),
    "pool far outside": put("max_pool", "padding", [0, 0, 2**31 - 1, 0]),
    "pool too wide": put("max_pool", "kernel", [2**24 + 1, 2]),
    "pool without room": put("max_pool", "kernel", [9, 9]),
    "slice beyond the end": put("slice", "stop", 10**6),
    "slice that is empty": put("slice", "start", 8),
    "slice along the batch": put("slice", "dim", 0),
    "slice without step": put("slice", "step", 0),
    "mean over the batch": put("mean", "dims", [0]),
    "mean twice": put("mean", "dims", [1, 1]),
    "mean of nothing": put("mean", "dims", []),
    "cat along the batch": put("cat", "dim", 0),
    "softmax of no dimension": put("softmax", "dim", 7),
    "norm of the batch": put("layer_norm", "n_dims", 2),
    "eps is text": put("layer_norm", "eps", "small"),
    "eps without end": put("layer_norm", "eps", 10**400),
    "eps is negative": put("layer_norm", "eps", -1.0),
    "weight of another coding": lambda p: p["weights"]["conv.weight"].__setitem__("coding", "dense"),
    "weight of no coding": lambda p: p["weights"]["conv.weight"].__setitem__("coding", "zip"),
    "weight of another type": lambda p: p["weights"]["conv.weight"].__setitem__("dtype", "i64"),
    "weight of unknown type": lambda p: p["weights"]["conv.weight"].__setitem__("dtype", ["f32"]),
    "weight huge": lambda p: p["weights"]["conv.weight"].__setitem__("shape", [2**20, 2**20]),
    "weight with a batch": lambda p: p["weights"]["conv.weight"].__setitem__("shape", [-8, 3, 3, 3]),
    "weight too small": lambda p: p["weights"]["conv.weight"].__setitem__("shape", [8, 3, 3, 1]),
    "weight left over": lambda p: p["weights"].pop("conv.bias"),
    "working set of no pair": lambda p: p.__setitem__("working_set", [[1]]),
    "working set of nothing": lambda p: p.__setitem__("working_set", [[1, 0]]),
    "working set out of order": lambda p: p.__setitem__("working_set", [[4, 1024], [1, 2048]]),
    "working set is a number": lambda p: p.__setitem__("working_set", 4096),
    "one thread is less than none": lambda p: p.__setitem__("one_thread", -1),
    "one thread is true": lambda p: p.__setitem__("one_thread", True),
    "one thread is missing": lambda p: p.pop("one_thread"),
    "unknown precision": lambda p: p.__setitem__("precision", "int4"),
    "precision is a list": lambda p: p.__setitem__("precision", ["fp32"]),
    "provenance is text": lambda p: p.__setitem__("provenance", "me"),
    "in torch without torch's names": put("softmax", "op", "torch"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_programs_that_break_a_rule_are_refused(name: str, plan_file: Path, tmp_path: Path) -> None:
    changed = with_program(plan_file, tmp_path / "bad.plan", lambda p: CHANGES[name](p))
    with pytest.raises(PlanError):
        read_plan(changed)


def test_the_file_that_the_changes_start_from_is_good(plan_file: Path, tmp_path: Path) -> None:
    same = with_program(plan_file, tmp_path / "same.plan", lambda p: None)
    x = np.ones((2, 3, 8, 8), np.float32)
    np.testing.assert_array_equal(Engine(read_plan(same))(x), Engine(read_plan(plan_file))(x))


@pytest.mark.parametrize(
    "target",
    [
        "aten.from_file.default",
        "aten.relu_.default",
        "aten.set_.source_Storage",
        "aten.rand.default",
        "prims.add.default",
        "os.system",
        "aten.__class__.default",
        "aten.relu.__globals__",
        "aten.topk.default",
        "aten.relu",
        "",
    ],
)
def test_only_harmless_operators_run_in_torch(target: str, plan_file: Path, tmp_path: Path) -> None:
    def change(program: Json) -> None:
        op = op_of(program, "softmax")
        op.pop("dim")
        op.update(
            {"op": "torch", "target": target, "arguments": [{"input": 0}], "keywords": {}, "dtype": "f32"}
        )

    with pytest.raises(PlanError, match="may not run"):
        sc.runtime.load(with_program(plan_file, tmp_path / "bad.plan", change))


def test_an_operator_in_torch_that_gives_another_shape_is_an_error(plan_file: Path, tmp_path: Path) -> None:
    def change(program: Json) -> None:
        op = op_of(program, "softmax")
        op.pop("dim")
        op.update(
            {
                "op": "torch",
                "target": "aten.sum.default",
                "arguments": [{"input": 0}],
                "keywords": {},
                "dtype": "f32",
            }
        )

    engine = sc.runtime.load(with_program(plan_file, tmp_path / "odd.plan", change))
    with pytest.raises(SecateurError, match="another shape"):
        engine(np.ones((2, 3, 8, 8), np.float32))


def test_damage_is_found_by_the_digest(plan_file: Path, tmp_path: Path) -> None:
    content = bytearray(plan_file.read_bytes())
    content[-1] ^= 1
    (tmp_path / "bad.plan").write_bytes(content)
    with pytest.raises(PlanError, match="digest"):
        read_plan(tmp_path / "bad.plan")


@pytest.mark.parametrize("length", [0, 3, 8, 100, 2000, -1])
def test_truncated_files_are_refused(length: int, plan_file: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.plan").write_bytes(plan_file.read_bytes()[:length])
    with pytest.raises(PlanError):
        read_plan(tmp_path / "bad.plan")


HEADERS: dict[str, Callable[[Json], object]] = {
    "another format": lambda h: h["__metadata__"].__setitem__("format", "secateur-sparse"),
    "another version": lambda h: h["__metadata__"].__setitem__("version", "2"),
    "metadata too many": lambda h: h["__metadata__"].__setitem__("more", ""),
    "no program": lambda h: h.pop("__program__"),
    "program of another type": lambda h: h["__program__"].__setitem__("dtype", "F32"),
    "entry too many": lambda h: h.__setitem__("more", {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}),
    "entry without shape": lambda h: h["conv.bias"].pop("shape"),
    "entry of unknown type": lambda h: h["conv.bias"].__setitem__("dtype", "F8"),
    "entry of another type": lambda h: h["conv.bias"].__setitem__("dtype", "I64"),
    "entry of negative size": lambda h: h["conv.bias"].__setitem__("shape", [-8]),
    "entry of no size": lambda h: h["conv.bias"].__setitem__("shape", 8),
    "entry too large": lambda h: h["conv.bias"].__setitem__("shape", [2**40]),
    "entry of overflowing size": lambda h: h["conv.bias"].__setitem__("shape", [2**47] * 30),
    "overlapping entries": lambda h: h["linear.bias"].__setitem__("data_offsets", [0, 32]),
    "missing entry": lambda h: h.pop("conv.weight.index"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_break_a_rule_are_refused(name: str, plan_file: Path, tmp_path: Path) -> None:
    header, data = opened(plan_file)
    HEADERS[name](header)
    with pytest.raises(PlanError):
        read_plan(closed(header, data, tmp_path / "bad.plan"))


PROGRAMS = {
    "nothing": b"",
    "not compressed": b"{}",
    "no JSON": zlib.compress(b"{"),
    "no object": zlib.compress(b"3"),
    "no text": zlib.compress(b"\xff"),
    "nested without end": zlib.compress(b"[" * 100_000),
    "truncated": zlib.compress(b"[]")[:-3],
    "followed by something": zlib.compress(b"[]") + b"more",
    "unpacking to more than memory": zlib.compress(b" " * (1 << 28) + b"[]", 9),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_that_do_not_unpack_are_refused(name: str, plan_file: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError):
        read_plan(with_program_bytes(plan_file, tmp_path / "bad.plan", PROGRAMS[name]))


def test_an_index_must_fit_its_weight(plan_file: Path, tmp_path: Path) -> None:
    """Every byte of an index, changed in every way, gives a refusal or a weight that fits."""
    header, data = opened(plan_file)
    for name in ("conv.weight.index", "linear.weight.index"):
        start, stop = header[name]["data_offsets"]
        for place in range(start, stop):
            for value in (0, 1, 0x7F, 0xF0, 0xFF):
                changed = bytearray(data)
                changed[place] = value
                path = closed(copy.deepcopy(header), bytes(changed), tmp_path / "bad.plan")
                try:
                    weight = read_plan(path).weights[name.removesuffix(".index")]
                except PlanError:
                    continue
                assert weight.positions is not None
                assert weight.positions.size == weight.numbers.size
                assert weight.positions.size == 0 or weight.positions.max() < weight.numel
                assert (np.diff(weight.positions.astype(np.int64)) > 0).all()


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300)
@given(data=st.data())
def test_any_part_of_a_program_replaced_by_anything(data: st.DataObject, plan_file: Path) -> None:
    """Either the program is refused, or it is one that the engine runs or refuses without a crash."""
    program = program_of(plan_file)
    parent: Any = program
    while True:
        keys = sorted(parent) if isinstance(parent, dict) else range(len(parent))
        key = data.draw(st.sampled_from(list(keys)))
        child = parent[key]
        if not isinstance(child, (dict, list)) or not child or data.draw(st.integers(0, 3)) == 0:
            break
        parent = child
    parent[key] = data.draw(JSON_VALUES)
    try:
        text = json.dumps(program)
        parsed = parse_program(text)
    except PlanError:
        return
    plan = read_plan(plan_file)
    if parsed.weights == plan.program.weights:
        engine = Engine(type(plan)(parsed, plan.weights))
        x = np.ones((2, *engine.inputs[0][1][1:]), np.float32)
        try:
            engine(x)
        except SecateurError:
            return


@pytest.mark.parametrize("n_inputs", [0, 1, 3])
def test_the_native_engine_counts_the_inputs_of_a_product_for_itself(n_inputs: int) -> None:
    native = pytest.importorskip("secateur.runtime._native")
    product = {"op": "mul", "name": "a", "inputs": [0] * n_inputs, "output": 1, "activation": "none"}
    program = {
        "precision": "fp16",
        "working_set": [],
        "one_thread": 0,
        "values": [{"shape": [-1, 4], "dtype": "f32"}] * 2,
        "inputs": [{"name": "x", "value": 0}],
        "outputs": [{"name": "y", "value": 1}],
        "weights": {},
        "ops": [product],
        "provenance": {},
    }
    with pytest.raises(ValueError, match="input"):
        native.Engine(json.dumps(program), {}, 1)
