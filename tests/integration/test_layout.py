"""Images are laid out channels-last only where every network can take it."""

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.layout import image_layout


class FlattensByView(nn.Module):
    """What many textbooks write; `view` refuses channels-last activations."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.drop = nn.Dropout(0.5)
        self.linear = nn.Linear(4 * 6 * 6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.drop(self.conv(x)).view(len(x), -1))


class CountsItsCalls(nn.Module):
    """Writes to a buffer in eval mode, too."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("n_calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.n_calls += 1
        return x


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(8, 3, 8, 8, generator=generator), torch.randint(5, (8,), generator=generator))
        for _ in range(3)
    ]


@pytest.fixture
def convolutional():
    return sc.build_model("small-cnn", num_classes=5, in_channels=3)


def test_the_premise_holds(batches):
    with pytest.raises(RuntimeError, match="view"):
        FlattensByView()(batches[0][0].contiguous(memory_format=torch.channels_last))


def test_the_layout_is_the_one_that_all_networks_take(batches, convolutional):
    images = batches[0][0]
    assert image_layout(images, convolutional) is torch.channels_last
    assert image_layout(images, FlattensByView()) is torch.contiguous_format
    assert image_layout(images, convolutional, FlattensByView()) is torch.contiguous_format
    assert image_layout(torch.randn(4, 7), nn.Linear(7, 2)) is torch.contiguous_format


def test_trying_leaves_no_trace(batches, convolutional):
    for network in (convolutional.train(), FlattensByView().train(), CountsItsCalls()):
        before = {name: value.clone() for name, value in network.state_dict().items()}
        random_state = torch.get_rng_state()
        image_layout(batches[0][0], network)
        assert all(module.training for module in network.modules())
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
        assert torch.equal(torch.get_rng_state(), random_state)


def test_scores_do_not_depend_on_the_layout(batches, convolutional):
    reference = sc.score(convolutional, batches, sc.TaskGradient())
    flat = [(images.flatten(1), labels) for images, labels in batches]
    contiguous = nn.Sequential(nn.Unflatten(1, (3, 8, 8)), convolutional)
    for name, scores in sc.score(contiguous, flat, sc.TaskGradient()).items():
        torch.testing.assert_close(scores, reference[name.removeprefix("1.")], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("teacher_flattens", [False, True])
def test_networks_that_flatten_by_view_are_scored_and_trained(batches, convolutional, teacher_flattens):
    student, teacher = FlattensByView(), convolutional
    if teacher_flattens:
        student, teacher = teacher, student
    masks = sc.cut(student, batches, sc.TeacherGuided(teacher), sparsity=0.5)
    recipe = sc.Recovery(epochs=1, precision="fp32")
    (epoch,) = sc.fit(student, batches, recipe, masks=masks, teacher=teacher, validation=batches)
    assert epoch.epoch == 1
    masks.check(student)
