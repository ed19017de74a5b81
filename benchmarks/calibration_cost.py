"""What pruning from calibration inputs costs at its defaults: seconds of one cut, and where it gets to.

ResNet-20 on CIFAR-10, 1,536 unlabelled training images, 10 stages by teacher-fisher, default steps with flips
and shifts. Times are of the cut alone: no reading of data, no test. Run it on an idle machine.

    python calibration_cost.py --data-dir PARQUET_FOLDER --weights resnet20-cifar10.safetensors
"""

from __future__ import annotations

import copy
import time

import torch
from common import parser, write_result

import secateur as sc
from secateur.data import DataOptions

STAGES = 10


def main() -> None:
    """Cut once and write seconds, CPU seconds and accuracy."""
    arguments = parser(__doc__)
    arguments.add_argument("--data-dir", required=True)
    arguments.add_argument("--weights", required=True)
    arguments.add_argument("--sparsity", type=float, default=0.8)
    options = arguments.parse_args()
    data = sc.load_data(DataOptions(data="cifar10", data_dir=options.data_dir, n_calibration=1536), seed=0)
    student = sc.build_model("resnet20", num_classes=10, in_channels=3)
    sc.load_weights(student, options.weights)
    student.eval()
    recovery = sc.CalibrationRecovery(augment="flip-shift")
    stages: list[sc.Stage] = []
    started, cpu_started = time.perf_counter(), time.process_time()
    sc.cut(
        student,
        data.calibration,
        sc.TeacherFisher(copy.deepcopy(student)),
        sparsity=options.sparsity,
        stages=STAGES,
        recovery=recovery,
        on_stage=stages.append,
    )
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    write_result(
        "calibration_cost",
        {
            "sparsity": options.sparsity,
            "n_steps": recovery.total_steps(STAGES),
            "threads": torch.get_num_threads(),
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "score_seconds": sum(stage.score_s for stage in stages),
            "test_accuracy": sc.evaluate(student, data.test).accuracy,
        },
    )


if __name__ == "__main__":
    main()
