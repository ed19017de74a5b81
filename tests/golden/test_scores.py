"""Scores of a literal network, pinned.

``PYTHONPATH=tests python -m golden.test_scores`` prints the file anew.
A changed number is a changed method: say so in the changelog, and only then renew the file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers import build
from secateur.allocate import allocate
from secateur.scores import (
    CRITERIA,
    Epsd,
    Fisher,
    Inverted,
    Lamp,
    Magnitude,
    Shuffled,
    TaskGradient,
    TeacherGuided,
    Wanda,
    score,
)

FILE = Path(__file__).with_name("scores.json")


def wave(*shape: int, step: float) -> Tensor:
    """Numbers in [−1, 1] that any machine computes alike."""
    n = int(torch.tensor(shape).prod())
    return torch.sin(step * torch.arange(1, n + 1, dtype=torch.float64)).view(shape).float()


def network(step: float) -> nn.Sequential:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    with torch.no_grad():
        for place, tensor in enumerate([*model.parameters(), model[1].running_mean]):
            tensor.copy_(wave(*tensor.shape, step=step + place))
        model[1].running_var.copy_(1 + wave(2, step=step).abs())
    return model


def rows() -> dict[str, Any]:
    """A criterion a row; each registered one under its own key, with its defaults."""
    teacher = network(0.37)
    found: dict[str, Any] = {key: build(criterion, teacher) for key, criterion in CRITERIA.items()}
    return {
        **found,
        "task-gradient grad": TaskGradient(saliency="grad"),
        "task-gradient grad^2 ema": TaskGradient(saliency="grad^2", accumulate="ema"),
        "teacher-guided as printed": TeacherGuided(teacher, saliency="grad"),
        "teacher-guided joint ema": TeacherGuided(teacher, form="joint", accumulate="ema"),
        "teacher-guided alpha 0.2, T 2": TeacherGuided(teacher, alpha=0.2, temperature=2.0),
        "teacher-guided reverse": TeacherGuided(teacher, kd="reverse"),
        "teacher-guided ca-kld 0.7": TeacherGuided(teacher, kd="ca-kld", beta=0.7),
        "teacher-guided standardized": TeacherGuided(teacher, standardize=True),
        "teacher-guided mse": TeacherGuided(teacher, kd="mse"),
        "teacher-guided cosine": TeacherGuided(teacher, kd="cosine"),
        "fisher per batch": Fisher(per="batch"),
        "wanda by tensor": Wanda(compare="tensor"),
        "epsd dlb": Epsd(distillation="dlb"),
        "magnitude shuffled": Shuffled(Magnitude(), seed=1),
        "lamp inverted": Inverted(Lamp()),
    }


def compute(criterion: Any) -> dict[str, Any]:
    """Scores to 7 digits, and the digest of the masks at half sparsity."""
    batches = [(wave(4, 1, 4, 4, step=0.11 * k), torch.arange(4).add(k) % 3) for k in (1, 2, 3)]
    scores = score(network(0.73), batches, criterion)
    return {
        "scores": {name: [float(f"{v:.7g}") for v in t.reshape(-1).tolist()] for name, t in scores.items()},
        "digest": allocate(scores, sparsity=0.5).digest,
    }


@pytest.mark.parametrize("name", rows())
def test_scores_are_the_pinned_ones(name: str) -> None:
    expected, actual = json.loads(FILE.read_text())[name], compute(rows()[name])
    assert list(actual["scores"]) == list(expected["scores"]) == ["0.weight", "4.weight"]
    for tensor, values in expected["scores"].items():
        nothing = min(1e-8, 1e-6 * max(map(abs, values)))  # some scores are tiny throughout
        assert actual["scores"][tensor] == pytest.approx(values, rel=1e-4, abs=nothing), tensor
    assert actual["digest"] == expected["digest"]


def test_every_row_is_computed_and_differs_from_the_others() -> None:
    golden = json.loads(FILE.read_text())
    assert list(golden) == list(rows())
    assert len({json.dumps(row["scores"]) for row in golden.values()}) == len(golden)


if __name__ == "__main__":
    lines = [f"  {json.dumps(name)}: {json.dumps(compute(c))}" for name, c in rows().items()]
    sys.stdout.write("{\n" + ",\n".join(lines) + "\n}\n")
