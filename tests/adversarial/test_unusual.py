"""Networks and data of unusual kinds: the right numbers, or an error that says what is wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import secateur as sc
from secateur.errors import DataError, InvalidArgument, ScoreError, TrainingError

X = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 3
BATCHES = [(X, Y), (X.flip(0), Y)]


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize(
    "criterion", [sc.Magnitude(), sc.Lamp(), sc.Wanda(), sc.Wanda(compare="tensor")], ids=str
)
def test_a_weight_that_is_no_number_is_never_ranked(criterion: sc.AbstractCriterion, bad: float) -> None:
    model = network()
    with torch.no_grad():
        model[2].weight[0, 0] = bad
    with pytest.raises(ScoreError, match=r"'2\.weight' are NaN or infinite"):
        sc.cut(model, [X.abs()], criterion, sparsity=0.5)


def test_activations_that_are_no_numbers_are_never_ranked() -> None:
    model = network()
    with torch.no_grad():
        model[0].bias[0] = torch.nan
    with pytest.raises(ScoreError, match="NaN or infinite"):
        sc.cut(model, [X], sc.Wanda(), sparsity=0.5)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize(
    "kind", [sc.TeacherFisher, lambda t: sc.TeacherCurvature(t, linear=False, draw="teacher", damping=1.0)]
)
def test_no_classes_are_drawn_from_a_teacher_without_numbers(
    kind: Callable[[nn.Module], sc.AbstractCriterion], bad: float
) -> None:
    teacher = network()
    with torch.no_grad():
        teacher[4].bias[0] = bad
    with pytest.raises(ScoreError, match="no classes can be drawn"):
        sc.score(network(), [X], kind(teacher))


def test_steps_by_a_teacher_without_numbers_blame_the_teacher() -> None:
    teacher = network()
    with torch.no_grad():
        teacher[4].bias[0] = torch.nan
    steps = sc.CalibrationRecovery(steps=2, final_steps=2)
    with pytest.raises(TrainingError, match="teacher's outputs hold NaN"):
        sc.cut(network(), [X], sc.Magnitude(), sparsity=0.5, recovery=steps, teacher=teacher)


@pytest.mark.parametrize(
    ("augment", "says"),
    [
        ("mix", "takes inputs of floating type, got torch.int64"),
        (lambda x, generator: None, r"of the shape of its inputs, \(12, 5\), got NoneType"),
        (lambda x, generator: x[:3], r"got \(3, 5\)"),
    ],
    ids=["mix", "nothing", "fewer"],
)
def test_what_augments_must_fit_its_inputs(augment: Any, says: str) -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(20, 3))
    tokens = torch.arange(60).reshape(12, 5) % 9
    steps = sc.CalibrationRecovery(steps=2, final_steps=2, batch_size=12, augment=augment)
    with pytest.raises(InvalidArgument, match=says):
        sc.cut(model, [tokens], sc.Magnitude(), sparsity=0.5, recovery=steps, teacher=copy.deepcopy(model))


def test_validation_says_that_it_counts_by_samples() -> None:
    with pytest.raises(DataError, match="leave validation out"):
        sc.evaluate(nn.Linear(6, 3), [(X, Y[:, None].expand(12, 7))])


class Checkpointed(nn.Module):
    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.first, self.rest, self.reentrant = nn.Linear(6, 6), nn.Linear(6, 6), reentrant
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        part: Callable[[Tensor], Tensor] = nn.Sequential(nn.Tanh(), self.rest, nn.Tanh())
        return self.head(checkpoint(part, self.first(x), use_reentrant=self.reentrant))


@pytest.mark.parametrize("criterion", [sc.ProsPr(), sc.Epsd(), sc.SynFlow()], ids=str)
def test_checkpoints_are_refused_where_they_would_run_with_other_weights(
    criterion: sc.AbstractCriterion,
) -> None:
    with pytest.raises(ScoreError, match="activation checkpointing"):
        sc.score(Checkpointed(reentrant=False), BATCHES * 2, criterion)


def test_checkpoints_change_no_score_of_plain_gradients() -> None:
    model = Checkpointed(reentrant=False)
    expected = sc.score(
        nn.Sequential(model.first, nn.Tanh(), model.rest, nn.Tanh(), model.head), BATCHES, sc.Snip()
    )
    found = sc.score(model, BATCHES, sc.Snip())
    for a, b in zip(found.values(), expected.values(), strict=True):
        torch.testing.assert_close(a, b)


def test_reentrant_checkpoints_are_named() -> None:
    with pytest.raises(ScoreError, match="use_reentrant=False"):
        sc.score(Checkpointed(reentrant=True), BATCHES, sc.Snip())


def test_batches_without_a_sample_change_nothing() -> None:
    model, teacher, empty = network(), network(), (X[:0], Y[:0])
    assert sc.evaluate(model, [*BATCHES, empty]) == sc.evaluate(model, BATCHES)
    criterion = sc.TeacherGuided(teacher)
    found, expected = (sc.score(model, b, criterion) for b in ([empty, *BATCHES], BATCHES))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    with pytest.raises(DataError, match="no sample"):
        sc.score(model, [empty], criterion)


def test_averages_of_batchnorm_in_half_precision_count_late_batches() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4)).bfloat16()
    batches = [torch.full((16, 4), 10.0 if i < 200 else 12.0).bfloat16() for i in range(400)]
    sc.reestimate_batchnorm(model, batches)
    assert model[0].running_mean is not None
    assert model[0].running_mean.tolist() == [11.0] * 4


class Encoder(nn.Module):
    """Which torch runs in one operator in eval mode, and then on nested tensors."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(16, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.head(self.encoder(x, src_key_padding_mask=mask).mean(1))


@pytest.mark.parametrize("name", ["wanda", "reconstruction"])
def test_layers_of_a_transformer_with_padding_are_seen(name: str) -> None:
    padded = torch.zeros(12, 5, dtype=torch.bool)
    padded[0, 3:] = True
    batches = [{"x": torch.randn(12, 5, 16), "mask": padded, "labels": Y}]
    criterion = sc.Wanda() if name == "wanda" else sc.LayerReconstruction(Encoder())
    scores = sc.score(Encoder(), batches, criterion, exclude=["*out_proj.weight"])
    assert "encoder.layers.1.linear2.weight" in scores


class Expanded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.register_buffer("shift", torch.zeros(1, 3).expand(12, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.shift


def test_expanded_buffers_are_left_alone_by_scores_and_refused_before_training() -> None:
    assert sc.score(Expanded(), BATCHES, sc.Snip())["layer.weight"].shape == (3, 6)
    with pytest.raises(TrainingError, match="'shift' cannot be put back"):
        list(sc.fit(Expanded(), BATCHES, sc.Recovery(epochs=1, kd_weight=0.0)))


def test_masks_of_an_earlier_cut_must_go_with_the_next() -> None:
    model = network()
    part = sc.cut(model, None, sc.Magnitude(), sparsity=0.5, exclude=["0.*"])
    with pytest.raises(InvalidArgument, match=r"0\.weight stand on one side"):
        sc.staged_masks(model, None, sc.Magnitude(), sparsity=0.8, gone=part)
    most = sc.cut(model, None, sc.Magnitude(), sparsity=0.8)
    with pytest.raises(InvalidArgument, match=r"sparsity must be at least the 0\.80"):
        sc.staged_masks(model, None, sc.Magnitude(), sparsity=0.5, gone=most)


@pytest.mark.parametrize("criterion", [sc.GraSP(), sc.Fisher(), sc.ProsPr(), sc.SynFlow()], ids=str)
def test_inputs_that_a_network_does_not_take_are_named(criterion: sc.AbstractCriterion) -> None:
    batches = [{"input": X, "extra": X, "labels": Y}] * 4
    with pytest.raises(DataError, match="cannot be called with the inputs"):
        sc.score(nn.Linear(6, 3), batches, criterion)


def test_labels_are_blamed_by_scores_of_single_samples() -> None:
    with pytest.raises(DataError, match="labels go from 0 to 7"):
        sc.score(network(), [(X, torch.where(Y == 2, 7, Y))], sc.Fisher())
    with pytest.raises(DataError, match=r"labels must have shape \(12,\)"):
        sc.score(network(), [(X, Y[:3])], sc.Fisher())


def test_a_task_loss_of_many_numbers_is_refused_by_training_and_evaluation() -> None:
    def each(outputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(outputs, labels, reduction="none")

    with pytest.raises(ScoreError, match="must be a scalar"):
        sc.evaluate(network(), BATCHES, task_loss=each)
    with pytest.raises(ScoreError, match="must be a scalar"):
        list(sc.fit(network(), BATCHES, sc.Recovery(epochs=1, kd_weight=0.0), task_loss=each))


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("criterion", [sc.Snip(), sc.SynFlow()], ids=str)
def test_weights_that_a_layer_computes_for_itself_come_back(criterion: sc.AbstractCriterion) -> None:
    layer = torch.nn.utils.weight_norm(nn.Linear(6, 8))
    model = nn.Sequential(layer, nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        model(X)
    before = layer.weight
    sc.score(model, BATCHES, criterion)
    assert layer.weight is before
    copy.deepcopy(model)


def test_momentum_never_sees_pruned_weights_of_a_layer_that_thaws() -> None:
    model = network()
    masks = sc.cut(model, None, sc.Magnitude(), sparsity=0.5)
    model[2].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with sc.keep_masks(model, optimizer, masks):
        model[2].weight.requires_grad_(True)
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(model(X), Y).backward()
            optimizer.step()
    momentum = optimizer.state[model[2].weight]["momentum_buffer"]
    assert not momentum[~masks["2.weight"]].any()
    assert momentum.any()
