"""The training loop: resumable bit for bit, fair in the epoch it selects, sparing with its teacher."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from helpers import (
    CLASSES,
    Indexed,
    Snapshot,
    indexed_images,
    indexed_vectors,
    make_cnn,
    make_mlp,
    same_bits,
    same_state,
    vectors,
)
from integration.train_helpers import GUIDED, PLAIN, pruned, student_cnn
from secateur import train as train_module
from secateur.evaluate import Metrics, evaluate
from secateur.masks import Masks
from secateur.naming import IndexedBatch
from secateur.recovery import Recovery
from secateur.teacher_cache import TeacherLogits
from secateur.train import Epoch, TrainState, fit


def without_seconds(epochs: list[Epoch]) -> list[Epoch]:
    return [replace(epoch, seconds=0.0) for epoch in epochs]


def through_disk(state: TrainState) -> TrainState:
    """A state as it comes back from a file: other tensors, all contiguous."""
    parts = {
        part: {name: t.contiguous().clone() for name, t in getattr(state, part).items()}
        for part in ("model", "momentum", "selected")
    }
    return replace(state, **parts)


# Resuming


class Sociable(nn.Module):
    """Its answer to a sample depends on the batch: in the open what some kernels do in the last bits."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.inner(x)
        return z + 0.01 * z.mean(dim=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("views", [None, 0, 2])
@pytest.mark.parametrize("validated", [False, True])
def test_a_resumed_run_ends_with_the_same_bits(precision: Any, views: int | None, validated: bool) -> None:
    """Stopped after any epoch; logits that are remembered come from the same batches after a resume."""
    recipe = Recovery(epochs=5, kd_weight=0 if views is None else 0.6, teacher_views=views or 0)
    recipe = replace(recipe, precision=precision)
    loader, teacher = indexed_images(25), Sociable(make_cnn(1, width=8))
    options: dict[str, Any] = {"validation": indexed_images(40) if validated else None}

    def start() -> tuple[nn.Module, Masks]:
        model = student_cnn()
        return model, pruned(model)

    model, masks = start()
    state = TrainState()
    curve = list(fit(model, loader, recipe, masks=masks, teacher=teacher, state=state, **options))
    assert len(curve) == 5
    assert len({epoch.loss for epoch in curve}) == 5
    for stop in range(1, 6):
        first, masks = start()
        early = TrainState()
        run = fit(first, loader, recipe, masks=masks, teacher=teacher, state=early, **options)
        before = list(islice(run, stop))
        run.close()
        torch.manual_seed(stop)  # the global random state plays no part
        second = make_cnn(9, dropout=0)
        late = through_disk(early)
        after = list(fit(second, loader, recipe, masks=masks, teacher=teacher, state=late, **options))
        assert without_seconds(before + after) == without_seconds(curve)
        assert same_state(second.state_dict(), model.state_dict())
        assert late.selected_epoch == state.selected_epoch
        assert late.best_accuracy == state.best_accuracy
        assert same_state(late.momentum, state.momentum)
        masks.check(second)


def test_a_finished_state_gives_the_selected_epoch_back_without_training() -> None:
    model, loader, state = make_mlp(), indexed_vectors(), TrainState()
    list(fit(model, loader, PLAIN, state=state))
    other = make_mlp(5)
    assert list(fit(other, loader, PLAIN, state=through_disk(state))) == []
    assert same_state(other.state_dict(), model.state_dict())


def test_the_state_is_a_snapshot_of_each_epoch() -> None:
    model, state = make_mlp(), TrainState()
    for epoch in fit(model, indexed_vectors(), PLAIN, state=state):
        assert state.epochs_done == epoch.epoch
        assert same_state(state.model, model.state_dict())
        assert all(state.model[name] is not p for name, p in model.named_parameters())
        assert list(state.momentum) == list(dict(model.named_parameters()))


# The selected epoch


@pytest.mark.parametrize(
    ("accuracies", "n_samples", "selected"),
    [
        ([0.5, 0.7, 0.68, 0.6], 100, 3),  # one standard error is 0.047
        ([0.5, 0.7, 0.68, 0.6], 10_000, 2),  # 0.0047
        ([0.5, 0.7, 0.7, 0.6], 10**9, 3),  # the later of equals
        ([0.9, 0.86, 0.83, 0.8], 100, 1),  # each near the one before, none near the best
        ([0.9, 0.88, 0.8, 0.95], 100, 4),
        ([1.0, 1.0, 0.999, 0.5], 1000, 3),  # also at 100 % a figure is not certain
        ([0.0, 0.0, 0.0, 0.0], 100, 4),
    ],
)
def test_the_latest_epoch_within_one_standard_error_of_the_best_is_selected(
    monkeypatch: pytest.MonkeyPatch, accuracies: list[float], n_samples: int, selected: int
) -> None:
    figures = iter(accuracies)
    monkeypatch.setattr(train_module, "evaluate", lambda *_, **__: Metrics(next(figures), 0.0, n_samples))
    model, state = make_mlp(), TrainState()
    seen: list[dict[str, Tensor]] = []
    curve: list[Epoch] = []
    for epoch in fit(model, indexed_vectors(), replace(PLAIN, epochs=4), validation=vectors(), state=state):
        seen.append(copy.deepcopy(model.state_dict()))
        curve.append(epoch)
    assert [epoch.val_accuracy for epoch in curve] == accuracies
    assert (state.selected_epoch, state.best_accuracy) == (selected, max(accuracies))
    assert same_state(model.state_dict(), seen[selected - 1])
    assert same_state(state.selected, seen[selected - 1])
    assert same_state(state.model, seen[3])


def test_without_validation_the_last_epoch_counts() -> None:
    model, state = make_mlp(), TrainState()
    curve = list(fit(model, indexed_vectors(), PLAIN, state=state))
    assert [epoch.val_accuracy for epoch in curve] == [None] * 3
    assert (state.selected_epoch, state.best_accuracy) == (3, -1.0)
    assert same_state(model.state_dict(), state.model)


def test_validation_is_scored_in_eval_mode_on_the_weights_of_that_epoch() -> None:
    model, validation = student_cnn(), indexed_images(40)
    for epoch in fit(model, indexed_images(), PLAIN, validation=validation):
        assert model.training
        assert epoch.val_accuracy == evaluate(model, validation).accuracy


# The teacher


class CountingTeacher(nn.Module):
    """Counts the rows it is asked for."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.rows = 0

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.rows += len(x)
        return self.inner(x)


@pytest.mark.parametrize(("views", "passes"), [(0, 6), (1, 1), (2, 2), (6, 6), (9, 6)])
def test_the_teacher_sees_each_sample_once_a_view(views: int, passes: int) -> None:
    teacher, loader = CountingTeacher(make_mlp(1)), indexed_vectors(30)
    list(fit(make_mlp(), loader, replace(GUIDED, epochs=6, teacher_views=views), teacher=teacher))
    assert teacher.rows == 30 * passes


def test_remembered_logits_are_those_of_asking_again() -> None:
    teacher, loader = CountingTeacher(make_cnn(1).eval()).eval(), indexed_images(32)
    remembering, forgetting = TeacherLogits(teacher, loader), TeacherLogits(teacher)
    for number in range(6):
        for batch in loader.epoch(number, view=number % 2):
            logits = remembering(batch)
            assert same_bits(logits, forgetting(batch))
            assert not logits.requires_grad
    assert teacher.rows == 32 * (2 + 6)


def test_what_is_remembered_does_not_depend_on_who_asks_first() -> None:
    """Also where a sample's logits depend on its batch, as in the last bits they can."""
    loader, teacher = indexed_images(30), Sociable(make_cnn(1)).eval()
    first, second = TeacherLogits(teacher, loader), TeacherLogits(teacher, loader)
    early = {number: [first(batch) for batch in loader.epoch(number, view=0)] for number in (0, 3)}
    for number in (3, 0):
        late = [second(batch) for batch in loader.epoch(number, view=0)]
        assert all(same_bits(a, b) for a, b in zip(early[number], late, strict=True))


def test_remembering_changes_no_bit_of_the_training() -> None:
    class Unaware(Indexed):
        """Two views for whoever asks, so that a teacher without memory sees the same data."""

        def epoch(self, number: int, *, view: int | None = None) -> Iterator[IndexedBatch]:
            return super().epoch(number, view=number % 2 if view is None else view)

    data = indexed_images(32)
    states = []
    for views in (0, 2):
        model = student_cnn()
        loader = Unaware(data.inputs, data.labels)
        list(fit(model, loader, replace(GUIDED, epochs=4, teacher_views=views), teacher=make_cnn(1)))
        states.append(model.state_dict())
    assert same_state(*states)


def test_dense_outputs_can_be_remembered() -> None:
    guide = TeacherLogits(nn.Conv2d(1, 3, 1), Indexed(torch.randn(5, 1, 2, 2), torch.zeros(5), batch_size=2))
    batch = IndexedBatch(torch.randn(4, 1, 2, 2), torch.zeros(4), torch.tensor([2, 0, 3, 1]), 0)
    first = guide(batch)
    assert first.shape == (4, 3, 2, 2)
    one = batch._replace(indices=torch.tensor([3]), inputs=torch.zeros(1, 1, 2, 2))
    assert same_bits(guide(one), first[2:3])


@pytest.mark.parametrize("views", [0, 2])
def test_trainings_that_share_a_teacher_end_as_each_alone(views: int) -> None:
    """Here the second one asks for its views in another order than the first did."""
    loader, teacher = indexed_images(30), Sociable(make_cnn(1))
    shared = TeacherLogits(teacher, loader)
    recipe = replace(GUIDED, epochs=4, teacher_views=views)

    def trained(guide: Any, *, skip: int) -> dict[str, Tensor]:
        model, state = student_cnn(), TrainState()
        if skip:
            state = replace(state, epochs_done=skip, model=student_cnn().state_dict())
        list(fit(model, loader, recipe, teacher=guide, state=state))
        return model.state_dict()

    late = trained(TeacherLogits(teacher, loader), skip=1)
    early = trained(shared, skip=0)
    assert same_state(trained(shared, skip=1), late)
    assert same_state(trained(TeacherLogits(teacher, loader), skip=0), early)


def test_a_teacher_without_weight_is_never_called() -> None:
    class Never(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("the teacher must not be called")

    assert len(list(fit(make_mlp(), indexed_vectors(), PLAIN, teacher=Never()))) == 3


def test_the_teacher_is_left_as_it_was() -> None:
    teacher = make_cnn(1).train()
    teacher[1].eval()
    run = fit(student_cnn(), indexed_images(), GUIDED, teacher=teacher)
    before = Snapshot.of(teacher)
    next(run)
    run.close()
    list(fit(student_cnn(), indexed_images(), replace(GUIDED, precision="bf16"), teacher=teacher))
    before.rng = torch.get_rng_state()
    before.assert_unchanged(teacher)


def test_the_random_state_is_kept_from_a_loader_of_validation_batches_too() -> None:
    (x, y), *_ = vectors()
    validation = DataLoader(TensorDataset(x, y), 2)
    before = torch.get_rng_state()
    list(fit(make_mlp(), indexed_vectors(), PLAIN, validation=validation))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_may_keep_more_than_tensors_in_its_state() -> None:
    class Counting(nn.Linear):
        seen = 0

        def forward(self, input: Tensor) -> Tensor:  # noqa: A002
            self.seen += self.training
            return super().forward(input)

        def get_extra_state(self) -> dict[str, list[int]]:
            return {"seen": [self.seen]}

        def set_extra_state(self, state: dict[str, list[int]]) -> None:
            self.seen = state["seen"][0]

    model, state = Counting(6, CLASSES), TrainState()
    run = fit(model, vectors(), replace(PLAIN, epochs=2), state=state)
    next(run)
    one_epoch = len(vectors())
    assert state.model["_extra_state"] == {"seen": [one_epoch]}
    next(run)
    other = Counting(6, CLASSES)
    list(fit(other, vectors(), replace(PLAIN, epochs=2), state=state))
    assert other.seen == model.seen == 2 * one_epoch
