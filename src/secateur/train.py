"""Training on labelled batches: from scratch, or as recovery after a cut, with or without a teacher."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.counts import check_whole
from secateur.enforce import keep_masks
from secateur.errors import TrainingError
from secateur.evaluate import Metrics, check_first, evaluate
from secateur.layout import TrainingLayout
from secateur.losses import check_scalar, data_faults, distillation, explained, logits_for
from secateur.masks import Masks
from secateur.modules import (
    consulted,
    device_of,
    modes_kept,
    random_state_kept,
    share_weights,
    to_training,
    why_not_writable,
)
from secateur.naming import (
    GIVE_LABELS,
    Batches,
    IndexedBatch,
    IndexedLoader,
    Loss,
    check_repeatable,
    length_of,
    split_batches,
)
from secateur.recovery import Recovery, autocast_for, learning_rate
from secateur.steps import Execution, LossOf, StepInputs, Steps, make_steps, resolve_execution
from secateur.teacher_cache import TeacherLogits


@dataclass
class TrainState:
    """All that is needed to go on after an epoch, bit for bit.

    Attributes:
        epochs_done: Number of finished epochs.
        model: The model's state dict.
        momentum: The optimizer's momentum buffers by parameter name.
        selected: State dict of the selected epoch so far, see `fit`.
        selected_epoch: Its number, from 1.
        best_accuracy: Highest validation accuracy so far; −1 without a validation split.
    """

    epochs_done: int = 0
    model: dict[str, Any] = field(default_factory=dict[str, Any])
    momentum: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    selected: dict[str, Any] = field(default_factory=dict[str, Any])
    selected_epoch: int = 0
    best_accuracy: float = -1.0


@dataclass(frozen=True)
class Epoch:
    """What an epoch brought.

    Attributes:
        epoch: Its number, from 1.
        loss: Training loss averaged over batches.
        val_accuracy: Accuracy on the validation split, or None without one.
        lr: Learning rate of its last step.
        seconds: Wall time, validation included.
    """

    epoch: int
    loss: float
    val_accuracy: float | None
    lr: float
    seconds: float


def fit(
    model: nn.Module,
    train: Batches,
    recipe: Recovery,
    *,
    masks: Masks | None = None,
    teacher: nn.Module | TeacherLogits | None = None,
    validation: Batches | None = None,
    task_loss: Loss = F.cross_entropy,
    state: TrainState | None = None,
    seed: int = 0,
    execution: Execution = "auto",
    on_step: Callable[[], None] = lambda: None,
) -> Generator[Epoch]:
    """Train `model` in place, yielding after each epoch; at the end it holds the selected one.

    Selected is the latest epoch whose validation accuracy is within one standard error of the best:
    the highest of many noisy figures on a small split would often be an early, lucky epoch. Without
    `validation` it is the last. With an `IndexedLoader` a run on a CPU that was stopped and resumed from
    its `state` ends with the same bits.

    Args:
        model: Student, on its device. Modes, and where weights lie in memory, are left as they were, also
            after an exception and if the generator is closed early. Frozen BatchNorm, in eval mode and
            without a parameter that is trained, stays so.
        train: Loader with a length; an `IndexedLoader` is asked for each epoch by number.
        recipe: How to train.
        masks: What stays; pruned weights never come back.
        teacher: Needed if ``recipe.kd_weight > 0``; another object than `model`. Several trainings over
            one loader may share `TeacherLogits`.
        validation: Labelled batches for choosing the epoch, as `evaluate` takes them; never the test split,
            and nothing that can be gone through once only.
        task_loss: ``f(outputs, labels)``, a scalar averaged over the batch.
        state: Continues from here, and is brought up to date before each yield.
        seed: ≥ 0, of what the model draws in training, such as dropout; the caller's random state is kept.
        execution: How steps are run, see `secateur.steps.Execution`; no part of what is trained.
        on_step: Called after each batch, for progress bars.

    Yields:
        An `Epoch`.

    Raises:
        TrainingError: if the teacher is missing, all parameters are frozen, the loader has no length, a
            batch has no labels, or the loss is not finite.
        DataError: if a label is not one of the network's classes, or a batch of one meets BatchNorm.
        ScoreError: if student and teacher outputs cannot be compared.
        InvalidArgument: if `execution` is unknown, or impossible here; for a `seed` that is no whole number
            from 0, and for an iterator as `validation`.
    """
    check_whole("seed", seed, least=0)
    check_repeatable(validation, "training goes through the validation batches after every epoch")
    n_batches = check_trainable(model, train, recipe, teacher, execution=execution)
    guide = _guide(train, recipe, teacher)
    state = TrainState() if state is None else state
    device = device_of(model)
    autocast = autocast_for(recipe, device)
    if validation is not None:
        with random_state_kept(device), autocast:
            check_first(model, validation)

    with ExitStack() as stack:
        stack.enter_context(modes_kept(model))
        optimizer = torch.optim.SGD(
            model.parameters(),
            lr=recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.momentum > 0,
            fused=device.type == "cuda" or None,
        )
        _restore(state, model, optimizer)
        others = () if guide is None else (guide.teacher,)
        arrange = stack.enter_context(
            TrainingLayout(model, others, optimizer, channels_last=recipe.channels_last)
        )
        if masks is not None:
            stack.enter_context(keep_masks(model, optimizer, masks))
        if guide is not None:
            stack.enter_context(consulted(guide.teacher))
        steps = make_steps(
            model,
            optimizer,
            _mixed_loss(recipe, task_loss, guide, autocast),
            execution=execution,
            device=device,
            n_steps=n_batches * (recipe.epochs - state.epochs_done),
        )
        for number in range(state.epochs_done, recipe.epochs):
            started = time.perf_counter()
            to_training(model)
            rates = [learning_rate(recipe, number * n_batches + i, n_batches) for i in range(n_batches)]
            laid_out = (
                batch._replace(inputs=arrange(batch.inputs))
                for batch in _indexed_batches(train, recipe, number, device)
            )
            batches = _step_inputs(laid_out, guide, autocast)
            with torch.enable_grad(), _seeded(device, seed, number), steps.running():
                loss = _train_epoch(steps, batches, rates, on_step)
            if not math.isfinite(loss):
                raise TrainingError(
                    f"the training loss of epoch {number + 1} is {loss}. "
                    f"Lower lr ({recipe.lr:g}) or set precision=fp32."
                )
            with random_state_kept(device), autocast:
                metrics = None if validation is None else evaluate(model, validation)
            _remember(state, model, optimizer, number + 1, metrics)
            accuracy = None if metrics is None else metrics.accuracy
            yield Epoch(number + 1, loss, accuracy, rates[-1], time.perf_counter() - started)
    if state.selected:
        model.load_state_dict(state.selected)


def _mixed_loss(
    recipe: Recovery, task_loss: Loss, guide: TeacherLogits | None, autocast: torch.autocast
) -> LossOf:
    """The loss of the task and of the teacher, who is asked where a batch does not bring its logits."""
    distance, task_loss = distillation(recipe), explained(task_loss)

    def loss_of(network: Callable[..., object], batch: StepInputs) -> Tensor:
        guidance = batch.guidance
        with autocast:
            logits = logits_for(network, batch.inputs)
            if guide is not None and guidance is None:
                guidance = guide.ask(batch.inputs)
        task = task_loss(logits.float(), batch.labels)
        check_scalar("task", task)
        if guidance is None:
            return task
        kd = distance(logits.float(), guidance.float())
        return (1 - recipe.kd_weight) * task + recipe.kd_weight * kd

    return loss_of


@contextmanager
def _seeded(device: torch.device, seed: int, epoch: int) -> Generator[None]:
    """Random numbers that depend on `seed` and `epoch` alone; the caller's random state comes back."""
    with random_state_kept(device):
        # SeedSequence mixes the pair, so that seed 0 in epoch 1 is not seed 1 in epoch 0.
        torch.manual_seed(int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]))
        yield


def check_trainable(
    model: nn.Module,
    train: Batches,
    recipe: Recovery,
    teacher: nn.Module | TeacherLogits | None,
    *,
    execution: Execution,
) -> int:
    """Refuse a training that could not begin.

    Returns:
        Number of batches of an epoch.

    Raises:
        TrainingError: if the teacher is missing or is the model itself, all parameters are frozen, a tensor
            of the model cannot be written to, or the loader has no length, or cannot repeat the views that
            the recipe asks for.
        InvalidArgument: if `execution` is unknown, or impossible here.
    """
    resolve_execution(execution, model, device_of(model), 1)
    if recipe.kd_weight > 0:
        if teacher is None:
            raise TrainingError(
                f"kd_weight={recipe.kd_weight:g} needs a teacher; pass one or set kd_weight=0."
            )
        if share_weights(teacher.teacher if isinstance(teacher, TeacherLogits) else teacher, model):
            raise TrainingError(
                "the teacher is, or shares weights with, the model in training. "
                "Pass copy.deepcopy(model) as the teacher."
            )
        if recipe.teacher_views and not isinstance(teacher, TeacherLogits):
            _check_views(train, recipe)
    if not any(p.requires_grad for p in model.parameters()):
        raise TrainingError("the model has no trainable parameter; call requires_grad_(True) on some.")
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and (reason := why_not_writable(tensor)):
            raise TrainingError(f"the state of {name!r} cannot be put back after training: {reason}")
    n_batches = length_of(train)
    if not n_batches:
        raise TrainingError(
            "the training loader needs a length above 0, for the learning-rate schedule. Pass a DataLoader, "
            "or a list of batches."
        )
    return n_batches


def _check_views(train: Batches, recipe: Recovery) -> None:
    if not isinstance(train, IndexedLoader):
        raise TrainingError(
            f"teacher_views={recipe.teacher_views} needs a loader that knows its samples (IndexedLoader), "
            f"got {type(train).__name__}. Set teacher_views=0 to ask the teacher every epoch."
        )


def _guide(
    train: Batches, recipe: Recovery, teacher: nn.Module | TeacherLogits | None
) -> TeacherLogits | None:
    """The teacher that the recipe asks for, or None if it asks for none."""
    if recipe.kd_weight == 0 or teacher is None:
        return None
    if isinstance(teacher, TeacherLogits):
        return teacher
    if recipe.teacher_views and isinstance(train, IndexedLoader):
        return TeacherLogits(teacher, train)
    return TeacherLogits(teacher)


def _train_epoch(
    steps: Steps, batches: Iterator[StepInputs], rates: list[float], on_step: Callable[[], None]
) -> float:
    """One pass; returns the loss averaged over batches."""
    total = torch.zeros(())
    n_batches = 0
    for n_batches, batch in enumerate(batches, start=1):
        if n_batches > len(rates):
            break
        # The sum stays on the device: no synchronisation within the epoch.
        with data_faults(batch.labels):
            total = total + steps(batch, rates[n_batches - 1])
        on_step()
    if n_batches != len(rates):
        raise TrainingError(
            f"the training loader has length {len(rates)} but yielded "
            f"{'more' if n_batches > len(rates) else n_batches} batches; its length must be right."
        )
    return float(total) / len(rates)


def _step_inputs(
    batches: Iterator[IndexedBatch], guide: TeacherLogits | None, autocast: torch.autocast
) -> Iterator[StepInputs]:
    """Batches with the logits that the teacher remembers, if it remembers any."""
    for batch in batches:
        guidance = None
        if guide is not None and guide.remembers:
            with autocast:
                guidance = guide(batch)
        yield StepInputs(batch.inputs, batch.labels, guidance)


def _indexed_batches(
    train: Batches, recipe: Recovery, number: int, device: torch.device
) -> Iterator[IndexedBatch]:
    if isinstance(train, IndexedLoader):
        view = number % recipe.teacher_views if recipe.teacher_views else None
        for batch in train.epoch(number, view=view):
            inputs = batch.inputs.to(device, non_blocking=True)
            labels, indices = (part.to(device, non_blocking=True) for part in (batch.labels, batch.indices))
            yield IndexedBatch(inputs, labels, indices, batch.view)
        return
    nowhere = torch.empty(0, dtype=torch.int64)
    for index, (inputs, labels) in enumerate(split_batches(train, device)):
        if labels is None:
            raise TrainingError(f"training needs labels, batch {index} has none. {GIVE_LABELS}.")
        yield IndexedBatch(inputs, labels, nowhere, number)


def _snapshot(model: nn.Module) -> dict[str, Any]:
    """The model's state, which may hold more than tensors (`torch.nn.Module.get_extra_state`)."""
    return {
        name: _kept(value) if isinstance(value, Tensor) else copy.deepcopy(value)
        for name, value in model.state_dict().items()
    }


def _kept(tensor: Tensor) -> Tensor:
    """A copy on the CPU."""
    return tensor.detach().to("cpu", copy=True)


def _remember(
    state: TrainState, model: nn.Module, optimizer: torch.optim.Optimizer, epoch: int, metrics: Metrics | None
) -> None:
    """Bring `state` up to date after an epoch."""
    state.epochs_done = epoch
    state.model = _snapshot(model)
    state.momentum = {
        name: _kept(optimizer.state[p]["momentum_buffer"])
        for name, p in model.named_parameters()
        if optimizer.state.get(p, {}).get("momentum_buffer") is not None
    }
    if metrics is None or metrics.accuracy >= state.best_accuracy - _standard_error(metrics):
        state.selected, state.selected_epoch = state.model, epoch
    if metrics is not None:
        state.best_accuracy = max(state.best_accuracy, metrics.accuracy)


def _standard_error(metrics: Metrics) -> float:
    """Of an accuracy, by Laplace's estimate, which is not 0 at 100 %."""
    n = metrics.n_samples
    p = (metrics.accuracy * n + 1) / (n + 2)
    return math.sqrt(p * (1 - p) / n)


def _restore(state: TrainState, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put model and optimizer where `state` left them."""
    if not state.epochs_done:
        return
    model.load_state_dict(state.model)
    for name, parameter in model.named_parameters():
        if name in state.momentum:
            optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(
                state.momentum[name]
            )
