"""BatchNorm re-estimation on plain or on augmented images: which is right?

ResNet-20 on CIFAR-10, cut without training; accuracy after the cut and after re-estimation over
5,120 training images, plain or cropped and mirrored as in training. The choice is made on the
validation split (part of what the pretrained weights were trained on); test accuracy is for the record.

    python batchnorm.py --data-dir PARQUET_FOLDER --weights FOLDER_OF_resnet{20,56}-cifar10.safetensors
"""

from __future__ import annotations

import copy
import itertools
import statistics
from itertools import islice
from pathlib import Path

from common import parser, write_result
from torch import nn

import secateur as sc
from secateur.data import DataOptions

SPARSITIES = (0.5, 0.7, 0.8)
SEEDS = (0, 1, 2)
CRITERIA = ("magnitude", "teacher-guided")
KINDS = ("cut", "plain", "augmented")


def network(name: str, weights: Path) -> nn.Module:
    """A pretrained CIFAR-10 ResNet."""
    made = sc.build_model(name, num_classes=10, in_channels=3)
    sc.load_weights(made, weights / f"{name}-cifar10.safetensors")
    return made.eval()


def accuracies(student: nn.Module, data: sc.Data, kind: str) -> dict[str, float]:
    """Accuracy of a copy of `student` after re-estimation of that kind, on both splits."""
    trial = copy.deepcopy(student)
    if kind == "plain":
        sc.reestimate_batchnorm(trial, data.calibration)
    elif kind == "augmented":
        sc.reestimate_batchnorm(trial, islice(data.train, sum(1 for _ in data.calibration)))
    return {split: sc.evaluate(trial, getattr(data, split)).accuracy for split in ("val", "test")}


def main() -> None:
    """Measure every cell and write means over the seeds."""
    arguments = parser(__doc__)
    arguments.add_argument("--data-dir", required=True)
    arguments.add_argument("--weights", type=Path, required=True)
    options = arguments.parse_args()
    student, teacher = network("resnet20", options.weights), network("resnet56", options.weights)
    criteria = {"magnitude": sc.Magnitude(), "teacher-guided": sc.TeacherGuided(teacher)}
    found: dict[tuple[str, float, str], list[dict[str, float]]] = {}
    for seed in SEEDS:
        data = sc.load_data(DataOptions(data="cifar10", data_dir=options.data_dir), seed=seed)
        for criterion in CRITERIA:
            scores = sc.score(student, data.calibration, criteria[criterion])
            for sparsity, kind in itertools.product(SPARSITIES, KINDS):
                pruned = copy.deepcopy(student)
                sc.apply_masks(pruned, sc.allocate(scores, sparsity=sparsity))
                found.setdefault((criterion, sparsity, kind), []).append(accuracies(pruned, data, kind))
    rows = [
        {"criterion": criterion, "sparsity": sparsity, "kind": kind, **_mean_and_spread(values)}
        for (criterion, sparsity, kind), values in found.items()
    ]
    write_result("batchnorm", {"seeds": list(SEEDS), "n_images": 5120, "rows": rows})


def _mean_and_spread(values: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    return {
        split: {
            "mean": statistics.mean(v[split] for v in values),
            "std": statistics.stdev(v[split] for v in values),
        }
        for split in ("val", "test")
    }


if __name__ == "__main__":
    main()
