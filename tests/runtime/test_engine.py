"""Plans as files and engines as users meet them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from runtime.conftest import HAS_NATIVE
from runtime.models import Encoder, sparsify
from secateur.errors import InvalidArgument, PlanError, SlowEngineWarning
from secateur.models import resnet
from secateur.runtime import Engine, Plan, read_plan
from secateur.runtime import engine as engine_module


@pytest.fixture(scope="module")
def plan() -> Plan:
    torch.manual_seed(0)
    return sc.runtime.compile(sparsify(resnet.resnet20(), density=0.1), torch.randn(2, 3, 32, 32))


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((4, 3, 32, 32), np.float32)


def test_the_engine_needs_numpy_alone(plan: Plan, images: np.ndarray, tmp_path: Path) -> None:
    """The whole path of a deployed engine, in a process that fails if anything imports torch."""
    plan.save(tmp_path / "net.plan")
    np.save(tmp_path / "x.npy", images)
    code = """
import builtins, json, sys
before = set(sys.modules)  # what starts Python, and finds packages under development
real = builtins.__import__
def guarded(name, *rest, **options):
    assert name.split('.')[0] not in ('torch', 'safetensors'), name
    return real(name, *rest, **options)
builtins.__import__ = guarded
import numpy as np
import secateur as sc
engine = sc.runtime.load('net.plan', threads=2)
y = engine(np.load('x.npy'))
np.save('y.npy', y)
new = {m.split('.')[0] for m in set(sys.modules) - before}
print(json.dumps(sorted(new - set(sys.stdlib_module_names))))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == ["numpy", "secateur"]
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), Engine(plan, threads=2)(images))


@pytest.mark.parametrize("density", [0.2, 0.1, 0.05])
def test_a_plan_file_is_as_small_as_promised(density: float, tmp_path: Path) -> None:
    model = sparsify(resnet.resnet20(), density=density)
    plan = sc.runtime.compile(model, torch.randn(2, 3, 32, 32))
    plan.save(tmp_path / "net.plan")
    assert (tmp_path / "net.plan").stat().st_size <= 5.5 * plan.n_nonzero


def test_a_plan_comes_back_from_its_file(plan: Plan, tmp_path: Path) -> None:
    plan.save(tmp_path / "net.plan")
    again = read_plan(tmp_path / "net.plan")
    assert again.program == plan.program
    assert str(again) == str(plan)
    for name, weight in plan.weights.items():
        np.testing.assert_array_equal(again.weights[name].to_dense(), weight.to_dense())
    again.save(tmp_path / "again.plan")
    assert (tmp_path / "again.plan").read_bytes() == (tmp_path / "net.plan").read_bytes()


def test_the_table_names_every_layer(plan: Plan) -> None:
    text = str(plan)
    layers = plan.layers()
    names = {layer.name for layer in layers}
    assert len(names) == 22  # two shortcuts among them
    assert all(name in text for name in names)
    for layer in layers:
        assert layer.kernel in ("dense", "winograd", "rows", "gather")
        assert layer.density == 1 or 0.01 < layer.density < 0.2
    assert f"{plan.n_nonzero:,} of {plan.n_weights:,} weights are not zero; fp32" in text


@pytest.mark.usefixtures("engine")
class TestInputs:
    """What an engine takes."""

    def test_dlpack_in_and_out(self, plan: Plan, images: np.ndarray) -> None:
        engine = Engine(plan, threads=1)
        expected = engine(images)
        y = torch.from_dlpack(engine(torch.from_numpy(images)))
        assert isinstance(y, Tensor)
        np.testing.assert_array_equal(y.numpy(), expected)

    def test_any_strides(self, plan: Plan, images: np.ndarray) -> None:
        engine = Engine(plan, threads=1)
        turned = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(engine(turned), engine(images))

    def test_masked_numbers_are_not_taken_for_numbers(self, plan: Plan, images: np.ndarray) -> None:
        engine = Engine(plan, threads=1)
        masked = np.ma.MaskedArray(images, mask=False)
        np.testing.assert_array_equal(engine(masked), engine(images))
        masked[0, 0, 0, :3] = np.ma.masked
        with pytest.raises(InvalidArgument, match=r"has 3 masked numbers.*\.filled"):
            engine(masked)

    def test_the_input_is_left_alone(self, plan: Plan, images: np.ndarray) -> None:
        before = images.copy()
        images.flags.writeable = False
        engine = Engine(plan, threads=1)
        first = engine(images)
        second = engine(images)
        np.testing.assert_array_equal(images, before)
        np.testing.assert_array_equal(first, second)
        assert not np.shares_memory(first, second)

    def test_a_plan_may_advise_against_several_threads(self, plan: Plan, images: np.ndarray) -> None:
        alone = replace(plan, program=replace(plan.program, one_thread=4))
        assert "one thread up to batch 4" in str(alone)
        np.testing.assert_array_equal(Engine(alone, threads=3)(images), Engine(alone, threads=1)(images))

    def test_a_sample_does_not_depend_on_its_batch(self, plan: Plan, images: np.ndarray) -> None:
        engine = Engine(plan, threads=2)
        whole = engine(images)
        for i in range(len(images)):
            np.testing.assert_allclose(engine(images[i : i + 1])[0], whole[i], rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize(
        ("x", "message"),
        [
            (
                np.zeros((1, 3, 32, 31), np.float32),
                r"'x' must have the shape \(batch, 3, 32, 32\), got \(1, 3, 32, 31\)",
            ),
            (np.zeros((3, 32, 32), np.float32), r"must have the shape \(batch, 3, 32, 32\)"),
            (
                np.zeros((0, 3, 32, 32), np.float32),
                r"\(batch, 3, 32, 32\) with a batch of at least 1, got \(0,",
            ),
            (
                np.zeros((1, 3, 32, 32)),
                r"must be float32, got float64. Convert it with .astype\(np.float32\)",
            ),
            (np.zeros((1, 3, 32, 32), np.int64), "must be float32, got int64"),
            (np.zeros((1, 3, 32, 32), np.dtype(">f4")), "must be float32"),
            ([[0.0]], "must be a NumPy array or speak DLPack, got list"),
            (torch.zeros(1, 3, 32, 32, requires_grad=True), "cannot be read through DLPack"),
        ],
    )
    def test_wrong_inputs_are_refused(self, plan: Plan, x: object, message: str) -> None:
        engine = Engine(plan, threads=1)
        with pytest.raises(InvalidArgument, match=message):
            engine(x)

    def test_the_number_of_inputs_is_checked(self, plan: Plan, images: np.ndarray) -> None:
        with pytest.raises(InvalidArgument, match=r"has 1 input \(x\), got 2 by place"):
            Engine(plan)(images, images)

    def test_batch_sizes_must_agree(self) -> None:
        class Sum(nn.Module):
            def forward(self, x: Tensor, y: Tensor) -> Tensor:
                return x + y

        engine = Engine(sc.runtime.compile(Sum(), (torch.zeros(2, 3), torch.zeros(2, 3))))
        with pytest.raises(InvalidArgument, match=r"one batch size, got \[2, 3\]"):
            engine(np.zeros((2, 3), np.float32), np.zeros((3, 3), np.float32))

    @pytest.mark.parametrize("index", [-1, 50, 2**40])
    def test_an_index_outside_its_table_is_refused(self, index: int) -> None:
        engine = Engine(sc.runtime.compile(Encoder().eval(), torch.zeros(2, 12, dtype=torch.int64)))
        tokens = np.zeros((2, 12), np.int64)
        assert np.isfinite(engine(tokens)).all()
        tokens[1, 7] = index
        with pytest.raises(InvalidArgument, match="index"):
            engine(tokens)

    def test_nan_and_infinity_pass_through(self, plan: Plan, images: np.ndarray) -> None:
        images[1, 0, 5, 5] = np.nan
        y = Engine(plan, threads=2)(images)
        assert np.isnan(y[1]).any()
        assert np.isfinite(y[[0, 2, 3]]).all()


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("shared", [True, False])
def test_engines_in_several_threads(plan: Plan, shared: bool) -> None:
    """Several engines at once, and one engine called by several threads, each get their own numbers."""
    rng = np.random.default_rng(1)
    inputs = [rng.standard_normal((1 + i, 3, 32, 32), np.float32) for i in range(4)]
    one = Engine(plan, threads=2)
    expected = [one(x) for x in inputs]
    engines = [one] * 4 if shared else [Engine(plan, threads=2) for _ in inputs]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(5):
            if not np.array_equal(engines[i](inputs[i]), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_without_the_native_engine_there_is_a_warning(
    plan: Plan, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECATEUR_ENGINE", "reference")
    expected = Engine(plan)(images)
    monkeypatch.delenv("SECATEUR_ENGINE")
    monkeypatch.setattr(engine_module, "find_native", lambda: None)
    with pytest.warns(SlowEngineWarning, match="without its native engine"):
        slow = Engine(plan)
    assert slow.isa == "numpy"
    np.testing.assert_array_equal(slow(images), expected)


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512", "neon", "mmx"])
def test_every_instruction_set_gives_the_same(
    plan: Plan, images: np.ndarray, isa: str, tmp_path: Path
) -> None:
    """In a process of its own: the instruction set is chosen once. What a machine has not is named."""
    if not HAS_NATIVE:
        pytest.skip("there is no native engine")
    plan.save(tmp_path / "net.plan")
    np.save(tmp_path / "x.npy", images)
    code = "import numpy as np, secateur as sc; engine = sc.runtime.load('net.plan', threads=2)"
    code += "; print(engine.isa); np.save('y.npy', engine(np.load('x.npy')))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "SECATEUR_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        assert isa not in ("baseline", Engine(plan).isa)
        assert f"SECATEUR_ISA is '{isa}', this machine has" in done.stderr
    else:
        assert done.stdout.strip() == isa
        expected = Engine(plan, threads=2)(images)
        np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("threads", "message"),
    [
        (0, "at least 1, got 0"),
        (-1, "at least 1, got -1"),
        (2.0, r"a whole number of at least 1, got 2\.0"),
        (True, "a whole number of at least 1, got True"),
        (1025, "at most 1024, got 1025"),
    ],
)
@pytest.mark.usefixtures("engine")
def test_threads_are_checked(plan: Plan, threads: int, message: str) -> None:
    with pytest.raises(InvalidArgument, match=f"threads must be {message}"):
        Engine(plan, threads=threads)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("repeats", [0, 1.5])
def test_repeats_are_checked(plan: Plan, images: np.ndarray, repeats: int) -> None:
    with pytest.raises(InvalidArgument, match="repeats must be "):
        Engine(plan, threads=1).profile(images, repeats=repeats)


@pytest.mark.usefixtures("engine")
def test_outputs_share_no_memory_with_inputs_and_weights() -> None:
    class Through(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1, 6))

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return x, x.view(-1, 2, 3), self.weight, x * 2

    engine = Engine(sc.runtime.compile(Through(), torch.zeros(2, 6), threads=1), threads=1)
    x = np.ones((3, 6), np.float32)
    first = engine(x)
    assert isinstance(first, tuple)
    for y in first:
        y[:] = 5
    second = engine(np.ones((3, 6), np.float32))
    assert (x == 1).all()
    assert [float(y.max()) for y in second] == [1, 1, 1, 2]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"cannot read '.*none.plan': No such file"):
        sc.runtime.load(tmp_path / "none.plan")


def test_a_plan_stays_as_its_model_was() -> None:
    """Of a model that is trained further, neither its sparse weights nor its dense ones are the plan's."""
    model = nn.Sequential(nn.Linear(64, 8), nn.Linear(8, 4)).eval()
    model[0].weight.data[:, 8:] = 0
    x = torch.randn(2, 64)
    plan = sc.runtime.compile(model, x, threads=1)
    before = Engine(plan, threads=1)(x.numpy())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    np.testing.assert_array_equal(Engine(plan, threads=1)(x.numpy()), before)
