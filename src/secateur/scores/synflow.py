"""SynFlow: the flow through each weight of a network whose weights are all positive, without data."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.errors import ScoreError
from secateur.inputs import filled, tensors_of
from secateur.naming import Named
from secateur.scores.base import AbstractCriterion, ScoreInputs
from secateur.scores.functional import Functional, gradients_of


@dataclass(frozen=True)
class SynFlow(AbstractCriterion):
    """``S_w = |w|·∂R/∂|w|``, R the sum of the outputs for an input of ones with every weight made positive.

    https://arxiv.org/abs/2006.05467, ``R = 1ᵀ(Π|W|)1``. As in the authors' code, **all** parameters
    and buffers are made positive, biases and BatchNorm's statistics too, and BatchNorm is in eval mode.
    Of the data only the shape of one sample is taken, no value and no label. The paper applies it in
    100 rounds; a single one may still empty a layer.

    The absolute values are those of a copy in float64, so the model is never written, and R of a deep
    network, which float32 cannot hold, is finite. Scores are divided by the largest of them, which
    changes no ranking, to fit in float32 again.
    """

    def __call__(self, inputs: ScoreInputs) -> Named:
        """Scores in [0, 1], from the shape of the first batch.

        Raises:
            ScoreError: if there is no batch, if its inputs are not floating, or if R is beyond float64.
        """
        x, _ = next(inputs.stream())
        ones: list[Tensor] = []
        for tensor in tensors_of(x):
            if not tensor.is_floating_point():
                raise ScoreError(
                    f"SynFlow feeds ones in place of the inputs, which must be floating, got {tensor.dtype}."
                )
            ones.append(torch.ones_like(tensor[:1], dtype=torch.float64))
        network = Functional.of(inputs.model, torch.float64).map(torch.abs)
        targets = {name: network.parameters[name] for name in inputs.targets}
        flow = network({}, filled(x, ones)).sum()
        slopes, total = gradients_of(flow, targets), float(flow.detach())
        scores = {name: (slope * inputs.weights[name]).abs_() for name, slope in slopes.items()}
        largest = max(float(score.max()) for score in scores.values())
        if not (math.isfinite(largest) and math.isfinite(total)):
            raise ScoreError(
                f"SynFlow's R is {total} and its largest score {largest}. Check the weights for "
                "NaN; if there is none, the network is too deep for float64 and needs another criterion."
            )
        return {name: _scaled(score, largest, inputs.weights[name].dtype) for name, score in scores.items()}


def _scaled(score: Tensor, largest: float, dtype: torch.dtype) -> Tensor:
    return score.div_(largest or 1.0).to(torch.promote_types(dtype, torch.float32))
