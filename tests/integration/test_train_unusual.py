"""Training of networks that share memory, keep parts frozen or cannot be laid out; labels of other kinds."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from helpers import make_mlp, vectors
from integration.train_helpers import PLAIN
from secateur import masks as masks_module
from secateur.calibration import CalibrationRecovery
from secateur.cutting import cut
from secateur.errors import DataError, InvalidArgument, ScoreError
from secateur.evaluate import evaluate
from secateur.losses import cosine_loss
from secateur.scores import AbstractCriterion, GraSP, Magnitude, Random, Snip, Wanda, score
from secateur.train import TrainState, fit

ONCE = replace(PLAIN, epochs=1)


def images(n: int = 16, classes: int = 4) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(n, 3, 8, 8, generator=generator), torch.randint(classes, (n,), generator=generator)
    return list(zip(x.split(8), y.split(8), strict=True))


class Standardised(nn.Conv2d):
    """Flattens its weights by ``view``, which channels-last ones refuse."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.view(len(self.weight), -1)
        mean, spread = (part.view(-1, 1, 1, 1) for part in (flat.mean(1), flat.std(1)))
        return F.conv2d(x, (self.weight - mean) / spread, self.bias)


def classifier(*convolutions: nn.Module) -> nn.Sequential:
    return nn.Sequential(*convolutions, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))


def test_weights_that_cannot_be_laid_out_train_as_they_are() -> None:
    model = classifier(Standardised(3, 4, 3))
    before = model[0].weight.detach().clone()
    list(fit(model, images(), ONCE))
    assert not torch.equal(model[0].weight, before)


def test_memory_that_tensors_share_stays_shared() -> None:
    model = classifier(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    model[2].weight.data = model[1].weight.data
    model.register_buffer("flat", model[0].weight.detach().view(4, -1))
    places = [p.data_ptr() for p in model.parameters()]
    list(fit(model, images(), ONCE))
    assert torch.equal(model[1].weight, model[2].weight)
    assert torch.equal(model.get_buffer("flat"), model[0].weight.detach().view(4, -1))
    assert places == [p.data_ptr() for p in model.parameters()]


def test_a_resumed_training_lays_out_what_it_remembers() -> None:
    whole, parts = classifier(nn.Conv2d(3, 4, 3)), TrainState()
    stopped = copy.deepcopy(whole)
    list(fit(whole, images(), replace(PLAIN, epochs=2)))
    run = fit(stopped, images(), replace(PLAIN, epochs=2), state=parts)
    next(run)
    run.close()
    list(fit(stopped, images(), replace(PLAIN, epochs=2), state=parts))
    for ours, theirs in zip(stopped.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_layout_draws_nothing_from_the_loader() -> None:
    weights = []
    for channels_last in (True, False):
        x, y = torch.randn(32, 6, generator=torch.Generator().manual_seed(1)), torch.arange(32) % 3
        loader = DataLoader(TensorDataset(x, y), 8, shuffle=True, generator=torch.Generator().manual_seed(0))
        model = make_mlp()
        list(fit(model, loader, replace(PLAIN, channels_last=channels_last)))
        weights.append(model[0].weight.detach())
    assert torch.equal(*weights)


def test_frozen_batchnorm_in_eval_mode_stays_as_it_is() -> None:
    def statistics_after(train: Any, **state: bool) -> tuple[bool, bool]:
        model = classifier(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        ).eval()
        model[1].requires_grad_(state["trained"]).train(state["training"])
        train(model)
        assert model[1].training == state["training"]
        return bool((model[1].running_mean == 0).all()), bool((model[3].running_mean == 0).all())

    def steps(model: nn.Module) -> None:
        recovery = CalibrationRecovery(steps=2, final_steps=2, cautious=False)
        cut(model, [x for x, _ in images()], Magnitude(), sparsity=0.3, recovery=recovery)

    for train in (steps, lambda model: list(fit(model, images(), ONCE))):
        assert statistics_after(train, trained=False, training=False) == (True, False)
        assert statistics_after(train, trained=False, training=True) == (False, False)
        assert statistics_after(train, trained=True, training=False) == (False, False)


def test_training_needs_no_gradients_outside() -> None:
    model, data = make_mlp(), [(torch.randn(8, 6), torch.arange(8) % 3)]
    before = model[0].weight.detach().clone()
    with torch.no_grad():
        for _ in fit(model, data, ONCE):
            assert not torch.is_grad_enabled()
    assert not torch.equal(model[0].weight, before)


# Labels


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_labels_of_any_whole_numbers_count(dtype: torch.dtype) -> None:
    x, y = torch.randn(12, 6), torch.arange(12) % 3
    same, other = make_mlp(), make_mlp()
    (first,) = fit(same, [(x, y)], ONCE)
    (second,) = fit(other, [(x, y.to(dtype))], ONCE)
    assert first.loss == second.loss
    assert evaluate(same, [(x, y)]) == evaluate(other, [(x, y.to(dtype))])
    scores = [score(same, [(x, labels)], Snip()) for labels in (y, y.to(dtype))]
    assert all(torch.equal(scores[0][name], scores[1][name]) for name in scores[0])


class Words(nn.Module):
    """Classes last, which PyTorch's losses take for positions."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 8), nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.table(x))


TOKENS, ROW = torch.randint(9, (8, 10)), torch.randn(8, 6)


@pytest.mark.parametrize(
    ("model", "x", "y", "says"),
    [
        (Words(5), TOKENS, TOKENS % 5, "Classes belong on dimension 1"),
        (nn.Linear(6, 1), ROW, torch.ones(8, 1), "2 classes or more.*binary_cross_entropy_with_logits"),
        (nn.Linear(6, 1), ROW, torch.zeros(8).long(), "2 classes or more"),
        (nn.Linear(6, 3), ROW, torch.ones(8), r"whole numbers, or a probability for each class.*\.long\(\)"),
        (nn.Linear(6, 3), ROW, torch.zeros(8, 1).long(), r"labels must have shape \(8,\).*Give each place"),
        (nn.Linear(6, 3), ROW, torch.zeros(7).long(), r"labels must have shape \(8,\)"),
    ],
    ids=["classes last", "one output, floats", "one output", "floats", "a column", "too few"],
)
def test_labels_that_cross_entropy_misreads_are_told(
    model: nn.Module, x: Tensor, y: Tensor, says: str
) -> None:
    for work in (lambda: list(fit(model, [(x, y)], ONCE)), lambda: score(model, [(x, y)], Snip())):
        with pytest.raises(DataError, match=says):
            work()


def test_probabilities_and_losses_of_ones_own_are_taken() -> None:
    list(fit(nn.Linear(6, 3), [(ROW, torch.full((8, 3), 1 / 3))], ONCE))
    (epoch,) = fit(
        nn.Linear(6, 1), [(ROW, torch.ones(8, 1))], ONCE, task_loss=F.binary_cross_entropy_with_logits
    )
    assert epoch.loss > 0


def test_an_error_of_mixed_precision_names_the_way_out() -> None:
    class Fills(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            out = torch.zeros(len(x), 3)
            out[torch.arange(len(x))] = self.layer(x)
            return out

    batches = [(ROW, torch.zeros(8).long())]
    with pytest.raises(DataError, match=r"failed in mixed precision: .*dtype.* Set precision='fp32'"):
        list(fit(Fills(), batches, replace(ONCE, precision="bf16")))
    list(fit(Fills(), batches, ONCE))


# Arguments of cuts


def test_a_teacher_may_have_a_length_of_0() -> None:
    class Empty(nn.Linear):
        def __len__(self) -> int:
            return 0

    torch.manual_seed(0)
    student, teacher = nn.Linear(6, 3), Empty(6, 3)
    recovery = CalibrationRecovery(steps=1, final_steps=300, lr=0.1, cautious=False)
    cut(student, [ROW], Magnitude(), sparsity=0.05, teacher=teacher, recovery=recovery)
    assert (student(ROW).softmax(1) - teacher(ROW).softmax(1)).abs().max() < 0.1


@pytest.mark.parametrize(
    "once", [iter, lambda batches: (batch for batch in batches)], ids=["iter", "generator"]
)
def test_validation_that_can_be_gone_through_once_is_refused(once: Any) -> None:
    batches = images()
    validation = once(batches)
    with pytest.raises(InvalidArgument, match="validation batches after every epoch, but these can be gone"):
        next(fit(classifier(nn.Conv2d(3, 4, 3)), images(), ONCE, validation=validation))
    assert next(validation) is batches[0]  # none is lost


@pytest.mark.parametrize("seed", [-1, 0.5, None])
def test_a_seed_is_a_whole_number_from_0(seed: Any) -> None:
    with pytest.raises(InvalidArgument, match="seed must be"):
        next(fit(nn.Linear(6, 3), images(), ONCE, seed=seed))


def test_arguments_of_another_kind_are_told() -> None:
    model = nn.Linear(6, 3)
    with pytest.raises(InvalidArgument, match="sparsity must be a number"):
        cut(model, None, Magnitude(), sparsity="0.5")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="got one tensor of shape"):
        cut(model, ROW, Magnitude(), sparsity=0.5, recovery=CalibrationRecovery(steps=1))
    with pytest.raises(ScoreError, match=r"of shape \(batch, …\), got \(8,\)"):
        cosine_loss(torch.ones(8), torch.ones(8))


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (TensorDataset(torch.ones(8, 6)), "got the data set TensorDataset. Wrap it in a .*DataLoader"),
        ((torch.ones(8, 6), torch.ones(8).long()), r"shapes \(8, 6\) and \(8,\). Put the pair in a list"),
        (lambda: [torch.ones(8, 6)], "got a function. Call it"),
        (np.float64(1.0), "got a float64. Put it in a list"),
    ],
)
def test_what_is_taken_for_batches_by_mistake_is_told(batches: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        score(nn.Linear(6, 3), batches, Wanda())
    parts = (torch.ones(4, 6), torch.ones(4, 6))  # two batches
    assert score(nn.Linear(6, 3), parts, Wanda())


def test_an_interrupt_leaves_no_tensors_in_the_place_of_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    accessor = torch.nn.utils._named_member_accessor
    swap, calls = accessor.swap_tensor, 0

    def interrupted(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 5:  # the parameters are being put back
            raise KeyboardInterrupt
        return swap(*given, **named)

    model = make_mlp()
    before = dict(model.named_parameters())
    monkeypatch.setattr(accessor, "swap_tensor", interrupted)
    with pytest.raises(KeyboardInterrupt):
        score(model, vectors(), GraSP())
    after = dict(model.named_parameters())
    assert before.keys() == after.keys()
    assert all(after[name] is parameter for name, parameter in before.items())


def test_an_interrupt_between_two_layers_cuts_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_mlp()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    real = masks_module.local_mask

    def interrupted(mask: Tensor, parameter: Tensor) -> Tensor:
        if parameter is model[2].weight:
            raise KeyboardInterrupt
        return real(mask, parameter)

    monkeypatch.setattr(masks_module, "local_mask", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cut(model, None, Magnitude(), sparsity=0.5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("criterion", [Magnitude(), Random(), Snip()])
def test_complex_weights_are_refused_by_name(criterion: AbstractCriterion) -> None:
    class Waves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.waves, self.head = nn.Linear(6, 8, dtype=torch.complex64), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.waves(x.to(torch.complex64)).abs())

    model, batches = Waves(), [(ROW, torch.arange(8) % 3)]
    with pytest.raises(ScoreError, match=r"is torch\.complex64.*exclude=\('waves\.weight',\)"):
        cut(model, batches, criterion, sparsity=0.5)
    assert cut(model, batches, criterion, sparsity=0.5, exclude=("waves.weight",)).n_prune == 12
