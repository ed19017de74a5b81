"""What the steps of a calibration-only cut should aim at: the network as it was, a larger one, or labels.

ResNet-20 on CIFAR-10, 1,536 training images, magnitude in 10 stages of 30 steps, no augmentation; only the
target of the steps differs. Labels are what the other rows do without.

    python calibration_targets.py --data-dir PARQUET_FOLDER --weights resnet20-cifar10.safetensors \
        --teacher-weights resnet56-cifar10.safetensors
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from common import parser, write_result
from torch import Tensor, nn

import secateur as sc
from secateur.data import Data, DataOptions

SPARSITY = 0.9
STAGES = 10
STEPS = 30


class Labels(nn.Module):
    """Knows the calibration images' labels: its softmax is 1 for the label, so that KD is cross-entropy."""

    def __init__(self, data: Data) -> None:
        super().__init__()
        self.n_classes = data.n_classes
        self.known = {
            _key(image): int(label)
            for images, labels in data.calibration
            for image, label in zip(images, labels, strict=True)
        }

    def forward(self, images: Tensor) -> Tensor:
        """Logits of shape (batch, classes) for images it has seen."""
        labels = torch.tensor([self.known[_key(image)] for image in images])
        return 100.0 * nn.functional.one_hot(labels, self.n_classes).float()


def _key(image: Tensor) -> bytes:
    return image.float().contiguous().numpy().tobytes()


def main() -> None:
    """Cut with each target and each seed; the file is written anew after each."""
    arguments = parser(__doc__)
    arguments.add_argument("--data-dir", required=True)
    arguments.add_argument("--weights", required=True)
    arguments.add_argument("--teacher-weights", required=True)
    arguments.add_argument("--seeds", default="0,1,2")
    options = arguments.parse_args()
    dense = sc.build_model("resnet20", num_classes=10, in_channels=3).eval()
    sc.load_weights(dense, options.weights)
    larger = sc.build_model("resnet56", num_classes=10, in_channels=3).eval()
    sc.load_weights(larger, options.teacher_weights)
    rows: list[dict[str, Any]] = []
    for seed in map(int, options.seeds.split(",")):
        source = DataOptions(data="cifar10", data_dir=options.data_dir, n_calibration=1536)
        data = sc.load_data(source, seed=seed)
        for target, teacher, temperature in (
            ("the network as it was, T = 4", copy.deepcopy(dense), 4.0),
            ("the network as it was, T = 1", copy.deepcopy(dense), 1.0),
            ("the ResNet-56, T = 4", larger, 4.0),
            ("labels", Labels(data), 1.0),
        ):
            student = copy.deepcopy(dense)
            recovery = sc.CalibrationRecovery(
                steps=STEPS, final_steps=STEPS, batch_size=128, temperature=temperature, seed=seed
            )
            sc.cut(
                student,
                data.calibration,
                sc.Magnitude(),
                sparsity=SPARSITY,
                stages=STAGES,
                recovery=recovery,
                teacher=teacher,
            )
            rows.append(
                {"target": target, "seed": seed, "test_accuracy": sc.evaluate(student, data.test).accuracy}
            )
            content = {"sparsity": SPARSITY, "stages": STAGES, "steps": STEPS, "rows": rows}
            write_result("calibration_targets", content)


if __name__ == "__main__":
    main()
