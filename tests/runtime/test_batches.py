"""Many batch sizes on one engine: what is kept for them is bounded, and outputs do not depend on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import secateur as sc
from runtime.conftest import HAS_NATIVE
from secateur.runtime import Engine

WEIGHTS_MB = 2 * 4096 * 2048 * 4 / 2**20


def resident_mb() -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


@pytest.mark.skipif(not HAS_NATIVE, reason="needs the native engine")
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_weights_are_not_kept_once_for_each_batch_size() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2048, 4096), nn.ReLU(), nn.Linear(4096, 2048)).eval()
    engine = Engine(sc.runtime.compile(model, torch.zeros(2, 2048), threads=1), threads=1)
    x = torch.randn(20, 2048)
    with torch.no_grad():
        expected = model(x).numpy()
    before = resident_mb()
    most = 0.0
    for batch in (*range(1, 21), 3, 17):
        found = engine(x[:batch].numpy())
        assert np.abs(found - expected[:batch]).max() < 1e-4
        most = max(most, resident_mb() - before)
    assert most < 12 * WEIGHTS_MB  # twenty copies, were they all kept; eight make up the 512 MB
