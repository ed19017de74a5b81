"""A cut in stages: its schedule, and exact counts whatever the scores are."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from helpers import make_cnn
from secateur.allocate import ERK, AbstractScope, Global, Layerwise, PerTensor, SmartRatios, UniformPlus
from secateur.counts import n_prune
from secateur.naming import Named
from secateur.schedules import geometric_sparsities
from secateur.scores import AbstractCriterion, ScoreInputs
from secateur.stages import staged_masks
from secateur.targets import select_targets
from stages_helpers import Told, stages_of


@dataclass(frozen=True)
class Dice(AbstractCriterion):
    """Other scores at every call, with ties, whatever the model."""

    seed: int = 0
    calls: list[int] = field(default_factory=list, hash=False)

    def __call__(self, inputs: ScoreInputs) -> Named:
        generator = torch.Generator().manual_seed(1000 * self.seed + len(self.calls))
        self.calls.append(1)
        shapes = {name: weight.shape for name, weight in inputs.targets.items()}
        return {
            name: torch.randint(-3, 9, shape, generator=generator).float() for name, shape in shapes.items()
        }


# The schedule


def test_densities_fall_by_the_same_factor() -> None:
    assert geometric_sparsities(0.9375, 4) == pytest.approx((0.5, 0.75, 0.875, 0.9375), abs=1e-15)
    assert geometric_sparsities(0.9, 1) == (0.9,)
    assert geometric_sparsities(0.0, 3) == (0.0, 0.0, 0.0)


@given(sparsity=st.floats(0, 1, exclude_max=True), stages=st.integers(1, 200))
def test_a_schedule_rises_to_exactly_what_was_asked_for(sparsity: float, stages: int) -> None:
    schedule = geometric_sparsities(sparsity, stages)
    assert len(schedule) == stages
    assert schedule[-1] == sparsity
    assert list(schedule) == sorted(schedule)
    assert all(0 <= s < 1 for s in schedule)


# Exact counts, whatever the scores


SCOPES: list[AbstractScope] = [
    Global(),
    Global(min_density=0.05),
    Layerwise(),
    ERK(),
    UniformPlus(last_density=0.05),
    SmartRatios(linear_density=0.01),
    PerTensor({"3.*": 0.0}),
]


@settings(deadline=None, max_examples=60)
@given(
    sparsity=st.one_of(st.floats(0, 0.8), st.sampled_from([0.5, 0.7])),
    stages=st.integers(1, 6),
    regrow=st.booleans(),
    scope=st.sampled_from(SCOPES),
    seed=st.integers(0, 99),
)
def test_every_stage_has_its_exact_count_and_masks_only_shrink_unless_they_may_regrow(
    sparsity: float, stages: int, regrow: bool, scope: AbstractScope, seed: int
) -> None:
    model, regrow = make_cnn(), regrow and stages > 1
    if isinstance(scope, PerTensor):
        sparsity = min(sparsity, 0.45)  # 3.weight is half of all
    options = {"sparsity": sparsity, "stages": stages, "regrow": regrow, "scope": scope}
    found = stages_of(model, None, Dice(seed), **options)
    assert [stage.sparsity for stage in found] == list(geometric_sparsities(sparsity, stages))
    whole = {name: p.numel() for name, p in select_targets(model).items()}
    for stage in found:
        counts = [n_prune(n, stage.sparsity) for n in whole.values()]
        total = sum(counts) if isinstance(scope, Layerwise) else n_prune(sum(whole.values()), stage.sparsity)
        assert stage.masks.n_prune == total
    for before, after in pairwise(found):
        returned = sum(int((after.masks[n] & ~before.masks[n]).sum()) for n in whole)
        assert after.n_returned == returned
        assert regrow or returned == 0


def test_what_is_gone_goes_first_even_below_the_lowest_score_there_is() -> None:
    """Three survivors score the lowest float, and two of them go; what went before must not return."""
    lowest = torch.finfo(torch.float32).min
    model = nn.Linear(8, 1, bias=False)
    first = {"weight": torch.tensor([[5.0, 5, 5, 5, 5, 5, 0, 0]])}
    second = {"weight": torch.tensor([[lowest, lowest, lowest, 1, 2, 3, 9, 9]])}
    masks = staged_masks(model, None, Told([first, second]), sparsity=0.5, stages=2)
    assert masks["weight"].tolist() == [[False, False, True, True, True, True, False, False]]
