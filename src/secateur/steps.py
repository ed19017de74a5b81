"""Ways to run training steps: operation by operation, recorded as one CUDA graph, or compiled as well."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from secateur.errors import InvalidArgument, SecateurWarning, first_line
from secateur.inputs import Arguments, Inputs, filled, tensors_of
from secateur.modules import remembered

Execution: TypeAlias = Literal["auto", "eager", "graph", "compile"]
"""How training steps are run. Results differ by rounding only.

* eager: one operation after the other.
* graph: recorded once as a CUDA graph and replayed, which saves the launch of each operation; a small
  network on small batches spends most of its time on those. What a model does in Python, such as
  counting its calls, then happens while recording only; random numbers are drawn anew in each step.
* compile: forward and backward through ``torch.compile``, on CUDA recorded as well. Compiling takes up to
  a minute, once a process for all networks of one architecture.
* auto: graph on CUDA, if there are steps enough to pay for recording; else eager.
"""

_WORTH_RECORDING = 50
"""Steps that recording must be good for; it costs as much as about ten."""
_WARM_UP = 3
"""Ordinary steps before recording: libraries load their kernels, the optimizer makes its state."""


class StepInputs(NamedTuple):
    """What one step is fed with.

    Attributes:
        inputs: Of a batch.
        labels: Shape (batch, …).
        guidance: The teacher's logits, or None where the loss has no teacher or asks it itself.
    """

    inputs: Inputs
    labels: Tensor
    guidance: Tensor | None


LossOf: TypeAlias = Callable[[Callable[..., object], StepInputs], Tensor]
"""``loss_of(network, batch)``, a scalar with its graph."""

Backward: TypeAlias = Callable[[StepInputs], Tensor]
"""Leaves the gradients of a batch in ``.grad`` and returns its loss, detached."""

Recorder: TypeAlias = Callable[[Callable[[], Tensor]], tuple[Tensor, Callable[[], None]]]
"""From a step to where its loss will stand, and what runs it again on the same memory."""


class Steps(Protocol):
    """Runs the steps of one training."""

    def __call__(self, batch: StepInputs, rate: float) -> Tensor:
        """One step at learning rate `rate`; returns its loss, valid until the next step."""
        ...

    def running(self) -> AbstractContextManager[None]:
        """What steps run in; entered for each epoch."""
        ...


def make_steps(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_of: LossOf,
    *,
    execution: Execution,
    device: torch.device,
    n_steps: int,
) -> Steps:
    """The steps of a training, run as `execution` says.

    Args:
        model: The network in training.
        optimizer: Its optimizer; on CUDA one whose learning rate may be a tensor there, such as a fused one.
        loss_of: What to minimise; it is given `model` or the compiled form of it.
        execution: How to run them.
        device: Of the model.
        n_steps: How many there may be, to know what pays.

    Raises:
        InvalidArgument: if `execution` is unknown, or needs another device.
    """
    execution = resolve_execution(execution, model, device, n_steps)
    backward = _eager_backward(model, optimizer, loss_of)
    if execution == "compile":
        backward = CompiledBackward(model, optimizer, loss_of)
    steps = EagerSteps(optimizer, backward)
    if execution == "eager" or _obstacle(model, device):
        return steps
    stream = torch.cuda.Stream(device)
    return RecordedSteps(steps, lambda run: _record(run, stream), lambda: _on_stream(stream), device)


def resolve_execution(
    execution: str, model: nn.Module, device: torch.device, n_steps: int
) -> Literal["eager", "graph", "compile"]:
    """What ``auto`` comes down to, the others unchanged.

    Raises:
        InvalidArgument: if `execution` is unknown, or needs another device.
    """
    if execution not in ("auto", "eager", "graph", "compile"):
        raise InvalidArgument(f"execution must be auto, eager, graph or compile, got {execution!r}.")
    if execution in ("eager", "compile"):
        return execution
    obstacle = _obstacle(model, device)
    if execution == "auto":
        return "eager" if obstacle or n_steps < _WORTH_RECORDING else "graph"
    if obstacle:
        raise InvalidArgument(f"execution='graph' needs {obstacle}. Set execution=auto.")
    return "graph"


def _obstacle(model: nn.Module, device: torch.device) -> str | None:
    """What is missing for recording a step, or None."""
    if device.type != "cuda":
        return f"a CUDA device, the model is on {device}"
    if len({t.device for t in (*model.parameters(), *model.buffers())}) > 1:
        return "the whole model on one device"
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return "a training in one process, torch.distributed is initialised"
    return None


def _eager_backward(
    network: Callable[..., object], optimizer: torch.optim.Optimizer, loss_of: LossOf
) -> Backward:
    def backward(batch: StepInputs) -> Tensor:
        loss = loss_of(network, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        # The graph behind the loss ends here: a recording must not meet what earlier steps left.
        return loss.detach()

    return backward


class EagerSteps:
    """Steps run one operation after the other."""

    def __init__(self, optimizer: torch.optim.Optimizer, backward: Backward) -> None:
        self.optimizer = optimizer
        self._backward = backward

    def __call__(self, batch: StepInputs, rate: float) -> Tensor:
        """One step at learning rate `rate`."""
        self.set_rate(rate)
        return self.run(batch)

    def set_rate(self, rate: float | Tensor) -> None:
        """Learning rate of the steps that follow."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def run(self, batch: StepInputs) -> Tensor:
        """One step at the learning rate that is set."""
        loss = self._backward(batch)
        self.optimizer.step()
        return loss

    def running(self) -> AbstractContextManager[None]:
        """Nothing is needed."""
        return nullcontext()


class CompiledBackward:
    """Forward and backward through ``torch.compile`` for batches of one shape, and plainly for others.

    A network that cannot be compiled, or a machine that cannot compile, is found out by the first batch:
    the model's buffers are put back, a warning says why, and all batches are run plainly.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, loss_of: LossOf) -> None:
        self._model, self._optimizer, self._loss_of = model, optimizer, loss_of
        self._plain = self._compiled = _eager_backward(model, optimizer, loss_of)
        self._shapes: object = None

    def __call__(self, batch: StepInputs) -> Tensor:
        """The gradients of a batch."""
        if self._shapes is None:
            self._shapes = _shapes(batch)
            return self._first(batch)
        return (self._compiled if _shapes(batch) == self._shapes else self._plain)(batch)

    def _first(self, batch: StepInputs) -> Tensor:
        undo = remembered(self._model.buffers())
        try:
            # Static shapes: the last batch of an epoch is often smaller, and not worth a program of its own.
            compiled = torch.compile(self._model, dynamic=False)
            self._compiled = _eager_backward(compiled, self._optimizer, self._loss_of)
            return self._compiled(batch)
        except Exception as error:  # whatever it is: if the model is to blame, the plain run says so
            warnings.warn(
                f"torch.compile failed, so the steps run uncompiled: {first_line(error)}",
                SecateurWarning,
                stacklevel=2,
            )
            self._compiled = self._plain
            undo()
            return self._plain(batch)


class RecordedSteps:
    """Steps for batches of one shape recorded after a few ordinary ones, then replayed.

    Batches of another shape, such as the last of an epoch, run as ordinary steps; so do all if a step
    cannot be recorded, with a warning that says why.

    Args:
        steps: The ordinary steps.
        record: How to record.
        running: What ordinary steps, recording and replays run in, such as a stream of their own.
        device: Where the learning rate is to lie.
    """

    def __init__(
        self,
        steps: EagerSteps,
        record: Recorder,
        running: Callable[[], AbstractContextManager[None]],
        device: torch.device,
    ) -> None:
        self._steps, self._record, self._running = steps, record, running
        self._rate = torch.zeros((), device=device)
        self._shapes: object = None
        self._warm_up = _WARM_UP
        self._possible = True
        self._memory: list[Tensor] = []
        self._loss: Tensor | None = None
        self._replay: Callable[[], None] = lambda: None

    def running(self) -> AbstractContextManager[None]:
        """The context given."""
        return self._running()

    def __call__(self, batch: StepInputs, rate: float) -> Tensor:
        """One step at learning rate `rate`, which goes to the device without waiting for it."""
        self._rate.fill_(rate)
        self._steps.set_rate(self._rate)
        if self._shapes is None:
            self._shapes = _shapes(batch)
        if not self._possible or _shapes(batch) != self._shapes:
            return self._steps.run(batch)
        if self._warm_up:
            return self._run_warm_up(batch)
        if self._loss is None and not self._try_to_record(batch):
            return self._steps.run(batch)
        for place, tensor in zip(self._memory, _tensors(batch), strict=True):
            place.copy_(tensor)
        self._replay()
        assert self._loss is not None
        return self._loss

    def _run_warm_up(self, batch: StepInputs) -> Tensor:
        self._warm_up -= 1
        if self._warm_up:
            return self._steps.run(batch)
        # A step that waits for the device cannot be recorded, and trying would leave CUDA's random
        # numbers unusable. So the last ordinary step is watched.
        with _waits(self._rate.device) as waits:
            loss = self._steps.run(batch)
        if waits:
            self._give_up("the model or the loss reads a value back from the device in every step")
        return loss

    def _try_to_record(self, batch: StepInputs) -> bool:
        """Record a step on memory of its own, without running it; whether that worked."""
        self._memory = [torch.empty_like(tensor).copy_(tensor) for tensor in _tensors(batch)]
        memory = _filled(batch, self._memory)
        try:
            self._loss, self._replay = self._record(lambda: self._steps.run(memory))
        except Exception as error:  # of a step that has just run three times: it is the recording
            self._give_up(first_line(error))
        return self._possible

    def _give_up(self, reason: str) -> None:
        self._possible = False
        warnings.warn(
            f"the training step cannot be recorded as a CUDA graph and runs eagerly: {reason}. "
            "Set execution=eager if that is as it should be.",
            SecateurWarning,
            stacklevel=2,
        )


def _record(run: Callable[[], Tensor], stream: torch.cuda.Stream) -> tuple[Tensor, Callable[[], None]]:
    """`run` as a CUDA graph: where its loss stands, and what replays it."""
    graph = torch.cuda.CUDAGraph()
    # thread_local: a loader's or another training's thread may use CUDA meanwhile.
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        loss = run()
    return loss, graph.replay


@contextmanager
def _on_stream(stream: torch.cuda.Stream) -> Generator[None]:
    """Run on `stream`, after what was queued before and before what is queued after.

    Ordinary steps run on the very stream that records, as gradients remember the stream of their first
    use, and a recording must not reach out to another.
    """
    benchmark = torch.backends.cudnn.benchmark
    outer = torch.cuda.current_stream(stream.device)
    stream.wait_stream(outer)
    try:
        # Shapes are fixed, so it pays to let cuDNN try its kernels out.
        torch.backends.cudnn.benchmark = not torch.backends.cudnn.deterministic
        with torch.cuda.stream(stream):
            yield
    finally:
        torch.backends.cudnn.benchmark = benchmark
        outer.wait_stream(stream)


@contextmanager
def _waits(device: torch.device) -> Generator[list[str]]:
    """Collects PyTorch's warnings about operations that make the host wait for the device."""
    found: list[str] = []
    if device.type != "cuda":
        yield found
        return
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    for warning in caught:
        if "called a synchronizing" in str(warning.message):
            found.append(str(warning.message))
        elif "Synchronization debug mode" not in str(warning.message):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def _shapes(batch: StepInputs) -> tuple[object, ...]:
    names = tuple(batch.inputs.named) if isinstance(batch.inputs, Arguments) else ()
    return (names, *((t.shape, t.dtype, t.stride()) for t in _tensors(batch)))


def _tensors(batch: StepInputs) -> list[Tensor]:
    """All tensors of a batch."""
    guidance = [] if batch.guidance is None else [batch.guidance]
    return [*tensors_of(batch.inputs), batch.labels, *guidance]


def _filled(batch: StepInputs, tensors: Sequence[Tensor]) -> StepInputs:
    """`batch` with other `tensors`, as many as `_tensors` has."""
    n = len(tensors_of(batch.inputs))
    guidance = None if batch.guidance is None else tensors[n + 1]
    return StepInputs(filled(batch.inputs, tensors[:n]), tensors[n], guidance)
