"""Cost of keeping masks in a training step: ResNet-18 in CIFAR form, batch 128, masked against unmasked."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable

import torch
from common import in_turn, medians, parser, write_result
from torch import nn
from torch.nn import functional as F

import secateur as sc

BATCH = 128


def stepper(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """One training step on a fixed batch, bf16 and channels-last as in recovery."""
    x = torch.randn(BATCH, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    y = torch.randint(10, (BATCH,))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(x).float(), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def main() -> None:
    """Time both steps in turn and write the ratio."""
    options = parser(__doc__).parse_args()
    torch.manual_seed(0)
    plain = sc.build_model("resnet18", num_classes=10, in_channels=3).to(memory_format=torch.channels_last)
    masked = copy.deepcopy(plain)
    masks = sc.allocate(sc.score(masked, None, sc.Magnitude()), sparsity=0.9)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (plain, masked)]
    with sc.keep_masks(masked, optimizers[1], masks):
        candidates = {"unmasked": stepper(plain, optimizers[0]), "masked": stepper(masked, optimizers[1])}
        times = in_turn(candidates, rounds=options.rounds)
    ratios = [masked / plain for plain, masked in zip(times["unmasked"], times["masked"], strict=True)]
    write_result(
        "masked_step",
        {
            "model": "resnet18",
            "batch": BATCH,
            "rounds": options.rounds,
            "seconds": medians(times),
            # Median of the ratios of neighbours: a step is so much alike with masks that drift would show.
            "masked_over_unmasked": statistics.median(ratios),
        },
    )


if __name__ == "__main__":
    main()
