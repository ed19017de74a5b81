"""The Python path, `cut` and `prune`, on networks and data made here."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import secateur as sc
from secateur.data import Data

N_CLASSES = 3


def loader(n_batches, seed):
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(n_batches):
        labels = torch.randint(N_CLASSES, (32,), generator=generator)
        images = torch.randn(32, 1, 8, 8, generator=generator) + labels[:, None, None, None]
        batches.append((images, labels))
    return batches


@pytest.fixture
def data():
    parts = {"train": (6, 1), "val": (2, 2), "test": (3, 3), "calibration": (4, 4)}
    made = {name: loader(*how) for name, how in parts.items()}
    return Data(name="blobs", n_classes=N_CLASSES, input_shape=(1, 8, 8), **made)


def network(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return sc.build_model("small-cnn", num_classes=N_CLASSES, in_channels=1)


@pytest.fixture
def student():
    return network(0)


@pytest.fixture
def teacher():
    return network(1)


def test_cut_scores_allocates_and_applies(student, teacher, data):
    expected = sc.allocate(sc.score(student, data.calibration, sc.TeacherGuided(teacher)), sparsity=0.8)
    masks = sc.cut(student, data.calibration, sc.TeacherGuided(teacher), sparsity=0.8)
    assert masks == expected
    masks.check(student)


@pytest.mark.parametrize("batchnorm", ["augmented", "off"])
def test_prune_in_stages_says_what_one_cut_would_have_given(student, data, batchnorm):
    dense = copy.deepcopy(student)
    how = {"sparsity": 0.8, "scope": sc.ERK()}
    result = sc.prune(
        student, data=data, criterion=sc.Snip(), stages=3, regrow=True, batchnorm=batchnorm, **how
    )
    expected = sc.staged_masks(dense, data.calibration, sc.Snip(), stages=3, regrow=True, **how)
    assert result.masks == expected
    stages = json.loads(json.dumps(result.to_json()))["stages"]
    assert (stages["n"], stages["regrow"], len(stages["rows"])) == (3, True, 3)
    assert stages["rows"][-1]["n_prune"] == result.masks.n_prune
    assert stages["rows"][-1]["sparsity"] == 0.8
    one_cut = sc.cut(dense, data.calibration, sc.Snip(), **how)
    assert stages["one_cut"]["cut"] == sc.evaluate(dense, data.test).accuracy
    assert stages["one_cut"]["mask_overlap"] == sc.mask_overlap(one_cut, expected) < 1
    assert (stages["one_cut"]["batchnorm"] is None) == (batchnorm == "off")
    assert sc.prune(dense, data=data, criterion=sc.Magnitude(), sparsity=0.5).stages["one_cut"] is None


def test_prune_leaves_the_student_pruned_and_recovered(student, teacher, data):
    recipes = [sc.Recovery(epochs=2, kd_weight=w, lr=0.01, precision="fp32") for w in (0.0, 0.7)]
    result = sc.prune(student, teacher=teacher, data=data, sparsity=0.7, recovery=recipes)
    result.masks.check(student)
    assert result.sparsity["asked"] == 0.7
    assert result.accuracy["recovered_kd"] == sc.evaluate(student, data.test).accuracy
    assert result.accuracy["recovered"] is not None
    assert len(result.curves["recovered"]) == len(result.curves["recovered_kd"]) == 2
    assert result.size_bytes["sparse"] < result.size_bytes["dense"]
    assert result.to_json()["n_prune"] == result.masks.n_prune


def test_one_recovery_may_be_given_bare(student, teacher, data):
    result = sc.prune(student, teacher=teacher, data=data, sparsity=0.5, recovery=sc.Recovery(epochs=1))
    assert result.accuracy["recovered"] is None
    assert result.accuracy["recovered_kd"] is not None


def test_no_epochs_is_no_recovery(student, data):
    recovery = sc.Recovery(epochs=0, kd_weight=0.0)
    result = sc.prune(student, data=data, sparsity=0.5, criterion=sc.Magnitude(), recovery=recovery)
    assert result.accuracy["recovered"] is None
    assert result.seconds["recovery"] is None


def test_the_teacher_is_not_touched(student, teacher, data):
    before = copy.deepcopy(teacher.state_dict())
    sc.prune(student, teacher=teacher, data=data, sparsity=0.5, recovery=sc.Recovery(epochs=1))
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert teacher.training


def test_magnitude_needs_no_teacher_and_has_no_agreement(student, data):
    result = sc.prune(student, data=data, sparsity=0.5, criterion=sc.Magnitude())
    assert result.accuracy["teacher"] is None
    assert result.diagnostics["agreement"] is None
    assert result.diagnostics["split_half"]["mask_overlap"] == 1.0


def test_the_overlap_of_two_halves_is_held_against_that_of_random_masks(student, data):
    """Two random masks that keep 1/5 share 1/25 of the weights and hold 9/25 together: 1/9."""
    result = sc.prune(student, data=data, sparsity=0.8, criterion=sc.Snip())
    found = result.diagnostics["split_half"]["expected_random"]
    assert found == pytest.approx(1 / 9, abs=1 / result.masks.numel)


def test_batchnorm_can_be_left_alone(student, data):
    running = {n: b.clone() for n, b in student.named_buffers()}
    result = sc.prune(student, data=data, sparsity=0.5, criterion=sc.Magnitude(), batchnorm="off")
    assert result.accuracy["batchnorm"] is None
    assert all(torch.equal(b, running[n]) for n, b in student.named_buffers())
    sc.prune(student, data=data, sparsity=0.5, criterion=sc.Magnitude(), batchnorm="augmented")
    assert any(not torch.equal(b, running[n]) for n, b in student.named_buffers())


def test_a_network_without_batchnorm_reports_none(data):
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, N_CLASSES))
    result = sc.prune(student, data=data, sparsity=0.5, criterion=sc.Magnitude())
    assert result.accuracy["batchnorm"] is None


def test_an_emptied_layer_is_warned_of_and_recorded(data):
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, N_CLASSES))
    with torch.no_grad():
        student[3].weight.mul_(1e-6)
    with pytest.warns(sc.EmptiedLayerWarning, match=r"3\.weight"):
        result = sc.prune(student, data=data, sparsity=0.9, criterion=sc.Magnitude())
    assert "3.weight" in result.warnings[0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"sparsity": 1.0}, r"\[0, 1\)"),
        ({"sparsity": -0.5}, r"\[0, 1\)"),
        ({"sparsity": float("nan")}, "sparsity"),
        ({"batchnorm": "sometimes"}, "batchnorm"),
        ({"stages": 0}, "stages must be at least 1"),
        ({"regrow": True}, "regrow needs at least 2 stages"),
        ({"recovery": [sc.Recovery(), sc.Recovery(epochs=3)]}, "at most one"),
        ({"teacher": None}, "needs a teacher"),
        (
            {"criterion": "magnitude"},
            r"criterion must be an AbstractCriterion, such as Magnitude\(\), got 'magn",
        ),
        ({"criterion": sc.Magnitude}, "criterion must be .* got the class Magnitude"),
        ({"scope": "erk"}, r"scope must be an AbstractScope, such as ERK\(\), got 'erk'"),
        ({"pattern": "2:4"}, r"pattern must be an AbstractPattern, such as NM\(2, 4\), got '2:4'"),
        ({"calibration_recovery": sc.Recovery()}, "calibration_recovery must be a CalibrationRecovery"),
        ({"data": []}, r"data must be a Data, such as .*, got \[\]"),
        ({"folder": "runs/x"}, "folder must be a RunFolder, such as .* got 'runs/x'"),
        ({"watcher": print}, "watcher must be a Watcher"),
        ({"recovery": "both"}, r"recovery must be a Recovery, such as .* got 'both'"),
        ({"recovery": [sc.Recovery(), None]}, "recovery must be a Recovery"),
        ({"teacher": "resnet56"}, "teacher must be a Module"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"stages": 2.5}, r"stages must be a whole number of at least 1, got 2\.5"),
        ({"teacher": None, "criterion": sc.Magnitude(), "recovery": sc.Recovery()}, "needs a teacher"),
    ],
)
def test_bad_arguments_are_refused_before_anything_happens(student, teacher, data, arguments, says):
    before = copy.deepcopy(student.state_dict())
    with pytest.raises(sc.InvalidArgument, match=says):
        sc.prune(student, **{"teacher": teacher, "data": data, "sparsity": 0.5, **arguments})
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_a_student_cannot_be_its_own_teacher(student, data):
    for teacher in (student, nn.Sequential(student)):
        with pytest.raises(sc.InvalidArgument, match="deepcopy"):
            sc.prune(student, teacher=teacher, data=data, sparsity=0.5)


@pytest.mark.parametrize(
    ("recipe", "how", "error", "says"),
    [
        ({"teacher_views": 2}, {}, sc.TrainingError, "teacher_views=2 needs a loader that knows its samples"),
        ({}, {"execution": "graph"}, sc.InvalidArgument, "needs a CUDA device"),
        ({}, {"train": iter(())}, sc.TrainingError, "needs a length above 0"),
        (
            {},
            {"val": [torch.randn(4, 1, 8, 8)]},
            sc.DataError,
            "the val batches .* cannot be used: evaluation needs labels",
        ),
    ],
)
def test_a_recovery_that_cannot_begin_is_refused_before_the_cut(
    student, teacher, data, recipe, how, error, says
):
    options = {"execution": how.pop("execution")} if "execution" in how else {}
    before = copy.deepcopy(student.state_dict())
    with pytest.raises(error, match=says):
        sc.prune(
            student,
            teacher=teacher,
            data=replace(data, **how),
            sparsity=0.5,
            recovery=sc.Recovery(epochs=1, **recipe),
            **options,
        )
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


@pytest.mark.parametrize(
    ("test", "says"),
    [
        ([], "the test batches of 'blobs' cannot be used: the loader yielded no batch"),
        ([torch.randn(4, 1, 8, 8)], "the test batches .* evaluation needs labels"),
        ([(torch.randn(2, 1, 8, 8), torch.tensor([3, 99]))], "the test batches .* labels go from 3 to 99"),
    ],
)
def test_what_cannot_be_tested_on_is_refused_before_the_cut(student, data, monkeypatch, test, says):
    monkeypatch.setattr("secateur.pipeline.staged_masks", None)
    with pytest.raises(sc.DataError, match=says):
        sc.prune(student, data=replace(data, test=test), sparsity=0.5, criterion=sc.Magnitude())


def test_a_state_that_no_file_holds_is_refused_before_the_cut(data, monkeypatch):
    class Noted(nn.Flatten):
        def get_extra_state(self):
            return {"seen": 1}

        def set_extra_state(self, state):
            pass

    monkeypatch.setattr("secateur.pipeline.staged_masks", None)
    student = nn.Sequential(Noted(), nn.Linear(64, N_CLASSES))
    with pytest.raises(sc.CheckpointError, match=r"'0\._extra_state' is a dict, not a tensor"):
        sc.prune(student, data=data, sparsity=0.5, criterion=sc.Magnitude())


@pytest.mark.parametrize("part", ["calibration", "val", "test"])
def test_batches_that_can_be_gone_through_once_are_refused(student, data, part):
    batches = getattr(data, part)
    once = iter(batches)
    recovery = sc.Recovery(epochs=1, kd_weight=0)
    with pytest.raises(sc.InvalidArgument, match=f"the {part}.* batches .* can be gone through once"):
        sc.prune(
            student,
            data=replace(data, **{part: once}),
            sparsity=0.5,
            criterion=sc.TaskGradient(),
            recovery=recovery,
        )
    assert next(once) is batches[0]  # none is lost


def test_a_student_must_be_a_network(data):
    with pytest.raises(sc.InvalidArgument, match=r"student must be a Module, .* got None"):
        sc.prune(None, data=data, sparsity=0.5, criterion=sc.Magnitude())


class Torn(nn.Module):
    """Fails as the code of a user may."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, N_CLASSES)

    def forward(self, x):
        raise KeyError("boom")


@pytest.mark.parametrize(
    ("network", "says"),
    [
        (
            Torn(),
            r"student \(Torn\) failed on inputs of shape \(2, 1, 8, 8\) from 'blobs' with KeyError: 'boom'",
        ),
        (
            nn.Linear(3, N_CLASSES),
            r"the student \(Linear\) failed on .* with RuntimeError: mat1 and mat2 shapes",
        ),
    ],
)
def test_a_network_that_does_not_take_the_data_is_told_with_their_shape(data, network, says):
    with pytest.raises(sc.DataError, match=says) as caught:
        sc.prune(network, data=data, sparsity=0.5, criterion=sc.Magnitude())
    assert caught.value.__cause__ is not None


def test_a_sparsity_of_numpy_can_be_written_down(student, data):
    result = sc.prune(student, data=data, sparsity=np.float32(0.5), criterion=sc.Magnitude())
    assert json.loads(json.dumps(result.to_json()))["sparsity"]["asked"] == 0.5


def test_what_stays_dense_is_told_once(student, data):
    nn.utils.parametrizations.weight_norm(next(m for m in student.modules() if isinstance(m, nn.Conv2d)))
    with pytest.warns(sc.LeftDenseWarning) as caught:
        result = sc.prune(student, data=data, criterion=sc.Magnitude(), sparsity=0.5)
    assert len(caught) == len(result.warnings) == 1


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_networks_of_other_classes_are_refused(student, teacher, data, role):
    networks = {"student": student, "teacher": teacher}
    networks[role] = sc.build_model("small-cnn", num_classes=N_CLASSES + 1, in_channels=1)
    with pytest.raises(sc.DataError, match=role):
        sc.prune(networks["student"], teacher=networks["teacher"], data=data, sparsity=0.5)


def test_nan_in_calibration_data_is_refused_and_the_student_kept(student, teacher, data):
    images, labels = data.calibration[1]
    images = images.clone()
    images[0, 0, 0, 0] = float("nan")
    spoilt = replace(data, calibration=[data.calibration[0], (images, labels)])
    before = copy.deepcopy(student.state_dict())
    with pytest.raises(sc.DataError, match="NaN"):
        sc.prune(student, teacher=teacher, data=spoilt, sparsity=0.5)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_prune_by_name_of_the_data():
    student = sc.build_model("small-cnn", num_classes=10, in_channels=1)
    result = sc.prune(student, data="digits", sparsity=0.5, criterion=sc.Magnitude())
    assert result.about["data"]["name"] == "digits"
