"""The networks that a suite's cells start from and learn from: how large, how different, and whose."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.arena.networks import Networks
from secateur.arena.suite import Method, Suite
from secateur.data import Data, DataOptions, ImageLoader
from secateur.errors import ModelError
from secateur.progress import Watcher
from secateur.recovery import Recovery
from secateur.runs import RunFolder
from secateur.training import train_stage

SUITE = Suite(
    dataset=DataOptions(data="digits", n_calibration=64),
    student="small-cnn",
    teacher="small-cnn",
    pretrain=Recovery(epochs=1, kd_weight=0.5, lr=0.05, precision="fp32"),
    random_label_epochs=2,
)


def prepared(path: Path, **changes: Any) -> Networks:
    suite = Suite(**{**vars(SUITE), **changes})
    return Networks.prepare(suite, 0, RunFolder(path), "cpu", Watcher())


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Networks:
    return prepared(tmp_path_factory.mktemp("networks"))


def weights_of(network: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def test_what_a_method_starts_from(networks: Networks) -> None:
    found = {start: networks.student(Method(start=start), 0.9) for start in ("trained", "init", "small")}
    again = {start: networks.student(Method(start=start), 0.9) for start in found}
    assert all(torch.equal(weights_of(found[start]), weights_of(again[start])) for start in found)
    assert torch.equal(weights_of(found["trained"]), weights_of(networks.ready.student))
    assert not torch.equal(weights_of(found["init"]), weights_of(found["trained"]))
    assert_apart(networks.ready.student, networks.teacher, *found.values(), *again.values())


def test_the_small_network_is_the_widest_of_no_more_parameters_than_the_others_keep(
    networks: Networks,
) -> None:
    """Widths a, b, c hold 9a + 9ab + 9bc + 10c weights, 2 (a + b + c) of BatchNorm, and 10 biases.

    Of 56,224 weights at 90 % go 50,602 and 5,622 stay, with 330 others. Widths of 10, 20 and 20 hold 5,800
    parameters, and the next ones, 10, 22 and 22, hold 6,764.
    """
    small = networks.student(Method(start="small"), 0.9)
    widths = [m.out_channels for m in small.modules() if isinstance(m, nn.Conv2d)]
    assert widths == [10, 20, 20]
    assert len(weights_of(networks.ready.student)) == 56_224 + 330
    assert len(weights_of(small)) == 5800 <= 5622 + 330 < 6764


def test_who_a_score_listens_to(networks: Networks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels that say nothing, the same images, and its own number of epochs, on no advice of a teacher."""
    trained: list[tuple[Data, Recovery]] = []

    def watched(network: nn.Module, data: Data, recipe: Recovery, *args: Any, **options: Any) -> Any:
        trained.append((data, recipe))
        return train_stage(network, data, recipe, *args, **options)

    monkeypatch.setattr("secateur.arena.networks.train_stage", watched)
    kinds = ("trained", "untrained", "random-labels", "student")
    found = {kind: networks.score_teacher(kind) for kind in kinds}
    assert [networks.score_teacher(kind) for kind in kinds] == list(found.values())  # made once
    assert found.pop("trained") is networks.teacher
    assert torch.equal(weights_of(found["student"]), weights_of(networks.ready.student))
    assert not any(p.requires_grad for network in found.values() for p in network.parameters())
    assert not any(network.training for network in found.values())
    assert_apart(networks.ready.student, networks.teacher, *found.values())
    fresh = networks.student(Method(start="init"), 0.9)
    for a, b in combinations((networks.teacher, fresh, *found.values()), 2):
        assert not torch.equal(weights_of(a), weights_of(b))

    ((data, recipe),) = trained
    assert (recipe.epochs, recipe.kd_weight, recipe.lr) == (2, 0.0, 0.05)
    taught, real = data.train, networks.data.train
    assert isinstance(taught, ImageLoader)
    assert isinstance(real, ImageLoader)
    assert taught.split.images is real.split.images
    assert taught.split.labels.unique().tolist() == list(range(10))
    assert 0.05 < float((taught.split.labels == real.split.labels).float().mean()) < 0.15  # chance is 0.1


def assert_apart(*networks: nn.Module) -> None:
    """No two share a weight."""
    places = [{p.data_ptr() for p in network.parameters()} for network in networks]
    assert len(set[int]().union(*places)) == sum(map(len, places))


def of_one_width(num_classes: int, in_channels: int) -> nn.Module:
    """74 weights and nothing else, whatever the width."""
    flat = nn.Linear(in_channels * 64, 1, bias=False)
    return nn.Sequential(nn.Flatten(), flat, nn.Linear(1, num_classes, bias=False))


def test_a_student_of_one_width_has_no_small_version(tmp_path: Path) -> None:
    """A quarter of 74 weights is 18.5, and half a weight rounds up as everywhere: 55 stay."""
    untrained = Recovery(epochs=0, kd_weight=0.0)
    networks = prepared(tmp_path, student=f"{__name__}:of_one_width", pretrain=untrained)
    assert networks.about()["student"] == {"name": f"{__name__}:of_one_width", "n_parameters": 74}
    assert networks.about()["teacher"] == {"name": "small-cnn", "n_parameters": 56_554}
    with pytest.raises(ModelError, match=r"of at most 55 parameters has 74\. .* needs a `width` argument"):
        networks.student(Method(start="small"), 0.25)
