"""Calibration recovery on small networks of many kinds, none of which a default was chosen on.

Each network is trained for each of three seeds, cut to 90 % zeros by teacher-fisher as by default on 1,000
inputs without labels, and measured on inputs that it has not seen. Rows of other commits are kept, so that
versions can be compared.

    python calibration_kinds.py --data-dir FOLDER_OF_FASHION_MNIST
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from common import RESULTS, parser, write_result
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur import provenance
from secateur.data import DataOptions, load_data

SPARSITY = 0.9
N_CALIBRATION = 1000
Split = tuple[Tensor, Tensor, Tensor, Tensor]


def clothes(data_dir: str) -> Split:
    """8,000 images to train on and 2,000 to measure, at half their width."""
    data = load_data(
        DataOptions(data="fashion-mnist", data_dir=data_dir, augment=False, batch_size=1000), seed=0
    )
    parts: list[Tensor] = []
    for loader, n in ((data.train, 8), (data.test, 2)):
        batches = [batch for batch, _ in zip(loader, range(n), strict=False)]
        parts += [F.avg_pool2d(torch.cat([x for x, _ in batches]), 2), torch.cat([y for _, y in batches])]
    return parts[0], parts[1], parts[2], parts[3]


def numbers(targets: Callable[[Tensor], Tensor]) -> Split:
    """Rows of 30 numbers, and what `targets` makes of six smooth functions of them."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(10_000, 30, generator=generator)
    hidden = torch.randn(30, 40, generator=generator) * 1.2 / 30**0.5
    z = torch.tanh(x @ hidden) @ torch.randn(40, 6, generator=generator) * 1.2 / 40**0.5
    y = targets((z - z.mean(0)) / z.std(0))
    return x[:8000], y[:8000], x[8000:], y[8000:]


def mlp(outputs: int) -> nn.Module:
    """Three hidden layers."""
    layers: list[nn.Module] = []
    for n_in, n_out in ((30, 128), (128, 128), (128, 128)):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(128, outputs))


def convolutions(*, batchnorm: bool, dropout: float = 0.0, momentum: float | None = 0.1) -> nn.Module:
    """A small CNN for one channel of 14 × 14."""
    layers: list[nn.Module] = []
    for n_in, n_out in ((1, 24), (24, 48)):
        layers.append(nn.Conv2d(n_in, n_out, 3, padding=1))
        layers += [nn.BatchNorm2d(n_out, momentum=momentum)] if batchnorm else []
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Flatten(), nn.Dropout(dropout), nn.Linear(432, 128), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(128, 10))


def right(outputs: Tensor, targets: Tensor) -> float:
    """Accuracy by classes."""
    return float((outputs.argmax(1) == targets).float().mean())


def right_labels(outputs: Tensor, targets: Tensor) -> float:
    """Accuracy by labels, each by the sign of its logit."""
    return float(((outputs > 0) == (targets > 0.5)).float().mean())


def explained(outputs: Tensor, targets: Tensor) -> float:
    """R², 1 minus the part of the variance that is left."""
    return 1 - float((outputs - targets).square().mean() / targets.var(0).mean())


@dataclass(frozen=True)
class Kind:
    """A network, its data, and how it is trained and measured."""

    build: Callable[[], nn.Module]
    data: Callable[[str], Split]
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    measure: Callable[[Tensor, Tensor], float] = right
    kd: Any = "forward"
    epochs: int = 8


def regression(unit: float) -> Kind:
    """Three outputs with this standard deviation."""
    return Kind(
        lambda: mlp(3),
        lambda _: numbers(lambda z: unit * z[:, :3]),
        lambda z, y: F.mse_loss(z / unit, y / unit),
        explained,
        "mse",
        40,
    )


LABELS = F.binary_cross_entropy_with_logits
KINDS: dict[str, Kind] = {
    "CNN": Kind(partial(convolutions, batchnorm=False), clothes),
    "CNN with dropout": Kind(partial(convolutions, batchnorm=False, dropout=0.5), clothes, epochs=12),
    "CNN with BatchNorm": Kind(partial(convolutions, batchnorm=True), clothes),
    "CNN with BatchNorm and dropout": Kind(
        partial(convolutions, batchnorm=True, dropout=0.5), clothes, epochs=12
    ),
    "CNN with BatchNorm, momentum None": Kind(partial(convolutions, batchnorm=True, momentum=None), clothes),
    "MLP, six classes": Kind(lambda: mlp(6), lambda _: numbers(lambda z: z.argmax(1)), epochs=40),
    "MLP, six labels": Kind(
        lambda: mlp(6), lambda _: numbers(lambda z: (z > 0).float()), LABELS, right_labels, "mse", 40
    ),
    "MLP, one logit": Kind(
        lambda: mlp(1), lambda _: numbers(lambda z: (z[:, :1] > 0).float()), LABELS, right_labels, "mse", 40
    ),
    "MLP, regression, deviation 1": regression(1.0),
    "MLP, regression, deviation 200": regression(200.0),
    "MLP, regression, deviation 0.01": regression(0.01),
}


def train(model: nn.Module, kind: Kind, x: Tensor, y: Tensor) -> None:
    """AdamW in batches of 64, one cycle."""
    n_steps = kind.epochs * -(-len(x) // 64)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=n_steps)
    model.train()
    for _ in range(kind.epochs):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            kind.loss(model(x[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()
    model.eval()


def run(name: str, kind: Kind, data_dir: str, seed: int) -> dict[str, Any]:
    """One network, trained, cut and measured."""
    x, y, x_test, y_test = kind.data(data_dir)
    torch.manual_seed(seed)
    dense = kind.build()
    train(dense, kind, x, y)
    student, started = copy.deepcopy(dense), time.process_time()
    found: dict[str, Any] = {"network": name, "seed": seed, "error": None}
    criterion = sc.TeacherFisher(dense, kd=kind.kd, seed=seed)
    recipe = sc.CalibrationRecovery(kd=kind.kd, seed=seed)
    batches = list(x[:N_CALIBRATION].split(100))
    try:
        sc.cut(student, batches, criterion, sparsity=SPARSITY, stages=10, recovery=recipe)
    except sc.SecateurError as error:
        found["error"] = type(error).__name__
    with torch.no_grad():
        found["dense"] = kind.measure(dense(x_test), y_test)
        found["pruned"] = None if found["error"] else kind.measure(student(x_test), y_test)
    return {**found, "cpu_seconds": round(time.process_time() - started, 1)}


def main() -> None:
    """All kinds and seeds."""
    arguments = parser(__doc__)
    arguments.add_argument("--data-dir", required=True)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    commit = provenance.commit()
    path = RESULTS / "calibration_kinds.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = [row for row in rows if row["commit"] != commit]
    for name, kind in KINDS.items():
        rows += [{"commit": commit, **run(name, kind, options.data_dir, seed)} for seed in range(3)]
    write_result("calibration_kinds", {"sparsity": SPARSITY, "rows": rows})


if __name__ == "__main__":
    main()
