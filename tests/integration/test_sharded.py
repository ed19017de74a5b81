"""Masks on a model that FSDP2 has sharded over two processes."""

from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing, nn

from secateur import MaskError, Masks, apply_masks, keep_masks

WORLD = 2


def masks_for(model: nn.Module) -> Masks:
    generator = torch.Generator().manual_seed(0)
    weights = {n: p for n, p in model.named_parameters() if n.endswith("weight")}
    return Masks({n: torch.rand(p.shape, generator=generator) < 0.4 for n, p in weights.items()})


def train_sharded(rank: int, rendezvous: str) -> None:
    """One process: shard, train inside keep_masks, and look at the whole weights."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    distributed.init_process_group(
        "gloo", init_method=rendezvous, rank=rank, world_size=WORLD, timeout=timedelta(seconds=60)
    )
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3))
    masks = masks_for(model)
    fully_shard(model, mesh=init_device_mesh("cpu", (WORLD,)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    before = {name: p.full_tensor().clone() for name, p in model.named_parameters()}
    with keep_masks(model, optimizer, masks):
        for step in range(5):
            generator = torch.Generator().manual_seed(10 * step + rank)
            optimizer.zero_grad()
            model(torch.randn(6, 8, generator=generator)).square().sum().backward()
            for name, parameter in model.named_parameters():
                if name in masks:
                    assert not parameter.grad.full_tensor()[~masks[name]].any()
            optimizer.step()
            for name, parameter in model.named_parameters():
                if name in masks:
                    whole = parameter.full_tensor()
                    assert not whole[~masks[name]].any()
                    assert (whole != before[name])[masks[name]].all()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    with pytest.raises(MaskError, match="no longer zero"):
        masks.check(model)
    apply_masks(model, masks)
    masks.check(model)
    distributed.destroy_process_group()


@pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()),
    reason="torch was built without gloo",
)
def test_masks_hold_on_shards(tmp_path: Path) -> None:
    multiprocessing.spawn(train_sharded, ((tmp_path / "rendezvous").as_uri(),), nprocs=WORLD)
