"""The engine as its users see it: checks what goes in, and runs a plan natively or in NumPy.

Nothing here imports torch, except to run operations that a plan was told to leave to it.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from secateur.counts import check_whole
from secateur.errors import InvalidArgument, PlanError, SlowEngineWarning
from secateur.runtime.parts import Part, TorchPart, parts_of
from secateur.runtime.plan import Plan, read_plan
from secateur.runtime.program import Program
from secateur.runtime.reference import ReferenceEngine, concrete
from secateur.runtime.weights import Weight

Array = NDArray[Any]
ENGINE_VARIABLE = "SECATEUR_ENGINE"
"""Environment variable: "reference" runs plans in NumPy even where there is a native engine."""
MOST_THREADS = 1024
"""Of an engine, as in `native/engine.cpp`."""
_DTYPES = {"f32": np.dtype(np.float32), "i64": np.dtype(np.int64)}


class _Runner(Protocol):
    def run(self, inputs: Sequence[Array]) -> list[Array]: ...


class Native(Protocol):
    """The compiled module; `docs/plan.md` specifies it."""

    def Engine(  # noqa: D102
        self, program: str, weights: Mapping[str, Array | tuple[Array, Array]], threads: int
    ) -> Any: ...  # noqa: ANN401

    def isa(self, precision: str) -> str: ...  # noqa: D102

    def kernels(self, op: str) -> list[str]: ...  # noqa: D102


class Engine:
    """A network that runs. Made by `load`, or from a `Plan` at hand.

    Calls are deterministic for a given plan, machine and number of threads. An engine may be called
    from several threads, and several engines may run at once; they share nothing.

    Args:
        plan: What to run.
        threads: Threads that a call uses, 1 … 1024; None for as many as this process has cores.

    Attributes:
        inputs: Name and shape of each input; the batch size is −1.
        outputs: Name and shape of each output; −k is k times the batch size.
        threads: Threads that a call uses.
        isa: Instruction set in use, such as "avx512", or "numpy".

    Raises:
        InvalidArgument: if `threads` is not in 1 … 1024, or SECATEUR_ISA asks for what this machine has not.
        PlanError: if the plan needs torch and there is none, or the native engine refuses it.
        MemoryError: if there is not enough memory for the weights.
    """

    def __init__(self, plan: Plan, *, threads: int | None = None) -> None:
        self.threads = n_threads(threads)
        program = plan.program
        self.inputs = [(name, program.values[value].shape) for name, value in program.inputs]
        self.outputs = [(name, program.values[value].shape) for name, value in program.outputs]
        self._dtypes = [_DTYPES[program.values[value].dtype] for _, value in program.inputs]
        self._program = program
        native = find_native()
        self.isa = "numpy" if native is None else _isa(native, program.precision)
        if native is None and os.environ.get(ENGINE_VARIABLE) != "reference":
            warnings.warn(
                "secateur was installed without its native engine, so this plan runs in NumPy, many times "
                "slower. Install it where there is a C++ compiler or a wheel for this machine. "
                f"Set {ENGINE_VARIABLE}=reference to run in NumPy without this warning.",
                SlowEngineWarning,
                stacklevel=2,
            )
        self._parts = parts_of(program)
        self._runners = [_runner(part, plan.weights, native, self.threads) for part in self._parts]

    def __call__(self, *inputs: object, **named: object) -> Array | tuple[Array, ...]:
        """The outputs for a batch of inputs.

        Args:
            inputs: One array for each input, with the batch first: NumPy arrays, or what speaks DLPack
                and lies in the memory of the CPU, such as a torch tensor without gradient. float32, or
                int64 for indices, and bool for masks; of one batch size of at least 1, which may differ
                from call to call.
            named: Inputs by name (`Engine.inputs`), which follow those by place in any order.

        Returns:
            A new array, or a tuple of them if the network has several outputs; what is bool in torch is
            float32, 1 or 0. Arrays speak DLPack:
            ``torch.from_dlpack(y)`` costs no copy.

        Raises:
            InvalidArgument: if number, shape or type of the inputs is not right, or an index is outside
                its table.
            MemoryError: if there is not enough memory for this batch size.
        """
        values = self._start(inputs, named)
        for part, runner in zip(self._parts, self._runners, strict=True):
            self._step(part, runner, values)
        outputs = tuple(self._as_new(value, values[value]) for _, value in self._program.outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def profile(self, *inputs: object, repeats: int = 1, **named: object) -> NDArray[np.float64]:
        """Seconds of each operation of the program, shape (repeats, operations).

        Only the native engine measures: operations in torch, and all of them in NumPy, are NaN. One that runs
        together with the one before has 0, and that one the time of both.

        Args:
            inputs: As in a call.
            repeats: How often to run each part, at least 1.
            named: As in a call.

        Raises:
            InvalidArgument: as a call, and if `repeats` is less than 1.
        """
        check_whole("repeats", repeats, least=1)
        values = self._start(inputs, named)
        times = np.full((repeats, len(self._program.ops)), np.nan)
        for part, runner in zip(self._parts, self._runners, strict=True):
            if not isinstance(part, TorchPart) and not isinstance(runner, ReferenceEngine):
                arrays = [values[i] for i in part.inputs]
                times[:, list(part.places)] = cast("Any", runner).profile(arrays, repeats)
            self._step(part, runner, values)
        return times

    def _as_new(self, value: int, array: Array) -> Array:
        """A copy of what may share memory: an input, or what NumPy gives, which may be a view or a weight."""
        is_input = any(value == given for _, given in self._program.inputs)
        return array.copy() if is_input or self.isa == "numpy" else array

    def _start(self, inputs: Sequence[object], named: Mapping[str, object]) -> dict[int, Array]:
        """Values of the inputs by id, checked."""
        names = [name for name, _ in self.inputs]
        if len(inputs) + len(named) != len(names) or set(named) != set(names[len(inputs) :]):
            wanted = f"{len(names)} input{'s' if len(names) > 1 else ''} ({', '.join(names)})"
            by_name = f" and by name {', '.join(map(repr, named))}" if named else ""
            raise InvalidArgument(f"this network has {wanted}, got {len(inputs)} by place{by_name}.")
        inputs = [*inputs, *(named[name] for name in names[len(inputs) :])]
        arrays = [
            _checked(x, name, shape, dtype)
            for x, (name, shape), dtype in zip(inputs, self.inputs, self._dtypes, strict=True)
        ]
        batches = [x.shape[0] for x in arrays]
        if len(set(batches)) > 1:
            raise InvalidArgument(f"all inputs must have one batch size, got {batches}.")
        return {value: x for (_, value), x in zip(self._program.inputs, arrays, strict=True)}

    def _step(self, part: Part | TorchPart, runner: _Runner, values: dict[int, Array]) -> None:
        try:
            results = runner.run([values[i] for i in part.inputs])
        except ValueError as error:
            raise InvalidArgument(f"this input cannot be run: {error}") from error
        values.update(zip(part.outputs, results, strict=True))


def load(path: str | os.PathLike[str], *, threads: int | None = None) -> Engine:
    """An engine for a plan file. Needs NumPy, and no torch.

    Args:
        path: A file that `Plan.save` wrote.
        threads: Threads that a call uses, 1 … 1024; None for as many as this process has cores.

    Raises:
        PlanError: if there is no such file, if it breaks any rule of `docs/plan.md`, or if it needs
            torch and there is none.
        InvalidArgument: if `threads` is not in 1 … 1024.
        MemoryError: if there is not enough memory for the weights.
    """
    return Engine(read_plan(path), threads=threads)


def n_threads(wanted: int | None) -> int:
    """How many threads a call uses: as many as are wanted, for None as many as this process has cores.

    Raises:
        InvalidArgument: if that is not in 1 … 1024.
    """
    if wanted is not None:
        check_whole("threads", wanted, least=1)
        if wanted > MOST_THREADS:
            raise InvalidArgument(f"threads must be at most {MOST_THREADS}, got {wanted}.")
        return int(wanted)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_THREADS)


def find_native() -> Native | None:
    """The native module; None if it is not installed or `SECATEUR_ENGINE` says "reference"."""
    asked = os.environ.get(ENGINE_VARIABLE, "")
    if asked not in ("", "native", "reference"):
        raise InvalidArgument(f"{ENGINE_VARIABLE} must be native or reference, got {asked!r}.")
    if asked == "reference":
        return None
    try:
        return cast("Native", importlib.import_module("secateur.runtime._native"))
    except ModuleNotFoundError:
        return None


def native_weights(program: Program, weights: Mapping[str, Weight]) -> dict[str, Array | tuple[Array, Array]]:
    """The weights of a program as the native engine takes them."""
    found: dict[str, Array | tuple[Array, Array]] = {}
    for name in program.weights:
        weight = weights[name]
        found[name] = weight.numbers if weight.positions is None else (weight.positions, weight.numbers)
    return found


def _runner(
    part: Part | TorchPart, weights: Mapping[str, Weight], native: Native | None, threads: int
) -> _Runner:
    if isinstance(part, TorchPart):
        try:
            bridge = importlib.import_module("secateur.runtime.torch_ops")
        except ModuleNotFoundError as error:
            raise PlanError(
                f"this plan runs {part.op.attributes['target']} in torch, which is not installed. "
                "Install torch, or compile without fallback."
            ) from error
        return bridge.TorchOp(part.op, part.output_shape)
    own = {name: weights[name] for name in part.program.weights}
    if native is None:
        return ReferenceEngine(part.program, own)
    try:
        return native.Engine(part.program.to_json(), native_weights(part.program, own), threads)
    except ValueError as error:
        raise PlanError(f"the native engine refuses this plan: {error}") from error


def _checked(x: object, name: str, shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
    if not isinstance(x, np.ndarray):
        if not hasattr(x, "__dlpack__"):
            raise InvalidArgument(
                f"input {name!r} must be a NumPy array or speak DLPack, got {type(x).__name__}."
            )
        if hasattr(x, "resolve_neg"):  # of torch: DLPack does not say that a view negates
            x = cast("Any", x).resolve_neg()
        try:
            x = np.from_dlpack(cast("Any", x))
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            raise InvalidArgument(
                f"input {name!r} cannot be read through DLPack: {error}. Detach it, move it to the CPU, "
                "and convert it with .float() if it is narrower."
            ) from error
    if isinstance(x, np.ma.MaskedArray) and np.ma.is_masked(x):
        raise InvalidArgument(
            f"input {name!r} has {np.ma.count_masked(x)} masked numbers, which a network cannot leave out. "
            "Put numbers in their place with .filled(…)."
        )
    array = cast("Array", x)
    expected = ("batch", *shape[1:])
    fits = array.ndim == len(shape) and array.shape[0] >= 1 and array.shape == concrete(shape, array.shape[0])
    if not fits:
        text = ", ".join(map(str, expected))
        empty = " with a batch of at least 1" if array.shape[:1] == (0,) else ""
        raise InvalidArgument(f"input {name!r} must have the shape ({text}){empty}, got {array.shape}.")
    if array.dtype == np.bool_ and dtype == np.float32:
        return array.astype(np.float32)  # as plans keep conditions
    if array.dtype == np.int32 and dtype == np.int64:
        return array.astype(np.int64)
    if array.dtype != dtype:
        raise InvalidArgument(
            f"input {name!r} must be {dtype}, got {array.dtype}. Convert it with .astype(np.{dtype})."
        )
    return np.ascontiguousarray(array)


def _isa(native: Native, precision: str) -> str:
    """The instruction set for a plan of this precision, which SECATEUR_ISA may have asked for."""
    try:
        return native.isa(precision)
    except ValueError as error:
        raise InvalidArgument(f"{error}. Unset it, or name one of these.") from error
