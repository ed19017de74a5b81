"""Run ids are pinned: a run must find its folder again after an upgrade.

If one changes because a field was added, give the field a default that changes nothing. If the meaning
of a run really changed, pin the new id and say so in CHANGELOG.md.
"""

import json
from pathlib import Path

import pytest

from secateur.config import RunConfig, ScoreOptions, Setup, SweepConfig, run_id
from secateur.data import DataOptions
from secateur.recovery import Recovery

CONFIGS = {
    "default": RunConfig(),
    "sparsity 0.95": RunConfig(sparsity=0.95),
    "sparsity 0.5": RunConfig(sparsity=0.5),
    "alpha 0": RunConfig(alpha=0.0),
    "alpha 1": RunConfig(alpha=1.0),
    "magnitude": RunConfig(setup=Setup(score=ScoreOptions(criterion="magnitude"))),
    "joint ema": RunConfig(setup=Setup(score=ScoreOptions(form="joint", accumulate="ema"))),
    "temperature 2": RunConfig(setup=Setup(score=ScoreOptions(temperature=2.0))),
    "layerwise": RunConfig(setup=Setup(scope="layerwise")),
    "floor": RunConfig(setup=Setup(min_density=0.01)),
    "seed 7": RunConfig(setup=Setup(seed=7)),
    "cifar10": RunConfig(setup=Setup(dataset=DataOptions(data="cifar10"), student="resnet20")),
    "long recovery": RunConfig(recovery=Recovery(epochs=160, teacher_views=8)),
    "no recovery": RunConfig(recover="none"),
    "exclude": RunConfig(setup=Setup(exclude=("conv1.weight", "fc.weight"))),
    "stages": RunConfig(stages=10, regrow=True),
    "scope options": RunConfig(setup=Setup(scope="smart-ratios", scope_options={"linear_density": 0.2})),
    "criterion options": RunConfig(
        setup=Setup(score=ScoreOptions(criterion="mycode:Mine", criterion_options={"rounds": 3}))
    ),
    "sweep": SweepConfig(alphas=(0.0, 0.5, 1.0)),
}
PINNED = json.loads(Path(__file__).with_name("run_ids.json").read_text())


@pytest.mark.parametrize("name", CONFIGS)
def test_run_ids_do_not_change(name):
    assert run_id(CONFIGS[name]) == PINNED[name]


def test_every_configuration_has_an_id_of_its_own():
    assert len(set(PINNED.values())) == len(CONFIGS) == len(PINNED)


def test_a_default_written_out_is_the_same_run():
    assert run_id(RunConfig(sparsity=0.9, setup=Setup(seed=0))) == run_id(RunConfig())
