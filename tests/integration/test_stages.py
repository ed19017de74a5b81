"""A cut in stages: against a slow oracle, its exact counts, and a model that comes back as it was."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers import Snapshot, images, make_cnn, make_mlp, vectors
from reference import stages as oracle
from secateur.allocate import (
    AbstractScope,
    Global,
    Layerwise,
    PerTensor,
    allocate,
)
from secateur.counts import n_prune
from secateur.cutting import cut
from secateur.diagnostics import split_half_overlap
from secateur.errors import DataError, EmptiedLayerWarning, InvalidArgument, ScoreError
from secateur.masks import Masks
from secateur.naming import Named
from secateur.scores import (
    AbstractCriterion,
    Lamp,
    Magnitude,
    ScoreInputs,
    Shuffled,
    Snip,
    SynFlow,
    TeacherCurvature,
    TeacherGuided,
    score,
)
from secateur.stages import Stage, StageLog, staged_masks
from secateur.targets import select_targets
from stages_helpers import Told, stages_of


def as_lists(masks: Masks) -> dict[str, list[bool]]:
    return {name: mask.reshape(-1).tolist() for name, mask in masks.items()}


# Iter-SNIP and FORCE


@pytest.mark.parametrize("regrow", [False, True])
@pytest.mark.parametrize("make", [make_mlp, make_cnn])
def test_stages_are_those_of_the_oracle(make: Any, regrow: bool) -> None:
    model, batches = make(), vectors() if make is make_mlp else images()
    found = stages_of(model, batches, Snip(), sparsity=0.9375, stages=4, regrow=regrow)
    densities = ["0.5", "0.25", "0.125", "0.0625"]
    expected = oracle.staged(model, list(select_targets(model)), batches, densities=densities, regrow=regrow)
    assert [as_lists(stage.masks) for stage in found] == expected
    assert (sum(stage.n_returned for stage in found) > 0) == regrow


def test_one_stage_is_one_cut_and_writes_no_weight() -> None:
    model, batches = make_cnn(), images()
    versions = [p._version for p in model.parameters()]
    (stage,) = stages_of(model, batches, Snip(), sparsity=0.8, scope=Layerwise())
    assert [p._version for p in model.parameters()] == versions
    scores = score(model, batches, Snip())
    assert stage.masks == allocate(scores, sparsity=0.8, scope=Layerwise())
    assert all(torch.equal(stage.scores[name], scores[name]) for name in scores)
    assert stage.n_returned == 0


@pytest.mark.parametrize("criterion", [Magnitude(), Lamp()], ids=["magnitude", "lamp"])
@pytest.mark.parametrize("regrow", [False, True])
def test_a_score_of_the_weights_alone_gains_nothing_from_stages(criterion: Any, regrow: bool) -> None:
    model = make_mlp()
    one = staged_masks(model, None, criterion, sparsity=0.8)
    assert staged_masks(model, None, criterion, sparsity=0.8, stages=7, regrow=regrow) == one


def test_synflow_in_100_stages_keeps_every_layer_where_one_cut_empties_one() -> None:
    """The claim of the SynFlow paper, at a sparsity that leaves 2 weights a layer."""
    torch.manual_seed(3)
    sizes = [6, 24, 24, 24, 24, 3]
    model = nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in pairwise(sizes)))
    n = sum(p.numel() for p in model.parameters())
    sparsity = 1 - 10 / n
    with pytest.warns(EmptiedLayerWarning):
        staged_masks(model, vectors(), SynFlow(), sparsity=sparsity)
    masks = staged_masks(model, vectors(), SynFlow(), sparsity=sparsity, stages=100)  # warnings are errors
    assert masks.n_keep == 10
    assert all(bool(mask.any()) for mask in masks.values())


def test_a_teacher_guides_in_stages_too() -> None:
    model, teacher = make_cnn(), make_cnn(1, width=6)
    criterion = TeacherGuided(teacher)
    found = stages_of(model, images(), criterion, sparsity=0.9, stages=3)
    assert found[0].masks == allocate(score(model, images(), criterion), sparsity=1 - 0.1 ** (1 / 3))
    assert found[-1].masks != staged_masks(model, images(), criterion, sparsity=0.9)


def test_scores_stay_as_the_criterion_gave_them_and_broken_ones_are_refused() -> None:
    model = nn.Linear(4, 1, bias=False)
    good, bad = torch.tensor([[1.0, 2, 3, 4]]), torch.tensor([[0.0, 0, float("inf"), 1]])
    found = stages_of(model, None, Told([{"weight": good}, {"weight": -good}]), sparsity=0.75, stages=2)
    assert found[1].scores["weight"].tolist() == [[-1, -2, -3, -4]]
    with pytest.raises(ScoreError, match="'weight' are NaN or infinite"):
        staged_masks(model, None, Told([{"weight": good}, {"weight": bad}]), sparsity=0.75, stages=2)


# The model comes back


class Bomb(Exception):
    pass


@pytest.mark.parametrize("regrow", [False, True])
def test_the_model_comes_back_bit_for_bit(regrow: bool) -> None:
    model = make_cnn().train()
    model[4].weight.grad = torch.ones_like(model[4].weight)
    with torch.no_grad():
        model[0].weight[0, 0, 0] = torch.tensor([-0.0, 0.0, 1.0])  # the sign of a zero is kept as well
    model = model.to(memory_format=torch.channels_last)
    before = Snapshot.of(model)
    staged_masks(model, images(), Snip(), sparsity=0.9, stages=5, regrow=regrow)
    before.assert_unchanged(model)


@pytest.mark.parametrize("where", ["loss", "loader", "stage", "scope", "criterion"])
def test_the_model_comes_back_after_an_exception_in_a_later_stage(where: str) -> None:
    model, calls = make_cnn(), iter(range(99))

    def goes_off(place: str, after: int = 4) -> None:
        if where == place and next(calls) >= after:
            assert bool((model[8].weight == 0).any()), "the network is masked when it happens"
            raise Bomb

    def task_loss(outputs: Tensor, labels: Tensor) -> Tensor:
        goes_off("loss")
        return F.cross_entropy(outputs, labels)

    class Loader:
        def __iter__(self) -> Iterator[Any]:
            for batch in images():
                goes_off("loader")
                yield batch

    class Scope(AbstractScope):
        def __call__(self, scores: Named, sparsity: float) -> dict[str, Tensor]:
            goes_off("scope", after=1)
            return Global()(scores, sparsity)

    @dataclass(frozen=True)
    class Criterion(AbstractCriterion):
        def __call__(self, inputs: ScoreInputs) -> Named:
            goes_off("criterion", after=1)
            return Snip()(inputs)

    before = Snapshot.of(model)

    def on_stage(stage: Stage) -> None:
        goes_off("stage", after=1)

    options: dict[str, Any] = {"sparsity": 0.9, "stages": 4, "scope": Scope(), "task_loss": task_loss}
    with pytest.raises(Bomb):
        staged_masks(model, Loader(), Criterion(), on_stage=on_stage, **options)
    before.assert_unchanged(model)


def test_cut_changes_nothing_if_it_fails() -> None:
    model, answers = make_mlp(), [score(make_mlp(), None, Magnitude())]  # and none for the second stage
    before = Snapshot.of(model)
    with pytest.raises(IndexError):
        cut(model, None, Told(answers), sparsity=0.9, stages=2)
    before.assert_unchanged(model)


def test_cut_leaves_original_values_under_the_final_masks() -> None:
    model = make_cnn()
    dense = copy.deepcopy(model)
    masks = cut(model, images(), Snip(), sparsity=0.9, stages=5, regrow=True)
    assert masks == staged_masks(dense, images(), Snip(), sparsity=0.9, stages=5, regrow=True)
    originals = dict(dense.named_parameters())
    for name, weight in model.named_parameters():
        kept = masks[name] if name in masks else torch.ones_like(weight, dtype=torch.bool)
        assert torch.equal(weight, torch.where(kept, originals[name], 0.0))
    masks.check(model)


def test_a_weight_used_twice_and_a_compiled_model(shared_net: nn.Module) -> None:
    masks = staged_masks(shared_net, vectors(), Snip(), sparsity=0.8, stages=3)
    assert list(masks) == ["first.weight", "head.weight"]
    model = make_cnn()
    compiled: Any = torch.compile(model, backend="eager")
    options: dict[str, Any] = {"sparsity": 0.8, "stages": 3}
    masks = staged_masks(compiled, images(), Snip(), **options)
    assert masks == staged_masks(model, images(), Snip(), **options)


# What is refused


def not_monotone(scores: Named, sparsity: float) -> dict[str, Tensor]:
    """First mostly from one tensor, then mostly from the other."""
    names = list(scores) if sparsity < 0.5 else list(scores)[::-1]
    left = n_prune(sum(t.numel() for t in scores.values()), sparsity)
    masks: dict[str, Tensor] = {}
    for name in names:
        n = min(left, scores[name].numel())
        masks[name] = (torch.arange(scores[name].numel()) >= n).view(scores[name].shape)
        left -= n
    return {name: masks[name] for name in scores}


class SeeSaw(AbstractScope):
    def __call__(self, scores: Named, sparsity: float) -> dict[str, Tensor]:
        return not_monotone(scores, sparsity)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"stages": 0}, "stages must be at least 1, got 0"),
        ({"stages": 1, "regrow": True}, "regrow needs at least 2 stages"),
        ({"sparsity": 1.0}, r"sparsity must be in \[0, 1\)"),
        ({"scope": SeeSaw()}, r"SeeSaw keeps more of a tensor .* take \d+ weights back. Pass regrow=True"),
        ({"scope": PerTensor({"0.weight": 0.9})}, r"stage 1 of 3: sparsity=0\.415\d* removes .* room for"),
    ],
)
def test_what_cannot_be_is_refused_and_the_model_kept(options: dict[str, Any], says: str) -> None:
    model = make_mlp()
    before = Snapshot.of(model)
    with pytest.raises(InvalidArgument, match=says):
        staged_masks(model, vectors(), Snip(), **{"sparsity": 0.8, "stages": 3, **options})
    before.assert_unchanged(model)


def test_a_scope_that_is_not_monotone_may_be_used_with_regrow() -> None:
    masks = stages_of(make_mlp(), None, Magnitude(), sparsity=0.8, stages=3, regrow=True, scope=SeeSaw())
    assert sum(stage.n_returned for stage in masks) > 0


def test_batches_that_can_be_gone_through_once_are_refused_for_stages_only() -> None:
    model = make_mlp()
    with pytest.raises(InvalidArgument, match=r"this cut goes through the calibration batches 2 times"):
        staged_masks(model, iter(vectors()), Snip(), sparsity=0.5, stages=2)
    assert staged_masks(model, iter(vectors()), Snip(), sparsity=0.5).n_prune
    with pytest.raises(InvalidArgument, match="this cut goes through the calibration batches 2 times"):
        cut(model, iter(vectors()), TeacherCurvature(make_mlp(1)), sparsity=0.5)  # its inputs, and its scores
    ragged = [torch.randn(4, 3, 6), torch.randn(4, 2, 6)]
    with pytest.raises(DataError, match=r"inputs of one shape, got \(2, 6\) and \(3, 6\)"):
        cut(model, ragged, TeacherCurvature(make_mlp(1)), sparsity=0.5)


def test_a_teacher_that_would_be_cut_too_is_refused() -> None:
    model = make_cnn()
    for criterion in (TeacherGuided(model), Shuffled(TeacherGuided(nn.Sequential(model)))):
        with pytest.raises(InvalidArgument, match=r"teacher shares weights .*deepcopy"):
            staged_masks(model, images(), criterion, sparsity=0.5, stages=2)
    staged_masks(model, images(), TeacherGuided(model), sparsity=0.5)
    staged_masks(model, images(), TeacherGuided(copy.deepcopy(model)), sparsity=0.5, stages=2)
    with pytest.raises(InvalidArgument, match=r"the cut would change both.*deepcopy"):
        cut(model, images(), TeacherGuided(nn.Sequential(model)), sparsity=0.5)


# Around it


def test_only_the_last_stage_warns_of_an_emptied_layer() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    low, high, fair = torch.zeros(4, 4), torch.ones(4, 4), torch.arange(16.0).view(4, 4)
    uneven, even = {"0.weight": low, "1.weight": high}, {"0.weight": fair, "1.weight": fair}
    options: dict[str, Any] = {"sparsity": 0.75, "stages": 2, "regrow": True}
    masks = staged_masks(model, None, Told([uneven, even]), **options)  # warnings are errors
    assert [int(mask.sum()) for mask in masks.values()] == [4, 4]
    with pytest.warns(EmptiedLayerWarning, match=r"sparsity=0\.75 leaves no weight in 0\.weight"):
        staged_masks(model, None, Told([even, uneven]), **options)


def test_batches_are_counted_in_every_stage() -> None:
    ticks: list[None] = []
    staged_masks(make_mlp(), vectors(3), Snip(), sparsity=0.5, stages=4, on_batch=lambda: ticks.append(None))
    assert len(ticks) == 12


@pytest.mark.parametrize("stages", [1, 4])
def test_a_log_knows_what_one_cut_would_have_kept(stages: int) -> None:
    model, log = make_cnn(), StageLog(0.9, Global())
    masks = staged_masks(model, images(), Snip(), sparsity=0.9, stages=stages, on_stage=log.add)
    assert log.one_cut == staged_masks(model, images(), Snip(), sparsity=0.9)
    assert (log.one_cut == masks) == (stages == 1)
    assert [row["n_prune"] for row in log.rows][-1] == masks.n_prune
    assert len(log.rows) == stages
    assert log.seconds.pop("calibration") is None
    assert all(s is not None and math.isfinite(s) and s > 0 for s in log.seconds.values())


def test_halves_are_cut_in_the_same_stages() -> None:
    model, batches = make_cnn(), images(4)
    options: dict[str, Any] = {"sparsity": 0.8, "stages": 3, "regrow": True}
    found = split_half_overlap(model, batches, Snip(), **options)
    a, b = (staged_masks(model, batches[start::2], Snip(), **options) for start in (0, 1))
    both = sum(int((a[n] & b[n]).sum()) for n in a)
    assert found == both / sum(int((a[n] | b[n]).sum()) for n in a)
