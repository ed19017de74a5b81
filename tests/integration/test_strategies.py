"""What plays strategies: budget, schedules, selection, teacher, and what it refuses."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from helpers import indexed_images, make_cnn, same_bits, same_state
from integration.train_helpers import GUIDED, PLAIN, pruned, student_cnn
from secateur import train as train_module
from secateur.cutting import cut
from secateur.errors import InvalidArgument, ScoreError, TrainingError
from secateur.evaluate import Metrics
from secateur.masks import Masks, apply_masks
from secateur.recovery import Recovery, learning_rate
from secateur.strategies import Dense, OneShot, Problem, Round
from secateur.teacher_cache import TeacherLogits
from secateur.train import TrainState, fit
from strategy_helpers import CountingStore, Scripted, all_kept, play, spying


def masks_at(sparsity: float) -> Masks:
    return pruned(student_cnn(), sparsity)


SOME, MORE = masks_at(0.3), masks_at(0.6)


# One cut is what one would do without strategies


@pytest.mark.parametrize("views", [None, 0, 2])
@pytest.mark.parametrize("validated", [False, True])
def test_one_shot_is_a_cut_and_a_fit(views: int | None, validated: bool) -> None:
    recipe = Recovery(epochs=4, kd_weight=0 if views is None else 0.6, teacher_views=views or 0)
    data, teacher = indexed_images(30), make_cnn(1)
    validation = indexed_images(40) if validated else None
    by_hand = student_cnn()
    masks = cut(by_hand, [*data], OneShot().criterion, sparsity=0.6)
    list(fit(by_hand, data, recipe, masks=masks, teacher=teacher, validation=validation, seed=3))
    student = student_cnn()
    out = play(OneShot(), student, recipe=recipe, teacher=teacher, validation=validation, seed=3)
    assert same_state(student.state_dict(), by_hand.state_dict())
    assert out.masks == masks
    assert (out.epochs, out.epochs_per_part, len(out.curve)) == (4, 1, 4)
    assert out.score_s > 0
    assert out.train_s == pytest.approx(sum(epoch.seconds for _, epoch in out.curve))


def test_stages_and_regrowth_reach_the_cut() -> None:
    data = [*indexed_images(30)]
    options: dict[str, Any] = {"stages": 3, "regrow": True}
    masks = cut(student_cnn(), data, OneShot().criterion, sparsity=0.6, **options)
    assert play(OneShot(**options), epochs=0).masks == masks
    with pytest.raises(InvalidArgument, match="stages must be at least 1"):
        OneShot(stages=0)


def test_the_dense_row_is_a_fit() -> None:
    by_hand, student = student_cnn(), student_cnn()
    list(fit(by_hand, indexed_images(30), replace(PLAIN, epochs=4)))
    assert play(Dense(), student).masks is None
    assert same_state(student.state_dict(), by_hand.state_dict())


@pytest.mark.parametrize("strategy", [OneShot(), Dense()])
def test_without_a_budget_nothing_is_trained(strategy: OneShot | Dense) -> None:
    student = student_cnn()
    before = copy.deepcopy(student.state_dict())
    out = play(strategy, student, epochs=0)
    if out.masks is not None:
        assert out.masks.n_prune == round(0.6 * out.masks.numel)
        for name, mask in out.masks.items():
            before[name] = before[name].masked_fill(~mask, 0)
    assert same_state(student.state_dict(), before)
    assert (out.epochs, out.curve) == (0, [])


def test_an_ordinary_dataloader_will_do_for_one_cut() -> None:
    data = indexed_images(30)
    loader: Any = DataLoader(TensorDataset(data.inputs, data.labels), batch_size=8)
    out = play(OneShot(), train=loader)
    assert (out.epochs, len(out.curve)) == (4, 4)
    with pytest.raises(TrainingError, match="teacher_views=2 needs a loader"):
        play(OneShot(), train=loader, recipe=replace(GUIDED, teacher_views=2), teacher=make_cnn(1))
    with pytest.raises(TrainingError, match="length above 0"):
        play(OneShot(), train=iter([*data]))


# Schedules


def rates(parts: int) -> list[float]:
    """Learning rates at the ends of the parts of one schedule over four batches a part."""
    recipe = replace(PLAIN, epochs=parts)
    return [learning_rate(recipe, 4 * part + 3, 4) for part in range(parts)]


def test_a_schedule_goes_on_over_rounds_with_its_momentum() -> None:
    """Cutting a training into rounds changes nothing if they have the same masks."""
    whole, in_rounds = student_cnn(), student_cnn()
    one = play(Scripted([Round(MORE, 5, schedule=5)]), whole, epochs=5)
    three = play(Scripted([Round(MORE, 2, schedule=5), Round(MORE, 1), Round(MORE, 2)]), in_rounds, epochs=5)
    assert same_state(whole.state_dict(), in_rounds.state_dict())
    assert [(number, epoch.epoch) for number, epoch in three.curve] == [
        (0, 1),
        (0, 2),
        (1, 3),
        (2, 4),
        (2, 5),
    ]
    assert [e.loss for _, e in three.curve] == [e.loss for _, e in one.curve]
    assert [e.lr for _, e in three.curve] == rates(5)


def test_a_new_schedule_begins_with_fresh_momentum_on_new_batches() -> None:
    loader, student = spying(), student_cnn()
    script = [Round(SOME, 2, schedule=2), Round(MORE, 3, schedule=3)]
    recipe = replace(PLAIN, epochs=5, channels_last=False)
    out = play(Scripted(script), student, recipe=recipe, train=loader)
    assert [(number, epoch.epoch) for number, epoch in out.curve] == [(0, 1), (0, 2), (1, 1), (1, 2), (1, 3)]
    assert [epoch.lr for _, epoch in out.curve] == rates(2) + rates(3)
    assert loader.asked == [(number, number, 0, 4) for number in range(5)]  # epoch, view, batches
    by_hand = student_cnn()
    list(fit(by_hand, loader, replace(recipe, epochs=2), masks=SOME))

    class Later:
        """The same data from its third epoch on."""

        def __len__(self) -> int:
            return 4

        n_samples = 30

        def epoch(self, number: int, *, view: int | None = None) -> Any:
            return loader.epoch(2 + number)

    list(fit(by_hand, Later(), replace(recipe, epochs=3), masks=MORE))  # type: ignore[arg-type]
    assert same_state(student.state_dict(), by_hand.state_dict())


def test_weights_are_rewound_before_the_masks_are_applied() -> None:
    seen: list[dict[str, Tensor]] = []
    student = student_cnn()
    start = copy.deepcopy(student.state_dict())

    def second(problem: Problem) -> Round:
        assert not same_state(student.state_dict(), start)
        assert same_state(dict(problem.start), start)
        return Round(MORE, 2, schedule=2, weights=problem.start)

    play(
        Scripted([Round(SOME, 2, schedule=2), second]),
        student,
        on_last_cut=lambda masks: seen.append(copy.deepcopy(student.state_dict())),
    )
    (rewound,) = seen
    assert all(same_bits(rewound[name], start[name]) for name in start if name not in MORE)
    for name, mask in MORE.items():
        assert torch.equal(rewound[name], start[name].masked_fill(~mask, 0))


def test_pruned_weights_and_their_momentum_stay_zero_and_grown_ones_begin_there() -> None:
    """Masks may differ in any way from round to round."""
    other = Masks({name: mask.flip(0) for name, mask in MORE.items()})
    momenta: list[dict[str, Tensor]] = []

    class Watching(CountingStore):
        def save_training(self, stage: str, state: TrainState, curve: Any) -> None:
            super().save_training(stage, state, curve)
            momenta.append(dict(state.momentum))

    student, store = student_cnn(), Watching()
    cuts: list[dict[str, Tensor]] = []
    play(
        Scripted([Round(MORE, 2, schedule=4), Round(other, 2)]),
        student,
        store=store,
        on_last_cut=lambda masks: cuts.append(copy.deepcopy(student.state_dict())),
    )
    assert store.stages == ["round-000"] * 2 + ["round-001"] * 2
    for name, mask in MORE.items():
        assert bool((momenta[1][name][~mask] == 0).all())
        assert bool((momenta[3][name][~other[name]] == 0).all())
        grown = other[name] & ~mask
        assert bool((cuts[0][name][grown] == 0).all())
        assert bool((student.state_dict()[name][grown] != 0).any())
    other.check(student)
    assert all_kept(student, other)


# Selection


def test_only_what_comes_after_the_last_cut_is_chosen_among(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = iter([0.9, 0.5, 0.8])
    monkeypatch.setattr(train_module, "evaluate", lambda *_, **__: Metrics(next(figures), 0.0, 10**6))
    states: list[dict[str, Tensor]] = []

    class Watching(CountingStore):
        def save_training(self, stage: str, state: TrainState, curve: Any) -> None:
            super().save_training(stage, state, curve)
            states.append(state.model)

    student = student_cnn()
    script = [Round(SOME, 2, schedule=5), Round(MORE, 3)]
    out = play(Scripted(script), student, epochs=5, validation=indexed_images(8), store=Watching())
    assert [epoch.val_accuracy for _, epoch in out.curve] == [None, None, 0.9, 0.5, 0.8]
    assert same_state(student.state_dict(), states[2])
    MORE.check(student)


def test_the_last_cut_is_announced_once_before_it_is_trained() -> None:
    student, told = student_cnn(), []
    steps: list[None] = []

    def on_last_cut(masks: Masks | None) -> None:
        assert masks is not None
        masks.check(student)
        told.append((masks, len(steps)))

    play(
        Scripted([Round(SOME, 1, schedule=4), Round(MORE, 3)]),
        student,
        on_last_cut=on_last_cut,
        on_step=lambda: steps.append(None),
    )
    assert told == [(MORE, 4)]
    assert len(steps) == 16


def test_what_is_changed_at_the_last_cut_is_trained_on() -> None:
    """As when BatchNorm is put right there."""
    student, plain = student_cnn(), student_cnn()
    script = [Round(SOME, 1, schedule=2), Round(MORE, 1)]

    def halve(masks: Masks | None) -> None:
        with torch.no_grad():
            student[1].running_mean.mul_(0.5)  # type: ignore[union-attr, operator]

    play(Scripted(script), student, epochs=2, on_last_cut=halve)
    play(Scripted(script), plain, epochs=2)
    changed = student.state_dict()["1.running_mean"] - plain.state_dict()["1.running_mean"]
    assert float(changed.abs().max()) > 1e-3


# Parts of an epoch


def test_rounds_that_do_not_fit_divide_the_epochs() -> None:
    """Two epochs of four batches for five rounds: eight parts of a batch."""
    steps: list[None] = []
    rounds = [Round(SOME, 1, schedule=8), *[Round(SOME, 1)] * 3, Round(MORE, 4)]
    out = play(Scripted(rounds, least=5), epochs=2, on_step=lambda: steps.append(None))
    assert (len(steps), len(out.curve)) == (8, 8)
    assert (out.epochs, out.epochs_per_part) == (2, 0.25)
    losses = [epoch.loss for _, epoch in out.curve]
    assert len(set(losses)) == 8
    with pytest.raises(TrainingError, match="need at least 9 training batches, 2 epochs of 4 have 8"):
        play(Scripted(rounds, least=9), epochs=2)


def test_what_does_not_fill_a_part_is_not_counted() -> None:
    steps: list[None] = []
    rounds = [Round(SOME, 1, schedule=2), Round(MORE, 1)]
    eleven_batches = indexed_images(88)
    out = play(Scripted(rounds, least=2), epochs=1, train=eleven_batches, on_step=lambda: steps.append(None))
    assert (len(steps), out.epochs) == (10, 10 / 11)


# The teacher


class Counting(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.rows = inner, 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        return self.inner(x)


@pytest.mark.parametrize(("views", "passes"), [(0, 5), (2, 2)])
def test_rounds_share_what_the_teacher_said(views: int, passes: int) -> None:
    recipe = replace(GUIDED, epochs=5, teacher_views=views, channels_last=False)
    script = [Round(SOME, 2, schedule=2), Round(MORE, 3, schedule=3)]
    teacher, student = Counting(make_cnn(1)), student_cnn()
    play(Scripted(script), student, recipe=recipe, teacher=teacher)
    assert teacher.rows == 30 * passes
    shared, again = TeacherLogits(teacher, indexed_images(30)), student_cnn()
    play(Scripted(script), again, recipe=recipe, teacher=shared)
    assert same_state(student.state_dict(), again.state_dict())
    rows = teacher.rows
    third = student_cnn()
    play(Scripted(script), third, recipe=recipe, teacher=shared)
    assert same_state(student.state_dict(), third.state_dict())
    assert teacher.rows == rows


# Another network


def aside(
    parts: int, masks: Masks | None = None, network: nn.Module | None = None
) -> Callable[[Problem], Round]:
    def entry(problem: Problem) -> Round:
        problem.train_aside(
            make_cnn(2, dropout=0) if network is None else network,
            indexed_images(20),
            masks=masks,
            parts=parts,
        )
        return Round(MORE, problem.parts - parts, schedule=problem.parts - parts)

    return entry


def test_training_aside_is_a_fit_that_the_budget_pays() -> None:
    steps: list[None] = []
    network, by_hand, student = make_cnn(2, dropout=0), make_cnn(2, dropout=0), student_cnn()
    out = play(
        Scripted([aside(2, MORE, network)]),
        student,
        epochs=5,
        recipe=replace(GUIDED, epochs=5, teacher_views=2),
        teacher=make_cnn(1),
        on_step=lambda: steps.append(time.sleep(0.02)),
    )
    MORE.check(network)
    assert out.epochs == 5
    assert len(steps) == 5 * 4  # parts have four batches, though the other loader's epochs have three
    assert len(out.curve) == 3
    assert out.train_s > sum(epoch.seconds for _, epoch in out.curve) + 8 * 0.02
    assert out.score_s < 8 * 0.02  # what was trained aside is no scoring
    before = by_hand.state_dict()
    apply_masks(by_hand, MORE)
    assert not same_state(network.state_dict(), before)


# Refusals


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ([Round(SOME, 5, schedule=5)], "round 0 asks for 5 parts .* at most the 4 that are left of 4"),
        (
            [Round(SOME, 2, schedule=4), Round(SOME, 3)],
            "round 1 asks for 3 parts .* the 2 that are left of 4",
        ),
        ([Round(SOME, 0, schedule=4)], "round 0 asks for 0 parts"),
        ([Round(SOME, -1, schedule=4)], "asks for -1 parts"),
        ([Round(SOME, 2, schedule=2)], "used 2 of the 4 parts"),
        ([], "used 0 of the 4 parts"),
        ([Round(SOME, 4, schedule=4), Round(SOME, 1)], "goes on although its budget of 4 parts is spent"),
        ([Round(SOME, 4)], "trains to part 4 of a learning-rate schedule of 0 parts"),
        ([Round(SOME, 1, schedule=2), Round(SOME, 3)], "trains to part 4 of a learning-rate schedule of 2"),
        ([Round(SOME, 4, schedule=6)], "the last must end it"),
        ([aside(5)], "training aside asks for 5 parts"),
        ([aside(0)], "training aside asks for 0 parts"),
        ([aside(4)], "round 0 asks for 0 parts"),
    ],
)
def test_a_strategy_that_does_not_keep_to_its_budget_is_refused(script: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        play(Scripted(script))


def test_rounds_need_epochs_and_a_loader_that_knows_them() -> None:
    with pytest.raises(TrainingError, match=r"Scripted prunes while it trains, but there are 0 epochs"):
        play(Scripted([]), epochs=0)
    with pytest.raises(TrainingError, match=r"must come from an IndexedLoader.*got list"):
        play(Scripted([]), train=[*indexed_images(30)])


@pytest.mark.parametrize("sparsity", [1.0, -0.1, math.nan])
def test_a_sparsity_out_of_range_is_refused(sparsity: float) -> None:
    with pytest.raises(InvalidArgument, match="sparsity must be in"):
        play(OneShot(), sparsity=sparsity)


def test_errors_of_scoring_come_through() -> None:
    from secateur.scores import TaskGradient

    with pytest.raises(ScoreError, match="needs labels"):
        play(OneShot(criterion=TaskGradient()), calibration=[torch.randn(2, 1, 6, 6)])
