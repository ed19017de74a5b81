"""Other engines that can run the network of a plan, to compare with."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur.errors import InvalidArgument, MissingExtra
from secateur.runtime.plan import Plan
from secateur.runtime.to_onnx import plan_to_onnx

Array = NDArray[Any]
Run = Callable[[Sequence[Array]], list[Array]]


@dataclass(frozen=True)
class Rival:
    """Another engine with a network loaded.

    Attributes:
        name: As on the command line.
        version: Of the package, and its precision.
        run: Inputs → outputs.
        tolerance: How far its outputs may lie from those of the plan, relative to the largest.
    """

    name: str
    version: str
    run: Run
    tolerance: float = 1e-3


def build_rival(name: str, plan: Plan, inputs: Sequence[Array], *, threads: int) -> Rival:
    """The network of a plan, its zeros stored as zeros, in another engine.

    Args:
        name: A key of `RIVALS`.
        plan: The plan.
        inputs: What it will be run with; the engine is prepared for these shapes.
        threads: Threads it may use.

    Raises:
        InvalidArgument: if there is no such engine, or it cannot hold the plan.
        MissingExtra: if its package is not installed.
    """
    if name not in RIVALS:
        raise InvalidArgument(f"unknown engine {name!r}; known are {', '.join(RIVALS)}.")
    package, build = RIVALS[name]
    try:
        found = version(package)
    except PackageNotFoundError as error:
        raise MissingExtra(
            f"comparing with {name} needs the package {package}: pip install 'secateur[bench]'."
        ) from error
    return build(f"{package} {found}", plan, inputs, threads)


def _onnxruntime(title: str, plan: Plan, inputs: Sequence[Array], threads: int) -> Rival:
    import onnxruntime  # pyright: ignore[reportMissingImports]

    ort: Any = onnxruntime
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    model = plan_to_onnx(plan, batch=inputs[0].shape[0])
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [name for name, _ in plan.program.inputs]
    return Rival(
        "onnxruntime",
        f"{title}, fp32",
        lambda arrays: session.run(None, dict(zip(names, arrays, strict=True))),
    )


def _openvino(
    title: str, plan: Plan, inputs: Sequence[Array], threads: int, *, name: str, **options: str
) -> Rival:
    """OpenVINO; without a hint it takes bf16 where the processor is fast at it."""
    import openvino  # pyright: ignore[reportMissingImports]

    ov: Any = openvino
    core = ov.Core()
    model = core.read_model(plan_to_onnx(plan, batch=inputs[0].shape[0]))
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, **options}
    compiled = core.compile_model(model, "CPU", settings)
    precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    request = compiled.create_infer_request()

    def run(arrays: Sequence[Array]) -> list[Array]:
        found = request.infer(list(arrays), share_inputs=True)
        return [np.array(found[port]) for port in compiled.outputs]

    return Rival(name, f"{title}, {precision}", run, 1e-3 if precision == "f32" else 0.3)


def _torch(title: str, plan: Plan, _: Sequence[Array], threads: int, *, compiled: bool) -> Rival:
    import torch

    from secateur.runtime.to_torch import PlanModule

    torch.set_num_threads(threads)
    module = PlanModule(plan).eval()
    forward: Any = torch.compile(module, dynamic=False) if compiled else module

    def run(arrays: Sequence[Array]) -> list[Array]:
        with torch.inference_mode():
            return [y.numpy() for y in forward(*map(torch.from_numpy, arrays))]

    return Rival("torch.compile" if compiled else "torch", f"{title}, fp32", run)


def _mnn(
    title: str, plan: Plan, inputs: Sequence[Array], threads: int, *, name: str, options: Sequence[str] = ()
) -> Rival:
    """MNN; its own command would install a package and report the network's size to its makers."""
    with tempfile.TemporaryDirectory() as folder, _stdout_to_stderr():
        import MNN  # pyright: ignore[reportMissingImports]

        mnn: Any = MNN
        source, target = Path(folder) / "net.onnx", Path(folder) / "net.mnn"
        source.write_bytes(plan_to_onnx(plan, batch=inputs[0].shape[0]))
        command = [sys.executable, "-c", "import _tools, sys; _tools.mnnconvert(sys.argv)"]
        command += ["-f", "ONNX", "--modelFile", str(source), "--MNNModel", str(target), "--bizCode", "MNN"]
        done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
        if done.returncode or not target.is_file():
            raise InvalidArgument(f"MNN cannot convert this network: {(done.stdout + done.stderr)[-300:]}")
        runtime = mnn.nn.create_runtime_manager(({"backend": 0, "numThread": threads, "precision": "high"},))
        names = [name for name, _ in plan.program.inputs]
        results = [f"out_{name}" for name, _ in plan.program.outputs]
        module = mnn.nn.load_module_from_file(str(target), names, results, runtime_manager=runtime)

    types = [mnn.expr.int if x.dtype == np.int64 else mnn.expr.float for x in inputs]
    variables = [mnn.expr.placeholder(x.shape, mnn.expr.NCHW, t) for x, t in zip(inputs, types, strict=True)]

    def run(arrays: Sequence[Array]) -> list[Array]:
        for variable, x in zip(variables, arrays, strict=True):
            variable.write(x.astype(np.int32) if x.dtype == np.int64 else x)
        return [np.array(mnn.expr.convert(y, mnn.expr.NCHW).read()) for y in module.onForward(variables)]

    return Rival(name, f"{title}, fp32", run)


@contextmanager
def _stdout_to_stderr() -> Generator[None]:
    """What libraries print goes to stderr: on stdout there may be JSON for another program."""
    flush = ctypes.CDLL(None).fflush
    sys.stdout.flush()
    flush(None)
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        flush(None)
        os.dup2(kept, 1)
        os.close(kept)


RIVALS: dict[str, tuple[str, Callable[[str, Plan, Sequence[Array], int], Rival]]] = {
    "onnxruntime": ("onnxruntime", _onnxruntime),
    "openvino": ("openvino", partial(_openvino, name="openvino", INFERENCE_PRECISION_HINT="f32")),
    "openvino-default": ("openvino", partial(_openvino, name="openvino-default")),
    "torch": ("torch", partial(_torch, compiled=False)),
    "torch.compile": ("torch", partial(_torch, compiled=True)),
    "mnn": ("MNN", partial(_mnn, name="mnn")),
    "mnn-sparse": ("MNN", partial(_mnn, name="mnn-sparse", options=("--detectSparseSpeedUp",))),
}
"""By name on the command line: the package it needs, and what builds it."""
