"""Masks on models that torch has distributed: `python -m integration.distributed_cases CASE` runs one case.

Each has a process of its own, for a process group may wait for ever in C++, where the time limit of a test
does not reach: after TIME_LIMIT seconds the process prints where it stands and ends.
"""

from __future__ import annotations

import faulthandler
import sys
from datetime import timedelta

import pytest
import torch
from torch import distributed, nn

from helpers import make_mlp
from property.keep_masks_helpers import assert_training_keeps_masks
from secateur import MaskError, Masks, apply_masks, keep_masks

TIME_LIMIT = 60.0


def replicated(*, as_view: bool) -> None:
    """A model inside DistributedDataParallel."""
    model = make_mlp()
    wrapped = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=as_view)
    assert_training_keeps_masks(wrapped, model)


def sharded() -> None:
    """A model that FSDP2 has sharded: parameters, gradients and optimizer state are DTensors."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = nn.Sequential(nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3))
    weights = {n: p for n, p in model.named_parameters() if n.endswith("weight")}
    masks = Masks({n: torch.rand(p.shape) < 0.4 for n, p in weights.items()})
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    before = {name: p.full_tensor().clone() for name, p in model.named_parameters()}
    with keep_masks(model, optimizer, masks):
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.randn(6, 8)).square().sum().backward()
            shards = {name: p for name, p in model.named_parameters() if name in masks}
            assert all(not p.grad.full_tensor()[~masks[name]].any() for name, p in shards.items())
            optimizer.step()
            assert all(not p.full_tensor()[~masks[name]].any() for name, p in shards.items())
    assert all((p.full_tensor() != before[n])[masks[n]].any() for n, p in shards.items())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    with pytest.raises(MaskError, match="no longer zero"):
        masks.check(model)
    apply_masks(model, masks)
    masks.check(model)


CASES = {
    "replicated": lambda: replicated(as_view=False),
    "replicated, gradients as views": lambda: replicated(as_view=True),
    "sharded": sharded,
}


def main() -> None:
    faulthandler.dump_traceback_later(TIME_LIMIT, exit=True)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    # a group of this one process; more would need a network
    distributed.init_process_group(
        "gloo", store=distributed.HashStore(), rank=0, world_size=1, timeout=timedelta(seconds=TIME_LIMIT / 2)
    )
    CASES[sys.argv[1]]()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
