"""What the tests of a cut in stages share."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from secateur.errors import EmptiedLayerWarning
from secateur.naming import Named
from secateur.scores import AbstractCriterion, ScoreInputs
from secateur.stages import Stage, staged_masks


@dataclass(frozen=True)
class Told(AbstractCriterion):
    """The scores it was told, one entry a call."""

    answers: list[Named] = field(hash=False)

    def __call__(self, inputs: ScoreInputs) -> Named:
        return self.answers.pop(0)


def stages_of(model: nn.Module, batches: Any, criterion: AbstractCriterion, **options: Any) -> list[Stage]:
    found: list[Stage] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EmptiedLayerWarning)
        masks = staged_masks(model, batches, criterion, on_stage=found.append, **options)
    assert masks is found[-1].masks
    return found
