"""Exact global selection against torch.nn.utils.prune.global_unstructured: time and extra memory.

25 M weights in 50 tensors, sparsity 0.9, both given the same scores. Each side runs in processes of
its own, so that peak memory is its own; the two take turns.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

import torch
from common import parser, peak_rss_bytes, write_result
from torch import nn
from torch.nn.utils import prune

from secateur import allocate

N_TENSORS, ROWS, COLUMNS = 50, 1000, 500
SPARSITY = 0.9


def weights() -> list[nn.Linear]:
    """25 M weights in modules."""
    torch.manual_seed(0)
    return [nn.Linear(COLUMNS, ROWS, bias=False) for _ in range(N_TENSORS)]


def measure(side: str) -> dict[str, float]:
    """Seconds, and bytes of peak memory above what was in use before."""
    warm_up = nn.Linear(8, 8)  # what a first call of either side costs once per process is not counted
    allocate({"0": warm_up.weight.detach()}, sparsity=SPARSITY)
    prune.global_unstructured([(warm_up, "weight")], pruning_method=prune.L1Unstructured, amount=SPARSITY)
    modules = weights()
    scores = [m.weight.detach().abs() for m in modules]
    before = peak_rss_bytes()
    started = time.perf_counter()
    if side == "secateur":
        masks = allocate({str(i): s for i, s in enumerate(scores)}, sparsity=SPARSITY)
        seconds, extra = time.perf_counter() - started, peak_rss_bytes() - before
        return {"seconds": seconds, "extra_bytes": extra, "kept": masks.n_keep}
    pairs = [(m, "weight") for m in modules]
    prune.global_unstructured(
        pairs,
        pruning_method=prune.L1Unstructured,
        importance_scores=dict(zip(pairs, scores, strict=True)),
        amount=SPARSITY,
    )
    seconds, extra = time.perf_counter() - started, peak_rss_bytes() - before
    kept = sum(int(m.weight_mask.sum()) for m in modules)
    return {"seconds": seconds, "extra_bytes": extra, "kept": kept}


def main() -> None:
    """Run both sides in turn and write the ratio."""
    arguments = parser(__doc__)
    arguments.add_argument("--side", choices=["secateur", "torch"])
    options = arguments.parse_args()
    if options.side:
        print(json.dumps(measure(options.side)))
        return
    runs: dict[str, list[dict[str, float]]] = {"secateur": [], "torch": []}
    for _ in range(options.rounds):
        for side, found in runs.items():
            done = subprocess.run(
                [sys.executable, __file__, "--side", side], capture_output=True, text=True, check=True
            )
            found.append(json.loads(done.stdout))
    median = {
        side: {key: statistics.median(run[key] for run in found) for key in found[0]}
        for side, found in runs.items()
    }
    ours, theirs = median["secateur"], median["torch"]
    if ours["kept"] != theirs["kept"]:
        raise SystemExit(f"the two keep different numbers: {ours['kept']} and {theirs['kept']}")
    n_weights = N_TENSORS * ROWS * COLUMNS
    write_result(
        "selection",
        {
            "n_weights": n_weights,
            "sparsity": SPARSITY,
            "rounds": options.rounds,
            **median,
            "times_faster": theirs["seconds"] / ours["seconds"],
            "extra_memory_ratio": ours["extra_bytes"] / theirs["extra_bytes"],
        },
    )


if __name__ == "__main__":
    main()
