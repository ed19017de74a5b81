"""Configuration: YAML in and out, strictness, and what flags build."""

from dataclasses import replace

import pytest
import torch
import tyro

from secateur.allocate import ERK, Global, Layerwise, PerTensor, SmartRatios
from secateur.augment import FlipShift
from secateur.calibration import CalibrationRecovery
from secateur.config import (
    CalibrationOptions,
    RunConfig,
    ScoreOptions,
    Setup,
    SweepConfig,
    build_criterion,
    build_scope,
    check_names,
    dump_config,
    load_config,
)
from secateur.data import Augmentation, DataOptions, ImageLoader, ImageSplit
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
            score=ScoreOptions(
                criterion="task-gradient", saliency="grad^2", criterion_options={"momentum": 0.5}
            ),
            scope="per-tensor",
            scope_options={"sparsities": {"fc.*": 0.5, "*": 0.9}},
            exclude=("conv1.weight",),
            pretrain=Recovery(epochs=3, kd_weight=0.0),
        ),
        sparsity=0.95,
        stages=10,
        calibration=CalibrationOptions(steps=60, augment="mix", teacher="teacher", lr=0.02),
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
        ("setup: {scope_options: [a]}", ["scope_options", "dict", "['a']"]),
        ("stages: 2.5", ["stages", "int"]),
        ("calibration: {stps: 60}", ["calibration", "stps", "Did you mean 'steps'"]),
        ("calibration: {steps: 6, augment: flip}", ["calibration: augment", "'flip-shift'", "'flip'"]),
        ("calibration: {steps: 6, lr: 0.0}", ["run.yaml: calibration: lr must be", "0.0"]),
        ("sparsity: 1.0", ["run.yaml: sparsity", "[0, 1)"]),
        ("- a\n- b", ["mapping"]),
        ("a: [", ["cannot read"]),
        ("a: 2001-13-45", ["cannot read", "month"]),
        ("sparsity: 0.9\nsparsity: 0.5", ["cannot read", "'sparsity' appears twice", "line 1"]),
        ("setup:\n  {seed: 1, device: cpu, seed: 1}", ["'seed' appears twice", "line 2"]),
        ("setup: {scope_options: {a: 1, 'a': 2}}", ["'a' appears twice"]),
        ("setup: {seed: '1.5'}", ["seed", "int", "'1.5'"]),
        ("stages: 1e20", ["stages", "int", "'1e20'"]),
        ("sparsity: 1e-2x", ["sparsity", "float", "'1e-2x'"]),
        ("recovery: {lr: 1e999}", ["lr", "float", "'1e999'"]),
        ("recovery: {lr: nan}", ["lr", "float", "'nan'"]),
    ],
)
def test_bad_yaml_names_the_key_and_what_is_allowed(tmp_path, text, names):
    with pytest.raises(InvalidArgument) as caught:
        load_config(write(tmp_path, text), RunConfig)
    for name in names:
        assert name.lower() in str(caught.value).lower()


def test_words_and_whole_numbers_are_what_they_look_like(tmp_path):
    text = "batchnorm: off\npattern: 2:4\nstages: 010\nsetup: {device: yes}\nregrow: true"
    made = load_config(write(tmp_path, text), RunConfig)
    assert (made.batchnorm, made.pattern, made.stages, made.setup.device) == ("off", "2:4", 10, "yes")
    assert made.regrow is True
    assert load_config(write(tmp_path, dump_config(made)), RunConfig) == made


def test_numbers_that_yaml_takes_for_text_are_read(tmp_path):
    text = "sparsity: 9e-1\nstages: '3'\nrecovery: {lr: 1e-2, epochs: 1e1}\nsetup: {dataset: {mean: ['.5']}}"
    made = load_config(write(tmp_path, text), RunConfig)
    assert (made.sparsity, made.stages, made.recovery.lr, made.recovery.epochs) == (0.9, 3, 0.01, 10)
    assert type(made.recovery.epochs) is int
    assert made.setup.dataset.mean == (0.5,)
    made = criterion(criterion="task-gradient", criterion_options={"accumulate": "ema", "momentum": "5e-1"})
    assert made == TaskGradient(accumulate="ema", momentum=0.5)


def test_what_is_merged_in_may_be_overridden(tmp_path):
    text = "setup: {pretrain: &recipe {lr: 0.05, epochs: 7}}\nrecovery: {<<: *recipe, epochs: 3}"
    recovery = load_config(write(tmp_path, text), RunConfig).recovery
    assert (recovery.lr, recovery.epochs) == (0.05, 3)


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
        lambda: RunConfig(stages=0),
        lambda: RunConfig(regrow=True),
        lambda: RunConfig(stages=2, regrow=True, calibration=CalibrationOptions(steps=5)),
        lambda: CalibrationOptions(lr=0.02),
        lambda: CalibrationOptions(final_steps=0),
        lambda: CalibrationOptions(steps=-1),
        lambda: Setup(teacher="student", teacher_weights="t.safetensors"),
        lambda: Setup(teacher="student", pretrain=Recovery(kd_weight=0.5)),
        lambda: Setup(min_density=2),
        lambda: Setup(seed=-1),
        lambda: Setup(seed=2**32),
        lambda: Setup(scope="layerwise", min_density=0.1),
        lambda: SweepConfig(alphas=(1.5,)),
        lambda: SweepConfig(sparsities=(1.0,)),
        lambda: SweepConfig(sparsities=()),
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
        ({"criterion": "magnitude", "alpha": 0.5}, ["alpha", "magnitude", "no options"]),
        ({"criterion": "task-gradient", "temperature": 2.0}, ["temperature", "saliency"]),
        ({"criterion": "teacher-guided"}, ["teacher"]),
        ({"criterion": "task-gradient", "criterion_options": {"alpha": 0.5}}, ["alpha", "momentum"]),
        (
            {"criterion": "task-gradient", "momentum": 0.5, "criterion_options": {"momentum": 0.6}},
            ["momentum of criterion_options", "give it once"],
        ),
        ({"criterion": "random", "criterion_options": {"seed": 3}}, ["seed", "no options"]),
    ],
)
def test_options_that_do_not_apply_are_refused_not_ignored(options, names):
    with pytest.raises(InvalidArgument) as caught:
        criterion(**options)
    for name in names:
        assert name in str(caught.value)


def test_options_without_a_flag_reach_the_criterion():
    options = {"momentum": 0.5, "accumulate": "ema"}
    made = criterion(criterion="task-gradient", saliency="grad", criterion_options=options)
    assert made == TaskGradient(saliency="grad", accumulate="ema", momentum=0.5)


def test_scopes():
    assert build_scope(Setup(min_density=0.02)) == Global(min_density=0.02)
    assert build_scope(Setup(scope="layerwise")) == Layerwise()
    assert build_scope(Setup(scope="erk")) == ERK()
    for yes in (True, "True"):  # the latter is how flags spell it
        smart = Setup(scope="smart-ratios", scope_options={"linear_density": 1, "over_square": yes})
        assert build_scope(smart) == SmartRatios(linear_density=1.0, over_square=True)
    by_hand = Setup(scope="per-tensor", scope_options={"sparsities": {"fc*": 0, "*": 0.9}})
    assert build_scope(by_hand) == PerTensor({"fc*": 0.0, "*": 0.9})


@pytest.mark.parametrize(
    ("setup", "names"),
    [
        (Setup(scope="golbal"), ["golbal", "Did you mean 'global'", "pkg.mod:Class"]),
        (Setup(scope="erk", scope_options={"min_density": 0.1}), ["min_density", "'erk'", "no options"]),
        (Setup(scope="per-tensor"), ["'per-tensor' needs", "sparsities"]),
        (Setup(scope="per-tensor", scope_options={"sparsities": {"a": "x"}}), ["sparsities", "float", "'x'"]),
        (Setup(scope="per-tensor", scope_options={"sparsities": 0.5}), ["sparsities", "Mapping", "0.5"]),
        (Setup(scope="smart-ratios", scope_options={"over_square": 1}), ["over_square", "bool", "1"]),
    ],
)
def test_bad_scopes_are_refused_before_any_work(setup, names):
    with pytest.raises(InvalidArgument) as caught:
        check_names(setup, alpha=None)
    for name in names:
        assert name in str(caught.value)


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["a=1", "b=0.5", "c=1e-4"], {"a": 1, "b": 0.5, "c": 1e-4}),
        (["on=true", "off=null"], {"on": True, "off": None}),
        (["kd=ca-kld", "x=a=b", "nan=NaN"], {"kd": "ca-kld", "x": "a=b", "nan": "NaN"}),
        (['sparsities={"fc.*": 0.5}'], {"sparsities": {"fc.*": 0.5}}),
        ([], {}),
    ],
)
def test_options_as_flags(words, options):
    flags = ["--scope-options", *words]
    assert tyro.cli(Setup, args=flags).scope_options == options
    assert tyro.cli(ScoreOptions, args=["--criterion-options", *words]).criterion_options == options


@pytest.mark.parametrize("word", ["a", "=1"])
def test_an_option_without_name_or_value_is_refused(word, capsys):
    with pytest.raises(SystemExit):
        tyro.cli(Setup, args=["--scope-options", word])
    assert "name=value" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recover", "weights"), [("none", []), ("plain", [0.0]), ("kd", [0.7]), ("both", [0.0, 0.7])]
)
def test_recoveries_end_with_the_teacher(recover, weights):
    assert [r.kd_weight for r in RunConfig(recover=recover).recoveries] == weights


def test_options_of_calibration_make_its_recipe():
    assert CalibrationOptions().recovery(3, []) is None
    assert CalibrationOptions(steps=120).recovery(0, []) == CalibrationRecovery()
    made = CalibrationOptions(steps=5, final_steps=9, batchnorm="fixed", augment="mix").recovery(
        3, moved_by(4)
    )
    expected = CalibrationRecovery(steps=5, final_steps=9, batchnorm="fixed", augment="mix", seed=3)
    assert made == expected


def moved_by(pixels, *, flip=True):
    images = ImageSplit(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))
    moves = Augmentation(crop_padding=pixels, flip=flip)
    return ImageLoader(images, batch_size=2, mean=(0.5,), std=(0.5,), augmentation=moves)


def test_calibration_looks_at_images_as_training_does_unless_told_otherwise():
    for train, look in (
        (moved_by(2), FlipShift(2, flip=True)),
        (moved_by(3, flip=False), FlipShift(3, flip=False)),
        (moved_by(0), FlipShift(0, flip=True)),
        (moved_by(0, flip=False), "none"),
        (replace(moved_by(2), augmentation=None), "none"),
        ([], "none"),
    ):
        assert CalibrationOptions(steps=6).recovery(0, train).augment == look
        assert CalibrationOptions(steps=6, augment="none").recovery(0, train).augment == "none"


def test_who_needs_a_teacher():
    magnitude = Setup(score=ScoreOptions(criterion="magnitude"), student_weights="s.safetensors")
    assert not RunConfig(setup=magnitude, recover="none").wants_teacher
    assert RunConfig(setup=magnitude, recover="kd").wants_teacher
    assert RunConfig(recover="none").wants_teacher
    for who, wanted in (("student", False), ("teacher", True)):
        taught = CalibrationOptions(steps=5, teacher=who)
        assert RunConfig(setup=magnitude, recover="none", calibration=taught).wants_teacher is wanted
