"""Wanda: weights times the norm of what they are multiplied with."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, product
from math import prod
from typing import Literal, cast

import torch
from torch import Tensor, nn

from secateur.errors import InvalidArgument, ScoreError
from secateur.inputs import call
from secateur.naming import Named
from secateur.scores.base import AbstractCriterion, ScoreInputs
from secateur.scores.unfolding import Convolution, Transposed, input_of, layers_of, under_kernel
from secateur.targets import TRANSPOSED, unwrap


@dataclass(frozen=True)
class Wanda(AbstractCriterion):
    """``S_w = |w|·‖x‖₂``, x all the values that w is multiplied with over the calibration data.

    https://arxiv.org/abs/2306.11695 eq. 1, compared within each output: forward passes only, no labels.
    For a linear layer x is one input feature over all samples and positions. For a convolution it is one
    column of the unfolded input, so one place of the kernel over one channel of w's group, with
    stride, dilation and padding (padded zeros add nothing); for a transposed one, the inputs whose
    product with w lands inside the output.

    The paper ranks weights only against those of the same output (row), at the same sparsity in every
    row. ``compare="row"`` does that under any scope: the score is the weight's rank in its row, from 1/n
    to 1, so a global or layerwise cut takes the same share of every row, to within one weight.
    ``compare="tensor"`` gives the raw score. It is meant for `Layerwise`: between layers ‖x‖ grows with
    the number of positions, so a global cut of it spares the layers with the largest images.

    Attributes:
        compare: row or tensor.

    Raises:
        InvalidArgument: for another name.
    """

    compare: Literal["row", "tensor"] = "row"

    def __post_init__(self) -> None:
        if self.compare not in ("row", "tensor"):
            raise InvalidArgument(f"compare must be row or tensor, got {self.compare!r}.")

    def __call__(self, inputs: ScoreInputs) -> Named:
        """Scores from batches, with or without labels.

        Raises:
            ScoreError: naming a weight whose layer is never called, so that its inputs are not seen, or takes
                or gives something else than one tensor.
        """
        model = unwrap(inputs.model)
        layers = layers_of(model, inputs.targets)
        names = {layer: name for name, holders in layers.items() for layer in holders}
        squares: dict[nn.Module, Tensor] = {}

        def look(
            layer: nn.Module, args: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor
        ) -> None:
            x = input_of(names[layer], layer, args, named, output)
            found = squared_norms(layer, x, output)
            squares[layer] = squares[layer].add_(found) if layer in squares else found

        for x, _ in inputs.stream():  # which may try the model out, so it is watched for this pass only
            with ExitStack() as stack, torch.no_grad():
                for layer in chain.from_iterable(layers.values()):
                    stack.callback(layer.register_forward_hook(look, with_kwargs=True).remove)
                call(model, x)
        scores: dict[str, Tensor] = {}
        for name, weight in inputs.weights.items():
            seen = [_spread(layer, squares[layer]) for layer in layers[name] if layer in squares]
            if not seen:
                raise ScoreError(
                    f"Wanda never saw an input of {name!r}: its layer is not called, or its weight is used "
                    "elsewhere. Exclude it, or choose another criterion."
                )
            score = weight.abs() * torch.stack(seen).sum(0).sqrt()
            scores[name] = _ranks_in_rows(score, layers[name][0]) if self.compare == "row" else score
        return scores


def squared_norms(layer: nn.Module, x: Tensor, output: Tensor) -> Tensor:
    """``‖x‖²`` of what weights are multiplied with in one call of their layer.

    The input is never unfolded: its squares are summed over the batch first.

    Args:
        layer: One of `PRUNABLE_MODULES`.
        x: Its input.
        output: Its output for `x`.

    Returns:
        Shape (input features,) or (input channels, *kernel), in at least float32.
    """
    energy = x.to(torch.promote_types(x.dtype, torch.float32)).square()
    if isinstance(layer, nn.Linear):
        return energy.reshape(-1, x.shape[-1]).sum(0)
    layer = cast("Convolution | Transposed", layer)
    n_dims = len(layer.kernel_size)
    if x.ndim == n_dims + 2:  # otherwise one sample without a batch axis
        energy = energy.sum(0)
    size = output.shape[-n_dims:]
    if isinstance(layer, TRANSPOSED):
        return _sums_inside(layer, energy, size)
    return _sums_under_kernel(layer, energy, size)


def _spread(layer: nn.Module, sums: Tensor) -> Tensor:
    """`squared_norms` in a shape that broadcasts to the layer's weight."""
    if isinstance(layer, nn.Linear):
        return sums
    layer = cast("Convolution | Transposed", layer)
    if isinstance(layer, TRANSPOSED):
        return sums[:, None]
    by_group = sums.unflatten(0, (layer.groups, 1, -1))  # each group of outputs has inputs of its own
    rows = layer.out_channels // layer.groups
    return by_group.expand(-1, rows, *by_group.shape[2:]).flatten(0, 1)


def _sums_under_kernel(layer: Convolution, energy: Tensor, out: Sequence[int]) -> Tensor:
    """Sums of `energy` (C, …) over the places that each offset of the kernel visits: (C, *kernel)."""
    sums = [visited.flatten(1).sum(1) for visited in under_kernel(layer, energy, out)]
    return torch.stack(sums, dim=1).view(energy.shape[0], *layer.kernel_size)


def _sums_inside(layer: Transposed, energy: Tensor, out: Sequence[int]) -> Tensor:
    """Sums of `energy` (C, …) over the inputs that each offset of the kernel puts inside the output."""
    sums = energy.new_empty(energy.shape[0], *layer.kernel_size)
    paddings = cast("tuple[int, ...]", layer.padding)
    for offset in product(*map(range, layer.kernel_size)):
        inside = tuple(
            slice(max(0, -(-(pad - k * dilation) // stride)), max(0, -(-(n + pad - k * dilation) // stride)))
            for k, dilation, stride, pad, n in zip(
                offset, layer.dilation, layer.stride, paddings, out, strict=True
            )
        )
        sums[(slice(None), *offset)] = energy[(slice(None), *inside)].flatten(1).sum(1)
    return sums


def _ranks_in_rows(score: Tensor, layer: nn.Module) -> Tensor:
    """The rank of each weight among those of the same output, over their number: 1 is the highest."""
    if isinstance(layer, TRANSPOSED):
        # (inputs, outputs of a group, …): the inputs of one group meet each of its outputs.
        n_in, n_out = score.shape[0] // layer.groups, score.shape[1]
        grouped = score.reshape(layer.groups, n_in, n_out, prod(score.shape[2:])).transpose(1, 2)
        ranks = _ranks(grouped.reshape(layer.groups * n_out, -1))
        return ranks.reshape(grouped.shape).transpose(1, 2).reshape(score.shape)
    return _ranks(score.flatten(1)).reshape(score.shape)


def _ranks(rows: Tensor) -> Tensor:
    n = rows.shape[1]
    order = rows.argsort(dim=1, stable=True)
    ranks = torch.arange(1, n + 1, dtype=rows.dtype, device=rows.device) / n
    placed = torch.empty_like(rows).scatter_(1, order, ranks.expand_as(rows))
    return torch.where(rows.isfinite(), placed, rows)  # what is no number has no rank, and is refused
