"""Configuration: YAML in and out, strictness, and what flags build."""

import pytest
import torch

from secateur.config import (
    RunConfig,
    ScoreOptions,
    Setup,
    SweepConfig,
    build_criterion,
    build_scope,
    dump_config,
    load_config,
)
from secateur.data import DataOptions
from secateur.errors import InvalidArgument
from secateur.recovery import Recovery
from secateur.scores import Magnitude, Random, TaskGradient, TeacherGuided


def write(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def test_yaml_round_trip_keeps_every_field(tmp_path):
    config = RunConfig(
        setup=Setup(
            dataset=DataOptions(data="cifar10", mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0), augment=False),
            student="resnet20",
            score=ScoreOptions(criterion="task-gradient", saliency="grad^2"),
            exclude=("conv1.weight",),
            pretrain=Recovery(epochs=3, kd_weight=0.0),
        ),
        sparsity=0.95,
        recover="both",
        recovery=Recovery(epochs=2, precision="fp32"),
    )
    assert load_config(write(tmp_path, dump_config(config)), RunConfig) == config


def test_sweep_round_trip(tmp_path):
    config = SweepConfig(alphas=(0.0, 0.5), sparsities=(0.8,))
    assert load_config(write(tmp_path, dump_config(config)), SweepConfig) == config


def test_an_empty_file_is_the_default(tmp_path):
    assert load_config(write(tmp_path, ""), RunConfig) == RunConfig()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("sparsty: 0.9", ["sparsty", "did you mean 'sparsity'"]),
        ("sparsity: high", ["sparsity", "'high'", "float"]),
        ("sparsity: true", ["sparsity", "True"]),
        ("recover: maybe", ["recover", "'kd'", "'maybe'"]),
        ("setup: 3", ["setup", "3"]),
        ("setup: {seed: 1.5}", ["seed", "int"]),
        ("setup: {include: conv1}", ["include", "conv1"]),
        ("- a\n- b", ["mapping"]),
        ("a: [", ["cannot read"]),
    ],
)
def test_bad_yaml_names_the_key_and_what_is_allowed(tmp_path, text, names):
    with pytest.raises(InvalidArgument) as caught:
        load_config(write(tmp_path, text), RunConfig)
    for name in names:
        assert name.lower() in str(caught.value).lower()


def test_python_tags_are_not_executed(tmp_path):
    with pytest.raises(InvalidArgument, match="cannot read"):
        load_config(write(tmp_path, "sparsity: !!python/object/apply:os.getcwd []"), RunConfig)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InvalidArgument, match=r"nowhere\.yaml"):
        load_config(tmp_path / "nowhere.yaml", RunConfig)


@pytest.mark.parametrize(
    "make",
    [
        lambda: RunConfig(sparsity=1.0),
        lambda: RunConfig(sparsity=-0.1),
        lambda: RunConfig(sparsity=90),
        lambda: RunConfig(sparsity=float("nan")),
        lambda: RunConfig(recover="kd", recovery=Recovery(kd_weight=0.0)),
        lambda: Setup(min_density=2),
        lambda: Setup(scope="layerwise", min_density=0.1),
        lambda: SweepConfig(alphas=(1.5,)),
        lambda: SweepConfig(sparsities=(1.0,)),
    ],
)
def test_values_out_of_range_are_refused(make):
    with pytest.raises(InvalidArgument):
        make()


def criterion(alpha=None, teacher=None, seed=0, **options):
    return build_criterion(Setup(score=ScoreOptions(**options), seed=seed), alpha=alpha, teacher=teacher)


def test_criteria_get_their_options_and_their_own_defaults():
    teacher = torch.nn.Linear(2, 2)
    assert criterion(teacher=teacher) == TeacherGuided(teacher)
    made = criterion(alpha=0.25, teacher=teacher, temperature=2.0, kd="ca-kld", beta=0.3)
    assert made == TeacherGuided(teacher, alpha=0.25, temperature=2.0, kd="ca-kld", beta=0.3)
    assert criterion(criterion="magnitude") == Magnitude()
    assert criterion(criterion="random", seed=5) == Random(seed=5)
    assert criterion(criterion="task-gradient", saliency="grad") == TaskGradient(saliency="grad")


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"criterion": "magnitud"}, ["magnitud", "Did you mean 'magnitude'"]),
        ({"criterion": "magnitude", "alpha": 0.5}, ["--alpha", "magnitude", "no options"]),
        ({"criterion": "task-gradient", "temperature": 2.0}, ["--temperature", "saliency"]),
        ({"criterion": "teacher-guided"}, ["teacher"]),
    ],
)
def test_options_that_do_not_apply_are_refused_not_ignored(options, names):
    with pytest.raises(InvalidArgument) as caught:
        criterion(**options)
    for name in names:
        assert name in str(caught.value)


def test_scopes():
    assert build_scope(Setup(min_density=0.02)).min_density == 0.02
    assert type(build_scope(Setup(scope="layerwise"))).__name__ == "Layerwise"


@pytest.mark.parametrize(
    ("recover", "weights"), [("none", []), ("plain", [0.0]), ("kd", [0.7]), ("both", [0.0, 0.7])]
)
def test_recoveries_end_with_the_teacher(recover, weights):
    assert [r.kd_weight for r in RunConfig(recover=recover).recoveries] == weights


def test_who_needs_a_teacher():
    magnitude = Setup(score=ScoreOptions(criterion="magnitude"), student_weights="s.safetensors")
    assert not RunConfig(setup=magnitude, recover="none").wants_teacher
    assert RunConfig(setup=magnitude, recover="kd").wants_teacher
    assert RunConfig(recover="none").wants_teacher
