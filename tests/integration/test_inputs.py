"""Networks that take several tensors, by place or by name: the same results as from one tensor."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from helpers import Indexed, build
from integration.train_helpers import Gated, InTwo, Stacked, Tape, in_two
from secateur.calibration import CalibrationRecovery
from secateur.cli import main
from secateur.data import Data
from secateur.deploy import network_of_run
from secateur.errors import DataError, InvalidArgument, RunError
from secateur.inputs import Arguments, as_inputs, call, joined
from secateur.naming import split_batches
from secateur.scores import CRITERIA
from secateur.steps import RecordedSteps, StepInputs, make_steps
from secateur.strategies import AbstractStrategy, EntropyGuided, IterativeMagnitude, carry_out
from secateur.strategies.activations import layer_entropies
from secateur.targets import select_targets
from secateur.testing.networks import CLASSES, images, make_cnn, seeded

CPU = torch.device("cpu")
FORMS: dict[str, Callable[[Tensor, Tensor, Tensor], object]] = {
    "by place": lambda x, gate, y: ((x, gate), y),
    "by name": lambda x, gate, y: ({"gate": gate, "x": x}, y),
    "a dict with labels": lambda x, gate, y: {"x": x, "gate": gate, "labels": y},
}
either_form = pytest.mark.parametrize("form", FORMS)


def batches(n: int = 4, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    pairs: list[tuple[Tensor, Tensor]] = []
    for _ in range(n):
        labels = torch.randint(CLASSES, (8,), generator=generator)
        pairs.append((torch.randn(8, 14, generator=generator) + labels[:, None], labels))
    return pairs


def formed(form: str, pairs: list[tuple[Tensor, Tensor]]) -> list[object]:
    return [FORMS[form](*in_two(x), y) for x, y in pairs]


def networks(seed: int = 0) -> tuple[Stacked, Gated]:
    """Two networks with the same weights."""
    with seeded(seed):
        stacked, gated = Stacked(), Gated()
    gated.load_state_dict(stacked.state_dict())
    return stacked, gated


def require_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)


@either_form
@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_scores_as_from_one_tensor(name: str, form: str) -> None:
    scores: list[Mapping[str, Tensor]] = []
    for place, given in enumerate((batches(), formed(form, batches()))):
        student, teacher = networks()[place], networks(1)[place]
        scores.append(sc.score(student, given, build(CRITERIA[name], teacher)))
    require_same(*scores)


@pytest.mark.parametrize("options", [{"draw": "exact"}, {"rows": 5}, {"block": 4}])
def test_curvature_from_rows_of_several_tensors(options: dict[str, Any]) -> None:
    (student, gated), (teacher, taught) = networks(), networks(1)
    expected = sc.score(student, batches(), sc.TeacherCurvature(teacher, **options))
    given = formed("by name", batches())
    require_same(sc.score(gated, given, sc.TeacherCurvature(taught, **options)), expected)


@either_form
@pytest.mark.parametrize("criterion", [sc.TeacherFisher, sc.TeacherCurvature, sc.LayerReconstruction])
def test_a_cut_in_stages_with_steps(criterion: Callable[..., Any], form: str) -> None:
    recovery = CalibrationRecovery(steps=3, final_steps=5, batch_size=7, precision="fp32")
    for each in (recovery, None):
        ends: list[Mapping[str, Tensor]] = []
        for place, given in enumerate((batches(), formed(form, batches()))):
            student, teacher = networks()[place], networks(1)[place]
            how: Any = {"sparsity": 0.6, "stages": 3, "recovery": each}
            sc.cut(student, given, criterion(teacher), **how)
            ends.append(student.state_dict())
        require_same(*ends)


@either_form
def test_training_evaluation_and_batchnorm(form: str) -> None:
    recipe = sc.Recovery(epochs=2, kd_weight=0.5, precision="fp32")
    found: list[tuple[Any, ...]] = []
    for place, given in enumerate((batches(), formed(form, batches()))):
        student, teacher = networks()[place], networks(1)[place]
        masks = sc.cut(student, given, sc.TeacherGuided(teacher), sparsity=0.5)
        assert sc.reestimate_batchnorm(student, given) == 1
        losses = [e.loss for e in sc.fit(student, given, recipe, masks=masks, teacher=teacher)]
        found.append((losses, sc.evaluate(student, given), student.state_dict()))
    assert found[0][:2] == found[1][:2]
    require_same(found[0][2], found[1][2])


def data_of(form: str | None) -> Data:
    parts: dict[str, Any] = {
        name: batches(4, seed) if form is None else formed(form, batches(4, seed))
        for seed, name in enumerate(("train", "val", "test", "calibration"))
    }
    return Data(name="gated", n_classes=CLASSES, input_shape=(14,) if form is None else (), **parts)


def test_pruning_as_a_whole() -> None:
    found: list[Any] = []
    for place, form in enumerate((None, "a dict with labels")):
        student, teacher = networks()[place], networks(1)[place]
        recovery = sc.Recovery(epochs=1, kd_weight=0.7, precision="fp32")
        result = sc.prune(student, teacher=teacher, data=data_of(form), sparsity=0.5, recovery=recovery)
        found.append((result.accuracy, student.state_dict()))
    assert found[0][0] == found[1][0]
    require_same(found[0][1], found[1][1])


@pytest.mark.parametrize("views", [0, 2])
@pytest.mark.parametrize("strategy", [EntropyGuided(), IterativeMagnitude(rounds=2)])
def test_strategies(strategy: AbstractStrategy, views: int) -> None:
    """With a teacher who is asked, or remembered."""
    x, y = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    recipe = sc.Recovery(epochs=4, kd_weight=0.5, precision="fp32", teacher_views=views)
    ends: list[Mapping[str, Tensor]] = []
    for place, train in enumerate((Indexed(x, y), InTwo(x, y))):
        student, teacher = networks()[place], networks(1)[place]
        given = [batch[:2] for batch in train.epoch(0)]
        how: Any = {"train": train, "calibration": given, "teacher": teacher, "recipe": recipe}
        carry_out(strategy, student, sparsity=0.6, **how)
        ends.append(student.state_dict())
    require_same(*ends)


@pytest.mark.parametrize("taught", [False, True])
def test_recorded_steps_run_on_memory_of_their_own(taught: bool) -> None:

    def loss_of(network: Callable[..., Any], batch: StepInputs) -> Tensor:
        target = batch.labels if batch.guidance is None else batch.guidance.softmax(1)
        return nn.functional.cross_entropy(call(network, batch.inputs), target)

    ends: list[Mapping[str, Tensor]] = []
    for recorded in (False, True):
        model = networks()[1]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        steps: Any = make_steps(model, optimizer, loss_of, execution="eager", device=CPU, n_steps=0)
        steps = RecordedSteps(steps, Tape().record, nullcontext, CPU) if recorded else steps
        losses: list[float] = []
        for x, y in batches(6):
            vector, gate = in_two(x)
            given = Arguments((vector,), {"gate": gate})
            losses.append(float(steps(StepInputs(given, y, x[:, :CLASSES] if taught else None), 0.125)))
        ends.append({**model.state_dict(), "losses": torch.tensor(losses)})
    require_same(*ends)


def test_layer_entropies() -> None:
    stacked, gated = networks()
    expected = layer_entropies(stacked, batches(), select_targets(stacked))
    given = formed("by place", batches())
    assert layer_entropies(gated, given, select_targets(gated)) == expected


def test_a_criterion_asks_for_logits_whatever_the_inputs_are() -> None:
    class Confidence(sc.AbstractCriterion):
        def __call__(self, inputs: sc.ScoreInputs) -> dict[str, Tensor]:
            total = sum(
                float(inputs.logits(x).detach().softmax(1).max(1).values.sum()) for x, _ in inputs.stream()
            )
            return {name: weight.abs() * total for name, weight in inputs.weights.items()}

    stacked, gated = networks()
    expected = sc.score(stacked, batches(), Confidence())
    require_same(sc.score(gated, formed("by name", batches()), Confidence()), expected)


class TestArguments:
    given = Arguments((torch.arange(6.0).view(3, 2),), {"mask": torch.tensor([True, False, True])})

    def test_is_handled_as_one_tensor_is(self) -> None:
        assert len(self.given) == 3
        some = self.given[torch.tensor([2, 0])]
        assert some.positional[0].tolist() == [[4.0, 5.0], [0.0, 1.0]]
        assert some.named["mask"].tolist() == [True, True]
        assert [len(part) for part in self.given.split(2)] == [2, 1]
        again = joined(self.given.split(2))
        assert isinstance(again, Arguments)
        assert [t.tolist() for t in again.tensors] == [t.tolist() for t in self.given.tensors]

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ("words", r"must be a tensor, several of them in a tuple, or a dict .* got str"),
            ({"x": torch.zeros(2), "text": ["a", "b"]}, "input 'text' of a batch must be a tensor, got list"),
            ((torch.zeros(2), 3), "input number 1 of a batch must be a tensor, got int"),
            ({}, "got none"),
            (
                (torch.zeros(2, 3), torch.zeros(1, 3)),
                r"got \[\(2, 3\), \(1, 3\)\]. Repeat along the first axis",
            ),
            ((torch.zeros(2, 3), torch.zeros(())), r"got \[\(2, 3\), \(\)\]"),
        ],
    )
    def test_refuses_what_is_no_batch(self, value: object, message: str) -> None:
        with pytest.raises(DataError, match=message):
            as_inputs(value)


def test_batches_that_differ_in_form_are_refused() -> None:
    student = networks()[1]
    mixed = [*formed("by name", batches(1)), {"x": torch.zeros(2, 6)}]
    with pytest.raises(DataError, match=r"one shape, got gate \(8,\), x \(6,\) and x \(6,\)\. Pad"):
        joined([inputs for inputs, _ in split_batches(mixed, CPU)])
    with pytest.raises(
        DataError, match=r"Gated cannot be called .* \('x'\): missing a required argument: 'gate'"
    ):
        sc.cut(student, mixed, sc.TeacherFisher(copy.deepcopy(student)), sparsity=0.5)
    idle = [{"x": torch.zeros(2, 6), "gate": torch.zeros(2, 8), "idx": torch.arange(2)}]
    with pytest.raises(DataError, match=r"got an unexpected keyword argument 'idx'\. Give what its forward"):
        sc.reestimate_batchnorm(student, idle)
    with pytest.raises(
        DataError, match=r"got 3 parts\. Put several inputs in a tuple or a dict of their own"
    ):
        sc.evaluate(student, [(torch.zeros(2, 6), torch.zeros(2, 8), torch.zeros(2).long())])
    with pytest.raises(DataError, match="NaN or infinity"):
        sc.evaluate(student, [{"x": torch.zeros(2, 6), "gate": torch.full((2, 8), torch.inf)}])


class Seeing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = make_cnn()

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.inner(pixel_values)


def test_a_network_of_another_precision_than_its_inputs_is_told() -> None:
    network = nn.Linear(3, 2).bfloat16()
    for inputs in (torch.ones(4, 3), Arguments(named={"input": torch.ones(4, 3)})):
        with pytest.raises(
            DataError, match=r"Linear are torch.bfloat16, the inputs of a batch torch.float32"
        ):
            call(network, inputs)
    with pytest.raises(
        RuntimeError, match="shapes cannot be multiplied"
    ):  # torch's own words for what is its own
        call(network, torch.ones(4, 5, dtype=torch.bfloat16))


def test_one_image_by_name_is_treated_as_any_image() -> None:
    recovery = CalibrationRecovery(
        steps=2, final_steps=4, batch_size=7, augment="flip-shift", precision="fp32"
    )
    plain, named = make_cnn(), Seeing()
    pictures = [x for x, _ in images()]
    sc.cut(plain, pictures, sc.Magnitude(), sparsity=0.5, recovery=recovery)
    sc.cut(named, [{"pixel_values": x} for x in pictures], sc.Magnitude(), sparsity=0.5, recovery=recovery)
    require_same(named.inner.state_dict(), plain.state_dict())


def test_other_looks_are_of_one_tensor() -> None:
    student = networks()[1]
    recovery = replace(CalibrationRecovery(steps=1, final_steps=1), augment="mix")
    with pytest.raises(InvalidArgument, match="augment changes inputs that are one tensor, got 2 tensors"):
        sc.cut(student, formed("by name", batches()), sc.Magnitude(), sparsity=0.5, recovery=recovery)


def student_of_two(num_classes: int) -> nn.Module:
    assert num_classes == CLASSES
    return Gated()


def data_in_two(seed: int, batch_size: int) -> Data:
    return data_of("a dict with labels")


def test_a_run_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", f"{__name__}:data_in_two", "--sparsity", "0.5", "--out", str(tmp_path / "run")]
    assert main(["prune", *data]) == 2
    assert "there is no student by default for 'gated'" in capsys.readouterr().err
    named = [
        option for role in ("student", "teacher") for option in (f"--{role}", f"{__name__}:student_of_two")
    ]
    assert main(["prune", *data, *named, "--pretrain.epochs", "1", "--recovery.epochs", "1"]) == 0
    assert main(["report", str(tmp_path / "run")]) == 0
    assert main(["compile", str(tmp_path / "run"), "--test", "--batch", "1"]) == 0
    assert "test  32 samples" in capsys.readouterr().out
    with pytest.raises(RunError, match="takes several inputs"):
        network_of_run(tmp_path / "run")


@pytest.mark.parametrize("command", ["prune", "sweep"])
@pytest.mark.parametrize("part", ["val", "test", "calibration"])
def test_batches_of_a_factory_that_can_be_gone_through_once_are_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    part: str,
) -> None:
    data = data_of("a dict with labels")
    once = replace(data, **{part: iter(list(getattr(data, part)))})
    monkeypatch.setitem(globals(), "data_in_two", lambda: once)
    named = [f"--student={__name__}:student_of_two", f"--teacher={__name__}:student_of_two"]
    assert main([command, "--data", f"{__name__}:data_in_two", *named, "--out", str(tmp_path / "run")]) == 2
    assert f"the {part} batches of 'gated' are gone through more than once, but" in capsys.readouterr().err
