"""What every test starts from: one thread, one seed, small networks."""

import os

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import nn

from helpers import SharedNet, make_cnn, make_mlp

os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # more are processes, which outlive the test that compiles
torch.set_num_threads(1)
settings.register_profile(
    "secateur", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("explore", deadline=None, max_examples=2000)  # --hypothesis-profile=explore
settings.load_profile("secateur")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def tiny_mlp() -> nn.Sequential:
    """6 inputs, 3 classes, two linear layers."""
    return make_mlp()


@pytest.fixture
def tiny_cnn() -> nn.Sequential:
    """1×6×6 images, 3 classes, BatchNorm and dropout."""
    return make_cnn()


@pytest.fixture
def shared_net() -> SharedNet:
    """6 inputs, 3 classes; one weight used by two layers."""
    return SharedNet()
