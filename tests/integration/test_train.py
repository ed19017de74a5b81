"""The training loop itself: what it computes, how it leaves a model behind, and what it refuses."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from helpers import (
    CLASSES,
    Indexed,
    Snapshot,
    assert_positive_zero,
    hooks_of,
    indexed_images,
    indexed_vectors,
    make_cnn,
    make_mlp,
    same_bits,
    same_state,
    vectors,
)
from integration.train_helpers import GUIDED, PLAIN, pruned, student_cnn
from secateur.diagnostics import split_half_overlap
from secateur.errors import DataError, MaskError, ScoreError, TrainingError
from secateur.evaluate import evaluate
from secateur.losses import kd_loss
from secateur.masks import Masks
from secateur.naming import IndexedBatch, IndexedLoader, Loss, count_batches, length_of
from secateur.progress import Watcher
from secateur.recovery import Recovery
from secateur.schedules import cosine_with_warmup
from secateur.scores import TaskGradient
from secateur.train import TrainState, fit

# The loop itself


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_training_is_the_loop_one_would_write(momentum: float) -> None:
    recipe = replace(PLAIN, momentum=momentum, warmup=0.25, lr=0.05)
    model, loader = make_mlp(), indexed_vectors()
    twin = copy.deepcopy(model)
    list(fit(model, loader, recipe))
    optimizer = torch.optim.SGD(
        twin.parameters(), lr=1, momentum=momentum, weight_decay=5e-4, nesterov=momentum > 0
    )
    n = 3 * len(loader)
    for number in range(3):
        for place, batch in enumerate(loader.epoch(number)):
            progress = (number * len(loader) + place + 0.5) / n
            optimizer.param_groups[0]["lr"] = 0.05 * cosine_with_warmup(progress, warmup=0.25)
            optimizer.zero_grad()
            F.cross_entropy(twin(batch.inputs), batch.labels).backward()
            optimizer.step()
    assert same_state(model.state_dict(), twin.state_dict())


@pytest.mark.parametrize(
    ("options", "distance"),
    [
        ({"temperature": 3.0}, partial(kd_loss, temperature=3.0)),
        (
            {"kd": "ca-kld", "beta": 0.3, "standardize": True},
            partial(kd_loss, temperature=4.0, direction="ca-kld", beta=0.3, standardize=True),
        ),
        ({"kd": "mse"}, F.mse_loss),
    ],
    ids=["forward", "ca-kld", "mse"],
)
def test_the_loss_is_the_mix_of_task_and_teacher(options: dict[str, Any], distance: Loss) -> None:
    model, teacher, loader = make_mlp(), make_mlp(1), indexed_vectors()
    recipe = replace(GUIDED, epochs=1, lr=0.0, **options)
    (epoch,) = fit(model, loader, recipe, teacher=teacher)
    losses = []
    for batch in loader.epoch(0):
        z, guidance = model(batch.inputs), teacher(batch.inputs)
        kd = distance(z, guidance)
        losses.append(float((0.3 * F.cross_entropy(z, batch.labels) + 0.7 * kd).detach()))
    assert epoch.loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert (epoch.epoch, epoch.lr) == (1, 0.0)
    assert epoch.seconds > 0


def test_the_learning_rate_rises_and_falls_to_nearly_nothing() -> None:
    recipe = Recovery(epochs=10, kd_weight=0, lr=0.2, warmup=0.3, precision="fp32")
    rates = [epoch.lr for epoch in fit(make_mlp(), indexed_vectors(), recipe)]
    top = rates.index(max(rates))
    assert 0.19 < rates[top] <= 0.2
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert 0 < rates[-1] < 0.001


def test_the_schedule() -> None:
    assert cosine_with_warmup(0.0, warmup=0.2) == 0
    assert cosine_with_warmup(0.1, warmup=0.2) == pytest.approx(0.5)
    assert cosine_with_warmup(0.2, warmup=0.2) == 1
    assert cosine_with_warmup(0.6, warmup=0.2) == pytest.approx(0.5)
    assert cosine_with_warmup(1.0, warmup=0.2) == pytest.approx(0)
    assert cosine_with_warmup(0.0, warmup=0.0) == 1
    assert cosine_with_warmup(0.2 - 1e-12, warmup=0.2) == pytest.approx(1)


def test_training_learns_with_and_without_a_teacher() -> None:
    loader = indexed_vectors(120, batch_size=16)
    validation = indexed_vectors(60)
    teacher = make_mlp(1, width=32)
    list(fit(teacher, loader, replace(PLAIN, epochs=30)))
    assert evaluate(teacher, validation).accuracy > 0.9
    for recipe in (replace(PLAIN, epochs=20), replace(GUIDED, epochs=20)):
        model = make_mlp()
        masks = pruned(model)
        before = evaluate(model, validation).accuracy
        list(fit(model, loader, recipe, masks=masks, teacher=teacher))
        assert evaluate(model, validation).accuracy > max(before, 0.8)
        masks.check(model)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_pruned_weights_are_positive_zeros_after_every_epoch(precision: Any) -> None:
    model = student_cnn()
    masks = pruned(model)
    recipe = replace(GUIDED, precision=precision)
    for _ in fit(model, indexed_images(), recipe, masks=masks, teacher=make_cnn(1)):
        for name, mask in masks.items():
            assert_positive_zero(model.get_parameter(name)[~mask])
    for name, mask in masks.items():
        weight = model.get_parameter(name)
        assert_positive_zero(weight[~mask])
        assert bool((weight[mask] != 0).all())


def test_steps_are_counted() -> None:
    ticks: list[None] = []
    loader = indexed_vectors()
    list(fit(make_mlp(), loader, PLAIN, on_step=lambda: ticks.append(None)))
    assert len(ticks) == 3 * len(loader) == 12


def test_no_epochs_no_change() -> None:
    model = student_cnn()
    before = Snapshot.of(model)
    assert list(fit(model, indexed_images(), replace(PLAIN, epochs=0))) == []
    before.assert_unchanged(model)


@pytest.mark.parametrize("shuffle", [False, True])
def test_an_ordinary_dataloader_works(shuffle: bool) -> None:
    data = indexed_vectors()
    loader: Any = DataLoader(TensorDataset(data.inputs, data.labels), batch_size=8, shuffle=shuffle)
    model = make_mlp()
    curve = list(fit(model, loader, replace(GUIDED, epochs=8), teacher=make_mlp(1), validation=loader))
    assert len(curve) == 8
    assert curve[-1].loss < curve[0].loss
    assert list(fit(make_mlp(), [*data], PLAIN))[-1].epoch == 3  # a list of batches does as well


def test_a_loader_of_ours_is_recognised() -> None:
    assert isinstance(indexed_vectors(), IndexedLoader)
    assert not isinstance([*vectors()], IndexedLoader)
    assert not isinstance(DataLoader(TensorDataset(torch.zeros(3))), IndexedLoader)


def test_each_epoch_is_asked_for_by_number_and_view() -> None:
    asked: list[tuple[int, int | None]] = []

    class Spy(Indexed):
        def epoch(self, number: int, *, view: int | None = None) -> Iterator[IndexedBatch]:
            asked.append((number, view))
            return super().epoch(number, view=view)

    data = indexed_vectors()
    loader = Spy(data.inputs, data.labels)
    list(fit(make_mlp(), loader, replace(PLAIN, epochs=5, channels_last=False)))
    assert asked == [(0, None), (1, None), (2, None), (3, None), (4, None)]  # a new look every epoch
    asked.clear()
    list(
        fit(
            make_mlp(),
            loader,
            replace(GUIDED, epochs=5, teacher_views=2, channels_last=False),
            teacher=make_mlp(1),
        )
    )
    teacher_views = [(0, 0), (0, 1)]  # the teacher goes through a view before its first batch is trained on
    assert asked == [(0, 0), teacher_views[0], (1, 1), teacher_views[1], (2, 0), (3, 1), (4, 0)]


# What is left behind


def leftovers(model: nn.Module) -> tuple[list[bool], bool, dict[str, int]]:
    contiguous = all(t.is_contiguous() for t in model.state_dict().values())
    return [m.training for m in model.modules()], contiguous, hooks_of(model)


@pytest.mark.parametrize("ending", ["finished", "closed", "broken", "nan"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_modes_layout_and_hooks_are_restored(ending: str, channels_last: bool) -> None:
    model = student_cnn().train()
    model[1].eval()
    masks = pruned(model)
    before = leftovers(model)
    assert before[1]
    pointers = [id(p) for p in model.parameters()]
    data = indexed_images()
    steps: list[None] = []

    def on_step() -> None:
        steps.append(None)
        if ending == "broken" and len(steps) == 6:
            raise KeyError("broken")
        if ending == "nan" and len(steps) == 6:
            with torch.no_grad():
                model[1].weight.fill_(math.nan)

    recipe = replace(PLAIN, channels_last=channels_last)
    run = fit(model, data, recipe, masks=masks, on_step=on_step)
    next(run)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert model[3].weight.is_contiguous(memory_format=layout)
    if ending == "closed":
        run.close()
    elif ending == "finished":
        list(run)
    else:
        with pytest.raises(KeyError if ending == "broken" else TrainingError):
            list(run)
    assert leftovers(model) == before
    assert pointers == [id(p) for p in model.parameters()]
    masks.check(model)


def test_a_layout_does_not_change_what_is_learned() -> None:
    found = []
    for channels_last in (False, True):
        model = student_cnn()
        list(fit(model, indexed_images(), replace(PLAIN, channels_last=channels_last)))
        found.append(model.state_dict())
    assert all(torch.allclose(found[0][name], found[1][name], atol=1e-4) for name in found[0])


# Refusals


def nan_data() -> Indexed:
    data = indexed_vectors()
    data.inputs[17, 2] = math.nan
    return data


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_state() -> None:
    class LateNan(Indexed):
        def epoch(self, number: int, *, view: int | None = None) -> Iterator[IndexedBatch]:
            for batch in super().epoch(number, view=view):
                yield batch._replace(inputs=batch.inputs * (math.nan if number == 2 else 1))

    data = indexed_vectors()
    model, state = make_mlp(), TrainState()
    run = fit(model, LateNan(data.inputs, data.labels), PLAIN, state=state)
    next(run)
    next(run)
    good = copy.deepcopy(state)
    with pytest.raises(TrainingError, match=r"training loss of epoch 3 is nan\. Lower lr \(0\.1\)"):
        next(run)
    assert state.epochs_done == 2
    assert same_state(state.model, good.model)
    assert same_state(state.selected, good.selected)
    assert same_state(state.momentum, good.momentum)


def without_labels() -> list[Tensor]:
    return [x for x, _ in vectors()]


@pytest.mark.parametrize(
    ("train", "options", "error", "message"),
    [
        (indexed_vectors(), {"recipe": GUIDED}, TrainingError, r"kd_weight=0\.7 needs a teacher"),
        ([], {}, TrainingError, "length above 0"),
        (DataLoader(TensorDataset(torch.zeros(0, 6))), {}, TrainingError, "length above 0"),
        (iter(vectors()), {}, TrainingError, "length above 0"),
        (without_labels(), {}, TrainingError, "training needs labels, batch 0 has none"),
        ([(x * math.nan, y) for x, y in vectors()], {}, DataError, "NaN or infinity"),
        (nan_data(), {}, TrainingError, "training loss of epoch 1 is nan"),
        (
            vectors(),
            {"recipe": replace(GUIDED, teacher_views=2), "teacher": make_mlp(1)},
            TrainingError,
            "teacher_views=2 needs a loader that knows its samples",
        ),
        (
            vectors(),
            {"recipe": GUIDED, "teacher": nn.Linear(6, 5)},
            ScoreError,
            "the student knows 3 classes, the teacher 5",
        ),
        (vectors(), {"masks": Masks({"x": torch.ones(2, dtype=torch.bool)})}, MaskError, "another model"),
        (vectors(), {"validation": []}, DataError, "no batch"),
        (vectors(), {"validation": without_labels()}, DataError, "needs labels"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    train: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = make_mlp().eval()
    with pytest.raises(error, match=message):
        list(fit(model, train, **{"recipe": PLAIN, **options}))
    assert not model.training
    assert hooks_of(model) == {}


def test_what_cannot_be_evaluated_is_told_before_an_epoch() -> None:
    model, seen = make_mlp(), []
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(DataError, match="needs labels"):
        next(fit(model, vectors(), PLAIN, validation=without_labels(), on_step=lambda: seen.append(1)))
    assert not seen
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


FOREIGN = (torch.tensor([[1], [7]]), torch.zeros(2, dtype=torch.int64))


def test_labels_that_are_no_classes_and_a_batch_of_one_are_told() -> None:
    with pytest.raises(DataError, match=rf"labels go from \d+ to {CLASSES}; .* must be 0 … C − 1"):
        list(fit(make_mlp(), [(x, y.clamp(max=0) + CLASSES) for x, y in vectors()], PLAIN))
    with pytest.raises(IndexError, match="out of range in self"):  # of an embedding, not of the labels
        list(fit(nn.Sequential(nn.Embedding(2, 6), nn.Flatten(), nn.Linear(6, CLASSES)), [FOREIGN], PLAIN))
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, CLASSES))
    batches = [*vectors(), (torch.randn(1, 6), torch.zeros(1, dtype=torch.int64))]
    with pytest.raises(DataError, match=r"cannot train on a batch of 1: .*drop_last=True"):
        list(fit(model, batches, PLAIN))


class Stream(IterableDataset[tuple[Tensor, int]]):
    """Samples without a number."""

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        for index in range(12):
            yield torch.full((6,), float(index)), index % CLASSES


def test_a_loader_whose_length_raises_is_one_without() -> None:
    loader = DataLoader(Stream(), batch_size=4)
    assert length_of(loader) is None
    assert count_batches(loader) == 3
    with pytest.raises(TrainingError, match="needs a length above 0"):
        list(fit(make_mlp(), loader, PLAIN))
    assert split_half_overlap(make_mlp(), loader, TaskGradient(), sparsity=0.5) > 0
    assert len(list(Watcher().track(loader, "batches"))) == 3


def test_a_network_cannot_be_its_own_teacher_in_training() -> None:
    model = make_mlp()
    for teacher in (model, nn.Sequential(model)):
        with pytest.raises(TrainingError, match=r"shares weights with, the model in training.*deepcopy"):
            list(fit(model, indexed_vectors(), GUIDED, teacher=teacher))


@pytest.mark.parametrize(
    "model", [make_mlp().requires_grad_(False), nn.Sequential()], ids=["frozen", "empty"]
)
def test_a_model_without_trainable_parameters_is_refused(model: nn.Module) -> None:
    with pytest.raises(TrainingError, match="no trainable parameter"):
        list(fit(model, vectors(), PLAIN))


def test_a_partly_frozen_model_trains() -> None:
    model = make_mlp()
    model[0].requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    list(fit(model, indexed_vectors(), PLAIN))
    assert same_bits(model[0].weight, before["0.weight"])
    assert not torch.equal(model[2].weight, before["2.weight"])
