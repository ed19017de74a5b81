"""Accuracy and loss by hand, and BatchNorm statistics against their definition."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers import Snapshot, images, make_cnn, make_mlp, same_bits, same_state, vectors
from secateur.errors import DataError
from secateur.evaluate import Metrics, device_of, evaluate, modes_kept, reestimate_batchnorm


class Table(nn.Module):
    """Returns its inputs: data are the logits."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_metrics_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [1.0, 0.0], [3.0, 0.0], [0.0, 5.0]])
    labels = torch.tensor([0, 0, 0, 1, 1])  # right, wrong, right, wrong, right
    batches = [(logits[:3], labels[:3]), (logits[3:], labels[3:])]  # of different sizes
    expected = sum(float(F.cross_entropy(z[None], y[None])) for z, y in zip(logits, labels, strict=True)) / 5
    metrics = evaluate(Table(), batches)
    assert metrics == Metrics(accuracy=0.6, loss=pytest.approx(expected), n_samples=5)


def test_another_loss_is_weighted_by_samples() -> None:
    batches = [(torch.eye(2), torch.tensor([0, 1])), (torch.eye(2)[:1], torch.tensor([1]))]
    metrics = evaluate(Table(), batches, task_loss=lambda z, y: y.float().mean())
    assert metrics.loss == pytest.approx(2 / 3)
    assert metrics.accuracy == pytest.approx(2 / 3)


def test_evaluation_changes_nothing_and_ignores_the_mode() -> None:
    model = make_cnn().train()
    model[1].eval()
    before = Snapshot.of(model)
    training = evaluate(model, images())
    before.assert_unchanged(model)
    assert evaluate(model.eval(), images()) == training


def test_an_output_object_with_logits_is_understood() -> None:
    class Wrapped(nn.Module):
        def forward(self, x: Tensor) -> object:
            return type("Output", (), {"logits": x})()

    assert evaluate(Wrapped(), [(torch.eye(3), torch.arange(3))]).accuracy == 1.0


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "no batch"),
        ([torch.randn(2, 6)], "needs labels"),
        ([(torch.randn(2, 6), torch.zeros(2, 1, dtype=torch.int64))], r"shape \(batch,\), got \(2, 1\)"),
        ([(torch.randn(2, 6), torch.zeros(2, 3))], r"shape \(batch,\), got \(2, 3\)"),
        ([(torch.full((2, 6), torch.nan), torch.zeros(2, dtype=torch.int64))], "NaN or infinity"),
        ([{"x": 1}], "got int"),
        ([(1, 2, 3)], "got 3 parts"),
        ([("a", "b")], "labels of a batch must be a tensor, got str"),
        ([("a", torch.zeros(2))], "inputs of a batch must be a tensor, several .* got str"),
    ],
)
def test_bad_batches_are_refused_and_modes_come_back(batches: list[object], message: str) -> None:
    model = make_mlp().train()
    with pytest.raises(DataError, match=message):
        evaluate(model, batches)
    assert model.training
    assert model[0].training


def test_batches_without_a_sample_are_refused() -> None:
    empty = (torch.zeros(0, 6), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(DataError, match="without a sample"):
        evaluate(make_mlp(), [empty], task_loss=lambda z, y: z.sum())


def test_modes_are_kept_module_by_module() -> None:
    model = make_cnn().train()
    model[1].eval()
    modes = [module.training for module in model.modules()]

    def body() -> None:
        with modes_kept(model):
            model.eval()
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        body()
    assert [module.training for module in model.modules()] == modes


def test_the_device_of_a_model() -> None:
    assert device_of(make_mlp()) == torch.device("cpu")
    assert device_of(nn.ReLU()) == torch.device("cpu")
    assert device_of(nn.Linear(2, 2, device="meta")) == torch.device("meta")


@pytest.mark.parametrize(
    ("outputs", "labels", "message"),
    [
        (1, [0, 1, 0], r"2 classes or more, got \(3, 1\) for 3 labels. Give a binary classifier two outputs"),
        (4, [0, 3, 4], r"labels go from 0 to 4; .* Target 4 is out of bounds"),
        (4, [0, 3, -100], "every sample needs a class to be counted, got the label -100"),
        (4, [0.0, 1.0, 2.0], r"whole numbers, got torch\.float32"),
        (4, [0, 1], r"got \(3, 4\) for 2 labels"),
    ],
)
def test_what_has_no_accuracy_is_refused(outputs: int, labels: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        evaluate(nn.Linear(2, outputs), [(torch.randn(3, 2), torch.tensor(labels))])
    with pytest.raises(DataError, match=r"got \(3,\) for 3 labels"):
        evaluate(nn.Flatten(0), [(torch.randn(3, 1), torch.zeros(3, dtype=torch.int64))])


# BatchNorm


def bn_net() -> nn.Sequential:
    """Two BatchNorm layers, the second behind the first."""
    model = nn.Sequential(nn.BatchNorm1d(2, momentum=0.3), nn.Linear(2, 3), nn.BatchNorm1d(3, momentum=None))
    for layer in (model[0], model[2]):
        layer.running_mean.fill_(9.0)
        layer.running_var.fill_(7.0)
        layer.num_batches_tracked.fill_(5)
    return model


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def test_statistics_by_hand() -> None:
    """The unbiased variance of all samples; a batch of one is left out."""
    model = nn.Sequential(nn.BatchNorm1d(1))
    batches = [torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [4.0], [9.0]]), torch.tensor([[99.0]])]
    assert reestimate_batchnorm(model, batches) == 1
    assert float(model[0].running_mean) == pytest.approx((2 * 2 + 3 * 5) / 5)
    assert float(model[0].running_var) == pytest.approx(torch.cat(batches[:2]).var().item())
    assert int(model[0].num_batches_tracked) == 2


def test_a_layer_that_is_called_twice_a_pass_averages_its_calls() -> None:
    layer = nn.BatchNorm1d(1)
    model = nn.Sequential(layer, nn.Linear(1, 1), layer)
    nn.init.constant_(model[1].weight, 0.0)
    nn.init.constant_(model[1].bias, 4.0)
    assert reestimate_batchnorm(model, [torch.tensor([[1.0], [3.0]])]) == 1
    assert float(layer.running_mean) == pytest.approx((2 + 4) / 2)


def test_a_batch_of_one_value_a_channel_is_refused_and_leaves_the_statistics() -> None:
    model = bn_net()
    before = statistics(model)
    with pytest.raises(DataError, match="BatchNorm cannot be re-estimated on a batch of 1: a layer sees one"):
        reestimate_batchnorm(model, [torch.randn(1, 2)])
    assert same_state(statistics(model), before)


def test_later_layers_see_what_training_mode_would_send_them() -> None:
    model = bn_net()
    data = [torch.randn(8, 2) + 3, torch.randn(8, 2)]
    assert reestimate_batchnorm(model, data) == 2
    seen = []
    for x in data:
        normal = F.batch_norm(x, None, None, model[0].weight, model[0].bias, training=True)
        seen.append(model[1](normal).detach())
    assert torch.allclose(model[2].running_mean, torch.cat(seen).mean(0), atol=1e-6)
    assert torch.allclose(model[2].running_var, torch.cat(seen).var(0), atol=1e-5)


def test_only_statistics_change() -> None:
    model = make_cnn().train()
    model[4].eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = Snapshot.of(model)
    momenta = [model[1].momentum, model[4].momentum]
    first = copy.deepcopy(model)
    assert reestimate_batchnorm(model, images()) == 2
    assert not torch.equal(model[1].running_mean, before.tensors["1.running_mean"][1])
    assert [model[1].momentum, model[4].momentum] == momenta
    for name, buffer in model.named_buffers():
        buffer.copy_(before.tensors[name][1])
    before.assert_unchanged(model)
    reestimate_batchnorm(first, [x for x, _ in images()])  # bare inputs do as well, and dropout is off
    reestimate_batchnorm(model, images())
    assert same_state(statistics(first), statistics(model))


def test_repeating_it_gives_the_same() -> None:
    model = bn_net()
    data = [torch.randn(8, 2) for _ in range(3)]
    reestimate_batchnorm(model, data)
    once = statistics(model)
    reestimate_batchnorm(model, data)
    assert same_state(statistics(model), once)


def test_a_model_without_batchnorm_is_left_alone() -> None:
    def never() -> Iterator[Tensor]:
        raise AssertionError("the batches must not be looked at")
        yield

    assert reestimate_batchnorm(make_mlp(), never()) == 0
    assert reestimate_batchnorm(nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False)), never()) == 0


def breaking(error: Exception) -> Iterator[Tensor]:
    yield torch.randn(4, 2)
    raise error


@pytest.mark.parametrize(
    ("batches", "error"),
    [
        ([], DataError),
        ([torch.randn(4, 2), torch.full((4, 2), torch.nan)], DataError),
        ([torch.randn(1, 2), torch.randn(4, 2)], DataError),  # no variance of one sample
        (breaking(KeyError("loader")), KeyError),
        (breaking(KeyboardInterrupt()), KeyboardInterrupt),  # type: ignore[arg-type]
    ],
    ids=["empty", "nan", "one sample", "loader", "interrupt"],
)
def test_an_exception_gives_the_old_statistics_back(batches: object, error: type[BaseException]) -> None:
    model = bn_net().train()
    model[2].eval()
    before = Snapshot.of(model)
    with pytest.raises(error):
        reestimate_batchnorm(model, batches)  # type: ignore[arg-type]
    after = Snapshot.of(model)
    after.rng = before.rng
    assert after.flags == before.flags
    assert all(same_bits(after.tensors[name][1], value) for name, (_, value) in before.tensors.items())
    assert (model[0].momentum, model[2].momentum) == (0.3, None)


def test_a_layer_that_no_batch_reaches_keeps_its_statistics() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used = nn.BatchNorm1d(2)
            self.unused = nn.BatchNorm1d(2)
            self.unused.running_mean.fill_(4.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    model = Branch()
    before = statistics(model.unused)
    assert reestimate_batchnorm(model, [torch.randn(4, 2) + 5]) == 1
    assert same_state(statistics(model.unused), before)
    assert float(model.used.running_mean.mean()) > 3


def test_statistics_help_after_a_cut() -> None:
    """The reason for it: activations of a pruned layer shrink, old statistics no longer fit."""
    model = make_cnn().eval()
    data = images(4, 16)
    reestimate_batchnorm(model, data)
    with torch.no_grad():
        model[3].weight.mul_(0.1)
        model[3].bias.mul_(0.1)
        stale = model[4](model[3](model[:3](data[0][0]))).std()
        reestimate_batchnorm(model, data)
        fresh = model[4](model[3](model[:3](data[0][0]))).std()
    assert abs(float(fresh) - 1) < 0.2 < abs(float(stale) - 1)
    assert evaluate(make_mlp(), vectors()).n_samples == 15


def test_logits_that_are_no_numbers_are_no_hits() -> None:
    logits = torch.tensor([[float("nan"), 0.0], [1.0, float("nan")], [2.0, 1.0]])

    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return logits

    assert evaluate(Broken(), [(torch.zeros(3), torch.tensor([0, 1, 0]))]).accuracy == pytest.approx(1 / 3)


def test_statistics_are_those_of_all_samples_however_batches_are_made() -> None:
    torch.manual_seed(0)
    x = torch.cat([torch.randn(40, 3, 4, 4) + 3, torch.randn(30, 3, 4, 4) - 3, torch.randn(7, 3, 4, 4)])
    for sizes in ([77], [40, 30, 7], [39, 1, 37]):
        model = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 2))
        batches = x.split(sizes)
        reestimate_batchnorm(model, list(batches))
        seen = torch.cat([batch for batch in batches if len(batch) > 1])
        assert torch.allclose(model[0].running_mean, seen.mean((0, 2, 3)), atol=1e-5)
        assert torch.allclose(model[0].running_var, seen.var((0, 2, 3)), rtol=1e-5)
