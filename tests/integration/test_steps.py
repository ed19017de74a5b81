"""Ways to run training steps: all train the same network, and what one cannot do runs eagerly."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from helpers import indexed_images, indexed_vectors, make_cnn, make_mlp, same_bits, same_state
from integration.train_helpers import GUIDED, PLAIN, Tape, pruned, student_cnn
from secateur import steps as steps_module
from secateur import train as train_module
from secateur.enforce import keep_masks
from secateur.errors import InvalidArgument, SecateurWarning
from secateur.evaluate import evaluate
from secateur.steps import CompiledBackward, EagerSteps, RecordedSteps, StepInputs, make_steps
from secateur.teacher_cache import TeacherLogits
from secateur.train import TrainState, fit

CPU = torch.device("cpu")


@pytest.fixture
def tape(monkeypatch: pytest.MonkeyPatch) -> Tape:
    """Makes `fit` record its steps, on a tape."""
    made = Tape()

    def make(model: nn.Module, optimizer: Any, loss_of: Any, **_: Any) -> RecordedSteps:
        eager = EagerSteps(optimizer, steps_module._eager_backward(model, optimizer, loss_of))
        return RecordedSteps(eager, made.record, nullcontext, CPU)

    monkeypatch.setattr(train_module, "make_steps", make)
    return made


@pytest.fixture
def exact_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Learning rates that float32 holds exactly: on the device a rate is one."""
    exact = train_module.learning_rate
    monkeypatch.setattr(
        train_module, "learning_rate", lambda *a: float(torch.tensor(exact(*a), dtype=torch.float32))
    )


@pytest.mark.usefixtures("exact_rates")
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("views", [0, 2])
@pytest.mark.parametrize("channels_last", [False, True])
def test_recorded_steps_train_as_ordinary_ones(
    request: pytest.FixtureRequest, momentum: float, views: int, channels_last: bool
) -> None:
    """With masks, a teacher who is asked or remembered, BatchNorm, and epochs that end in a small batch."""
    recipe = replace(GUIDED, epochs=4, momentum=momentum, teacher_views=views, channels_last=channels_last)
    found: list[tuple[Any, ...]] = []
    for recorded in (False, True):
        tape = request.getfixturevalue("tape") if recorded else None
        model, state = student_cnn(), TrainState()
        masks = pruned(model)
        curve = list(fit(model, indexed_images(30), recipe, masks=masks, teacher=make_cnn(1), state=state))
        masks.check(model)
        found.append(([epoch.loss for epoch in curve], model.state_dict(), state.momentum))
        if tape is not None:
            assert tape.recordings == 1
            assert tape.replays == 4 * 3 - 3  # three of four batches are whole; the first three warm up
    assert found[0][0] == found[1][0]
    assert same_state(found[0][1], found[1][1])
    assert same_state(found[0][2], found[1][2])


@pytest.mark.usefixtures("exact_rates")
def test_a_recorded_training_can_be_stopped_and_resumed(tape: Tape) -> None:
    whole, first, second = make_mlp(), make_mlp(), make_mlp(7)
    recipe, loader = replace(PLAIN, epochs=6), indexed_vectors(32)
    list(fit(whole, loader, recipe))
    state = TrainState()
    run = fit(first, loader, recipe, state=state)
    for _ in range(3):
        next(run)
    run.close()
    list(fit(second, loader, recipe, state=state))
    assert same_state(whole.state_dict(), second.state_dict())
    assert tape.recordings == 3


def step_of(model: nn.Module, tape: Tape) -> RecordedSteps:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return RecordedSteps(EagerSteps(optimizer, backward_of(model, optimizer)), tape.record, nullcontext, CPU)


def loss_of(network: Callable[[Tensor], Any], batch: StepInputs) -> Tensor:
    return F.cross_entropy(network(batch.inputs), batch.labels)


def backward_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[StepInputs], Tensor]:
    return steps_module._eager_backward(model, optimizer, loss_of)


def batches(sizes: list[int]) -> list[StepInputs]:
    return [StepInputs(torch.randn(n, 6), torch.randint(3, (n,)), None) for n in sizes]


def test_each_replay_takes_its_own_batch_and_rate() -> None:
    tape, model = Tape(), make_mlp()
    twin = copy.deepcopy(model)
    steps = step_of(model, tape)
    for number, batch in enumerate(batches([5] * 8)):
        rate = 0.5**number  # exact in float32
        loss = steps(batch, rate)
        expected = loss_of(twin, batch)
        gradients = torch.autograd.grad(expected, list(twin.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(twin.parameters(), gradients, strict=True):
                parameter.add_(gradient, alpha=-rate)
        assert same_bits(loss, expected)
        assert same_state(model.state_dict(), twin.state_dict())
    assert (tape.recordings, tape.replays) == (1, 5)


def test_the_memory_of_a_recording_is_its_own() -> None:
    tape, model = Tape(), make_mlp()
    steps = step_of(model, tape)
    fed = batches([5] * 6)
    kept = [copy.deepcopy(batch) for batch in fed]
    for batch in fed:
        steps(batch, 0.1)
    for before, after in zip(kept, fed, strict=True):
        assert same_bits(before.inputs, after.inputs)


@pytest.mark.parametrize("sizes", [[5, 5, 5, 5, 2, 5], [5, 2, 5, 5, 2, 5, 5]])
def test_batches_of_another_shape_are_not_replayed(sizes: list[int]) -> None:
    tape, model = Tape(), make_mlp()
    steps = step_of(model, tape)
    for batch in batches(sizes):
        assert same_bits(steps(batch, 0.0), loss_of(model, batch))
    assert tape.replays == sizes.count(5) - 3


def test_a_step_that_cannot_be_recorded_runs_eagerly_and_says_so() -> None:
    def refuse(run: Callable[[], Tensor]) -> Any:
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    model = make_mlp()
    twin = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    steps = RecordedSteps(EagerSteps(optimizer, backward_of(model, optimizer)), refuse, nullcontext, CPU)
    plain = torch.optim.SGD(twin.parameters(), lr=0.1)
    ordinary = EagerSteps(plain, backward_of(twin, plain))
    warm_up, last = batches([5] * 3), batches([5] * 3)
    for batch in warm_up:
        assert same_bits(steps(batch, 0.25), ordinary(batch, 0.25))
    with pytest.warns(SecateurWarning, match=r"runs eagerly: operation not permitted\. Set execution=eager"):
        loss = steps(last[0], 0.25)
    assert same_bits(loss, ordinary(last[0], 0.25))
    for batch in last[1:]:  # without another warning
        assert same_bits(steps(batch, 0.25), ordinary(batch, 0.25))
    assert same_state(model.state_dict(), twin.state_dict())


def test_a_step_that_waits_for_the_device_is_not_even_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def waits(device: torch.device) -> Generator[list[str]]:
        yield ["called a synchronizing CUDA operation"]

    monkeypatch.setattr(steps_module, "_waits", waits)
    tape, model = Tape(), make_mlp()
    steps = step_of(model, tape)
    first, second, third, *others = batches([5] * 6)
    steps(first, 0.1)
    steps(second, 0.1)
    with pytest.warns(SecateurWarning, match="reads a value back from the device"):
        steps(third, 0.1)
    for batch in others:
        steps(batch, 0.1)
    assert tape.recordings == 0


def test_warnings_of_a_watched_step_come_through_but_for_those_of_the_watching(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The watching itself needs CUDA; here only what it does with the warnings."""
    mode = ["default"]
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: mode[0])

    def set_mode(new: str) -> None:
        mode[0] = new
        if new == "warn":
            warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=2)

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_mode)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with steps_module._waits(torch.device("cuda", 0)) as found:
            assert mode == ["warn"]
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
            warnings.warn("of the model", stacklevel=1)
    assert found == ["called a synchronizing CUDA operation"]
    assert [str(w.message) for w in seen] == ["of the model"]
    assert mode == ["default"]


# torch.compile


def compiled_by(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_ = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda model, **options: compile_(model, backend=backend, **options)
    )


@pytest.mark.parametrize("masked", [False, True])
def test_compiled_steps_train_as_ordinary_ones(monkeypatch: pytest.MonkeyPatch, masked: bool) -> None:
    programs: list[int] = []

    def backend(program: Any, inputs: Any) -> Any:
        programs.append(len(inputs))
        return program

    compiled_by(backend, monkeypatch)
    torch._dynamo.reset()
    found = []
    for execution in ("eager", "compile"):
        model = student_cnn()
        masks = pruned(model) if masked else None
        recipe = replace(GUIDED, epochs=3, teacher_views=1)
        list(fit(model, indexed_images(30), recipe, masks=masks, teacher=make_cnn(1), execution=execution))
        if masks is not None:
            masks.check(model)
        found.append(model.state_dict())
    assert all(torch.allclose(found[0][name], found[1][name], atol=1e-5) for name in found[0])
    assert len(programs) == 1  # the small batch at the end of an epoch is not worth another


@pytest.mark.parametrize("part", ["nothing", "forward", "backward"])
def test_what_cannot_be_compiled_runs_plainly_and_says_so(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """Also where the forward pass had moved the BatchNorm statistics on by then."""

    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            raise RuntimeError("no compiler\nat all")

    def compile_(model: nn.Module, **_: Any) -> Callable[[Tensor], Tensor]:
        if part == "nothing":
            raise RuntimeError("no compiler")

        def forward(x: Tensor) -> Tensor:
            if part == "forward":
                raise RuntimeError("no compiler")
            return Broken.apply(model(x))

        return forward

    monkeypatch.setattr(torch, "compile", compile_)
    found = []
    for execution in ("eager", "compile"):
        model = student_cnn()
        seen = pytest.warns(SecateurWarning, match="torch.compile failed, .*: no compiler$")
        with seen if execution == "compile" else nullcontext():
            list(fit(model, indexed_images(), PLAIN, execution=execution))
        found.append(model.state_dict())
    assert same_state(*found)


def test_an_error_of_the_model_itself_is_raised_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)
    model, optimizer = make_mlp(), torch.optim.SGD(make_mlp().parameters(), lr=0.1)
    backward = CompiledBackward(model, optimizer, loss_of)
    wrong = StepInputs(torch.randn(4, 5), torch.zeros(4, dtype=torch.int64), None)
    with pytest.warns(SecateurWarning), pytest.raises(RuntimeError, match="cannot be multiplied"):
        backward(wrong)


# What is chosen


@pytest.mark.parametrize("execution", ["auto", "eager"])
def test_a_cpu_runs_eagerly(execution: Any) -> None:
    model = make_mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    steps = make_steps(model, optimizer, loss_of, execution=execution, device=CPU, n_steps=10**6)
    assert type(steps) is EagerSteps


def test_what_pays_and_is_possible_is_recorded() -> None:
    cuda, model = torch.device("cuda", 0), make_mlp()
    assert steps_module.resolve_execution("auto", model, cuda, 1000) == "graph"
    assert steps_module.resolve_execution("auto", model, cuda, 5) == "eager"
    assert steps_module.resolve_execution("graph", model, cuda, 5) == "graph"
    assert steps_module.resolve_execution("auto", model, CPU, 1000) == "eager"
    apart = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))
    assert steps_module.resolve_execution("auto", apart, cuda, 1000) == "eager"
    with pytest.raises(InvalidArgument, match="needs the whole model on one device"):
        steps_module.resolve_execution("graph", apart, cuda, 1000)


@pytest.mark.parametrize(
    ("execution", "message"),
    [
        ("graph", "needs a CUDA device, the model is on cpu"),
        ("fast", "must be auto, eager, graph or compile"),
    ],
)
def test_what_cannot_be_is_refused(execution: Any, message: str) -> None:
    model = make_mlp()
    with pytest.raises(InvalidArgument, match=message):
        list(fit(model, indexed_vectors(), PLAIN, execution=execution))


# Nothing waits for the device


class HostReads(TorchDispatchMode):
    """Counts how often Python asks for the value of a tensor, which on an accelerator waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.n += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default)
        return func(*args, **(kwargs or {}))


def reads_of(run: Callable[[], object]) -> int:
    with HostReads() as reads:
        run()
    return reads.n


@pytest.mark.parametrize("views", [0, 1])
def test_no_step_reads_from_the_device(views: int) -> None:
    """Twice as many steps an epoch read no value more often."""

    def train(n_batches: int) -> None:
        model, teacher = student_cnn(), make_cnn(1)
        masks, loader = pruned(model), indexed_images(8 * n_batches)
        list(fit(model, loader, replace(GUIDED, teacher_views=views), masks=masks, teacher=teacher))

    few, many = (reads_of(lambda n=n: train(n)) for n in (3, 6))
    assert many == few


def test_what_the_teacher_remembers_is_looked_up_without_reading() -> None:
    loader = indexed_images(24)
    guide = TeacherLogits(make_cnn(1).eval(), loader)
    first, second = list(loader.epoch(0))[:2]
    guide(first)
    assert reads_of(lambda: guide(second)) == 0


def test_evaluation_reads_once_beside_checking_what_comes_from_the_host() -> None:
    data = [(torch.randn(5, 6), torch.randint(3, (5,))) for _ in range(7)]
    assert reads_of(lambda: evaluate(make_mlp(), data)) <= len(data) + 2


def test_keeping_masks_reads_nothing() -> None:
    model = student_cnn()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x, y = torch.randn(4, 1, 6, 6), torch.randint(3, (4,))

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    with keep_masks(model, optimizer, pruned(model)):
        step()
        assert reads_of(step) == 0
