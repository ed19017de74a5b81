"""Copies of networks that torch itself does not copy."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from secateur.calibration import CalibrationRecovery
from secateur.cutting import cut
from secateur.modules import twin
from secateur.scores import Magnitude


class Keeps(nn.Module):
    """Stores what its layers computed, as one does to look at it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 16), nn.Linear(16, 3)
        self.seen: dict[str, list[Tensor]] = {}

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).relu()
        self.seen["hidden"] = [hidden]
        self.last = self.second(hidden)
        return self.last


def weight_normed() -> nn.Module:
    with pytest.warns(FutureWarning, match="weight_norm"):
        layer = nn.utils.weight_norm(nn.Linear(4, 16))
    return nn.Sequential(layer, nn.ReLU(), nn.Linear(16, 3))


@pytest.mark.filterwarnings("ignore::secateur.errors.LeftDenseWarning")
@pytest.mark.parametrize("make", [Keeps, weight_normed])
def test_a_network_that_keeps_what_a_pass_computed_is_copied_and_cut(make: type[nn.Module]) -> None:
    network, x = make(), torch.randn(32, 4)
    outputs = network(x)
    copied = twin(network)
    assert torch.equal(copied(x), outputs)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert torch.equal(network(x), outputs)
    network(x)
    recovery = CalibrationRecovery(steps=2, final_steps=2)
    masks = cut(network, [x], Magnitude(), sparsity=0.5, stages=2, recovery=recovery)
    masks.check(network)
