"""Slow oracle of a cut in stages: copies of the network, plain loops, one sorted list."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference.allocate import n_prune, order

Keep = dict[str, list[bool]]


def masked(model: nn.Module, keep: Keep) -> nn.Module:
    """A copy whose weights are 0 where they are not kept."""
    copied = copy.deepcopy(model).eval()
    with torch.no_grad():
        for name, weight in copied.named_parameters():
            if name in keep:
                weight.mul_(torch.tensor(keep[name]).view(weight.shape))
    return copied


def sensitivity(model: nn.Module, keep: Keep, batches: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """|original weight · gradient of the mean loss at the masked network|."""
    network = masked(model, keep)
    inputs, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    F.cross_entropy(network(inputs), labels).backward()
    weights, gradients = dict(model.named_parameters()), dict(network.named_parameters())
    return {name: (weights[name].detach() * gradients[name].grad).abs() for name in keep}


def staged(
    model: nn.Module,
    names: Sequence[str],
    batches: Sequence[tuple[Tensor, Tensor]],
    *,
    densities: Sequence[str],
    regrow: bool,
) -> list[Keep]:
    """What each stage keeps: the highest scores, of what is left, or with `regrow` of all."""
    weights = dict(model.named_parameters())
    keep: Keep = {name: [True] * weights[name].numel() for name in names}
    found: list[Keep] = []
    for density in densities:
        ranking = order(sensitivity(model, keep, batches))
        if not regrow:
            gone = [(name, i) for name, i in ranking if not keep[name][i]]
            ranking = gone + [(name, i) for name, i in ranking if keep[name][i]]
        n = n_prune(len(ranking), str(1 - float(density)))
        keep = {name: [True] * weights[name].numel() for name in names}
        for name, i in ranking[:n]:
            keep[name][i] = False
        found.append(keep)
    return found
