"""Masks on a model that FSDP2 has sharded: parameters, gradients and optimizer state are DTensors."""

from datetime import timedelta

import pytest
import torch
from torch import distributed, nn

from secateur import MaskError, Masks, apply_masks, keep_masks


@pytest.fixture
def mesh():
    """A mesh of this one process; more would need a network."""
    if not (distributed.is_available() and distributed.is_gloo_available()):
        pytest.skip("torch was built without gloo")
    from torch.distributed.device_mesh import init_device_mesh

    distributed.init_process_group(
        "gloo", store=distributed.HashStore(), rank=0, world_size=1, timeout=timedelta(seconds=60)
    )
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def test_masks_hold_on_shards(mesh) -> None:
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3))
    weights = {n: p for n, p in model.named_parameters() if n.endswith("weight")}
    masks = Masks({n: torch.rand(p.shape) < 0.4 for n, p in weights.items()})
    fully_shard(model, mesh=mesh)
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
