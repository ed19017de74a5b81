"""An engine with several threads in a process that is forked, as data loaders and servers do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from runtime.conftest import HAS_NATIVE
from secateur.runtime import compile as compile_model

PROCESS = """
import os
import sys
import numpy as np
import secateur as sc
engine = sc.runtime.load("conv.plan", threads=3)
x = np.random.default_rng(0).standard_normal((2, 3, 64, 64), np.float32)
expected = engine(x)
children = []
for call_it in (False, True):
    if not (child := os.fork()):
        if call_it:
            assert np.array_equal(engine(x), expected)
            assert np.array_equal(engine(x), expected)
        sys.exit(7)
    children.append(child)
assert np.array_equal(engine(x), expected)
print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
"""


@pytest.mark.skipif(not HAS_NATIVE, reason="there is no native engine")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_computes_and_ends(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.MaxPool2d(2))
    compile_model(model.eval(), torch.zeros(1, 3, 64, 64)).save(tmp_path / "conv.plan")
    done = subprocess.run(
        [sys.executable, "-c", PROCESS], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "[7, 7]\n", done.stderr
