"""Cost of the teacher-guided score against a plain forward + backward over the same batches.

ResNet-20 taught by ResNet-56 on random 32x32 images, batch 128: what is timed does not depend on
what the images show. Memory is measured on a wide perceptron, whose activations are negligible
beside its weights, in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys

import torch
from common import in_turn, medians, parser, peak_rss_bytes, write_result
from torch import nn
from torch.nn import functional as F

import secateur as sc

N_BATCHES, BATCH = 4, 128


def time_cost(rounds: int) -> dict[str, float]:
    """Median seconds of scoring, of plain passes, and of the teacher's forward."""
    torch.manual_seed(0)
    student = sc.build_model("resnet20", num_classes=10, in_channels=3).eval()
    teacher = sc.build_model("resnet56", num_classes=10, in_channels=3).eval()
    batches = [(torch.randn(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))) for _ in range(N_BATCHES)]

    def plain() -> None:
        for x, y in batches:
            student.zero_grad(set_to_none=True)
            F.cross_entropy(student(x), y).backward()

    def teacher_forward() -> None:
        with torch.no_grad():
            for x, _ in batches:
                teacher(x)

    def score() -> None:
        sc.score(student, batches, sc.TeacherGuided(teacher))

    return medians(in_turn({"score": score, "plain": plain, "teacher": teacher_forward}, rounds=rounds))


def memory(side: str) -> dict[str, float]:
    """Peak memory above the networks themselves, in copies of the prunable weights."""
    torch.manual_seed(0)
    width, depth = 1536, 24
    layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU())]
    student = nn.Sequential(*layers, nn.Linear(width, 10)).eval()
    teacher = nn.Sequential(nn.Linear(width, 64), nn.Linear(64, 10)).eval()
    batches = [(torch.randn(16, width), torch.randint(10, (16,))) for _ in range(2)]
    with torch.no_grad():
        student(batches[0][0]), teacher(batches[0][0])
    before = peak_rss_bytes()
    if side == "score":
        sc.score(student, batches, sc.TeacherGuided(teacher))
    else:
        for x, y in batches:
            student.zero_grad(set_to_none=True)
            F.cross_entropy(student(x), y).backward()
    prunable = sum(p.numel() * p.element_size() for p in sc.select_targets(student).values())
    return {"copies": (peak_rss_bytes() - before) / prunable}


def main() -> None:
    """Measure time and memory and write the ratios."""
    arguments = parser(__doc__)
    arguments.add_argument("--memory", choices=["score", "plain"])
    options = arguments.parse_args()
    if options.memory:
        print(json.dumps(memory(options.memory)))
        return
    copies = {}
    for side in ("score", "plain"):
        done = subprocess.run(
            [sys.executable, __file__, "--memory", side], capture_output=True, text=True, check=True
        )
        copies[side] = json.loads(done.stdout)["copies"]
    seconds = time_cost(options.rounds)
    write_result(
        "scoring",
        {
            "rounds": options.rounds,
            "seconds": seconds,
            "score_without_teacher_over_plain": (seconds["score"] - seconds["teacher"]) / seconds["plain"],
            "score_over_plain_plus_teacher": seconds["score"] / (seconds["plain"] + seconds["teacher"]),
            "copies_of_the_weights": copies,
            "copies_beyond_plain": copies["score"] - copies["plain"],
        },
    )


if __name__ == "__main__":
    main()
