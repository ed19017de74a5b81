"""What cutting 25 million weights from calibration inputs alone takes: memory and seconds, ResNet-50 at 224².

Random weights and images, since neither decides the memory. Each case is a process of its own: two stages,
90 % zeros, with two distillation steps of 128 images after each where the case has steps. A step of the real
budget takes as long as one of these.

    python calibration_memory.py
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from common import parser, peak_rss_bytes, write_result
from torch import nn

import secateur as sc
from secateur.runtime.zoo import ZOO
from secateur.scores import AbstractCriterion

STEPS = sc.CalibrationRecovery(steps=2, final_steps=2, batch_size=128)
CASES: dict[str, tuple[Callable[[nn.Module], AbstractCriterion], sc.CalibrationRecovery | None]] = {
    "teacher-fisher, with steps": (lambda teacher: sc.TeacherFisher(teacher), STEPS),
    "teacher-curvature, block=1, with steps": (
        lambda teacher: sc.TeacherCurvature(
            teacher, block=1, damping=1.0, rows=32, linear=False, update_weights=False
        ),
        STEPS,
    ),
    "teacher-curvature, solved, 32 rows": (lambda teacher: sc.TeacherCurvature(teacher, rows=32), None),
    "layer-reconstruction, solved": (lambda teacher: sc.LayerReconstruction(teacher), None),
}


def measure(case: str, n_images: int) -> dict[str, Any]:
    """One cut of a fresh ResNet-50."""
    make, recovery = CASES[case]
    torch.manual_seed(0)
    student = ZOO["resnet50"].build().eval()
    images = [(torch.randn(n_images // 2, *ZOO["resnet50"].input_shape), None) for _ in range(2)]
    before = peak_rss_bytes()
    started, cpu_started = time.perf_counter(), time.process_time()
    sc.cut(
        student,
        images,
        make(copy.deepcopy(student)),
        sparsity=0.9,
        stages=2,
        recovery=recovery,
    )
    return {
        "case": case,
        "images": n_images,
        "weights": sum(p.numel() for p in student.parameters()),
        "peak_bytes": peak_rss_bytes(),
        "before_bytes": before,
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu_started,
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    """Run every case in a process of its own."""
    arguments = parser(__doc__)
    arguments.add_argument("--case", help="this one only, printed and not kept")
    arguments.add_argument("--images", type=int, default=128)
    options = arguments.parse_args()
    if options.case:
        print(json.dumps(measure(options.case, options.images)))
        return
    rows: list[dict[str, Any]] = []
    for case in CASES:
        command = [sys.executable, __file__, "--case", case, "--images", str(options.images)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{case}: failed\n{done.stderr}", file=sys.stderr)
        rows.append(
            json.loads(done.stdout) if done.returncode == 0 else {"case": case, "failed": done.returncode}
        )
        write_result("calibration_memory", {"model": "resnet50", "rows": rows})


if __name__ == "__main__":
    main()
