"""Bad input gets a clear error that names the thing, and the student comes out as it went in."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from helpers import Snapshot, build, images, make_cnn, make_mlp, same_state, vectors
from secateur.allocate import Global, allocate
from secateur.cutting import cut
from secateur.errors import (
    DataError,
    InvalidArgument,
    LeftDenseWarning,
    ScoreError,
    SecateurError,
    SecateurWarning,
    TargetError,
)
from secateur.naming import split_batches
from secateur.scores import CRITERIA, Magnitude, TaskGradient, TeacherGuided, score
from secateur.targets import select_targets

NAN_BATCH = (torch.full((5, 6), math.nan), torch.zeros(5, dtype=torch.int64))
INF_BATCH = (torch.full((5, 6), math.inf), torch.zeros(5, dtype=torch.int64))


def guided(**options: Any) -> TeacherGuided:
    return TeacherGuided(make_mlp(1), **options)


# Numbers and names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -0.1}, r"alpha must be in \[0, 1\], got -0\.1"),
        ({"alpha": 1.1}, r"alpha must be in \[0, 1\], got 1\.1"),
        ({"alpha": 50}, r"did you mean 0\.5\?"),
        ({"alpha": math.nan}, r"alpha must be in \[0, 1\], got nan"),
        ({"temperature": 0}, "temperature must be a finite number above 0, got 0"),
        ({"temperature": -1.0}, r"temperature .* got -1\.0"),
        ({"temperature": math.inf}, "temperature .* got inf"),
        ({"temperature": math.nan}, "temperature .* got nan"),
        ({"beta": 2.0}, r"beta must be in \[0, 1\]"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\)"),
        ({"saliency": "hessian"}, r"saliency must be one of grad, grad\*weight, grad\^2, got 'hessian'"),
        ({"accumulate": "sum"}, "accumulate must be mean or ema, got 'sum'"),
        ({"form": "both"}, "form must be separate or joint, got 'both'"),
        ({"kd": "l1"}, "kd must be forward, reverse, ca-kld, mse, cosine or a callable, got 'l1'"),
        ({"kd": "mse", "temperature": 0}, "temperature"),
        ({"kd": nn.MSELoss(), "beta": -1}, "beta"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_guided_score_checks_its_options_before_any_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        guided(**options)


@pytest.mark.parametrize(
    "options", [{"saliency": "w"}, {"accumulate": "max"}, {"momentum": -0.1}, {"momentum": math.nan}], ids=str
)
def test_a_task_score_checks_its_options_before_any_work(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match=next(iter(options))):
        TaskGradient(**options)


@pytest.mark.parametrize("sparsity", [1, 1.0, -1e-9, 90, 100.5, math.nan, math.inf, -math.inf])
def test_a_sparsity_outside_0_to_1_is_refused(sparsity: float) -> None:
    with pytest.raises(InvalidArgument, match=r"sparsity must be in \[0, 1\), got"):
        allocate({"x": torch.rand(10)}, sparsity=sparsity)


def test_percent_gets_a_hint() -> None:
    with pytest.raises(InvalidArgument, match=r"sparsity is a fraction: did you mean 0\.9\?"):
        allocate({"x": torch.rand(10)}, sparsity=90)
    for value in (1.0, -0.5, 1000.0):
        with pytest.raises(InvalidArgument) as caught:
            allocate({"x": torch.rand(10)}, sparsity=value)
        assert "did you mean" not in str(caught.value)


def test_floors_that_leave_nothing_to_remove_are_refused_with_both_numbers() -> None:
    with pytest.raises(
        InvalidArgument, match=r"min_density=0\.5 keeps at least 50 weights, sparsity=0\.8 leaves 20"
    ):
        allocate({"x": torch.rand(100)}, sparsity=0.8, scope=Global(min_density=0.5))


# Models


class Embedder(nn.Module):
    """An output layer that shares its weight with an embedding: neither may be pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(3, 6)
        self.out = nn.Linear(6, 3, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x)


@pytest.mark.parametrize("key", CRITERIA)
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(), "holds no Conv, ConvTranspose or Linear weight"),
        (nn.Sequential(nn.ReLU(), nn.LayerNorm(6)), "holds no Conv, ConvTranspose or Linear weight"),
        (Embedder(), "holds no Conv, ConvTranspose or Linear weight"),
        (make_mlp().requires_grad_(False), "its 2 prunable weights are frozen"),
    ],
    ids=["empty", "nothing prunable", "shared with an embedding", "frozen"],
)
def test_a_model_with_nothing_to_prune_is_refused(key: str, model: nn.Module, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        score(model, vectors(), build(CRITERIA[key], make_mlp(1)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"include": ["conv*"]},
            r"pattern 'conv\*' matches no prunable weight\. Prunable here: 0\.weight, 2",
        ),
        ({"exclude": ["0.bias"]}, r"pattern '0\.bias' matches no prunable weight"),
        ({"exclude": ["0.*", "2.*"]}, "include and exclude leave none"),
        ({"include": ["0.weight"], "exclude": ["0.*"]}, "include and exclude leave none"),
        ({"include": "0.weight"}, r"include must be a sequence of patterns, got the text '0\.weight'"),
        ({"include": []}, "include and exclude leave none"),
    ],
    ids=str,
)
def test_patterns_that_leave_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TargetError, match=message):
        select_targets(make_mlp(), **options)


def test_weights_that_are_no_parameters_are_named() -> None:
    model = make_mlp()
    nn.utils.parametrizations.weight_norm(model[0])
    with pytest.warns(LeftDenseWarning, match=r"the weights of 0 are no parameters.*remove_parametrizations"):
        masks = cut(model, None, Magnitude(), sparsity=0.5)
    assert list(masks) == ["2.weight"]
    prune.l1_unstructured(model[2], "weight", 0.5)
    with pytest.raises(TargetError, match=r"the weights of 0, 2 are no parameters.*prune\.remove"):
        cut(model, None, Magnitude(), sparsity=0.5)


def test_a_lazy_layer_must_have_seen_an_input() -> None:
    with pytest.raises(TargetError, match=r"LazyLinear has no weight yet\. Run the model on one batch"):
        cut(nn.Sequential(nn.LazyLinear(8)), None, Magnitude(), sparsity=0.5)


def test_a_frozen_weight_is_not_a_target() -> None:
    model = make_mlp()
    model[0].weight.requires_grad_(False)
    assert list(select_targets(model)) == ["2.weight"]
    assert list(score(model, vectors(), guided())) == ["2.weight"]
    with pytest.raises(TargetError, match="matches no prunable weight"):
        select_targets(model, include=["0.weight"])


def test_weights_that_are_not_a_number_do_not_become_masks() -> None:
    model = make_mlp()
    with torch.no_grad():
        model[2].weight[1, 1] = math.nan
    with pytest.raises(ScoreError, match=r"1 scores of '2\.weight' are NaN or infinite"):
        allocate(score(model, None, Magnitude()), sparsity=0.5)
    with pytest.raises(ScoreError, match="the task loss of batch 0 is nan"):
        score(model, vectors(), TaskGradient())
    with pytest.raises(ScoreError, match="the KD loss of batch 0 is nan"):
        score(make_mlp(), vectors(), TeacherGuided(model))


def test_gradients_that_are_not_a_number_do_not_become_masks() -> None:
    """A finite loss can have an infinite gradient: the square root at 0."""
    scores = score(make_mlp(), vectors(), TaskGradient(), task_loss=lambda z, y: (z - z).sum().abs().sqrt())
    with pytest.raises(ScoreError, match="NaN or infinite"):
        allocate(scores, sparsity=0.5)


class Detached(nn.Module):
    """Runs under no_grad, as a model wrapped for inference does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = make_mlp()

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Odd(nn.Module):
    """Returns what no loss takes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = make_mlp()

    def forward(self, x: Tensor) -> object:
        return {"out": self.inner(x)}


def attempts() -> dict[str, tuple[Callable[[], nn.Module], Any, Any, type[SecateurError], str]]:
    """Student, batches, criterion, error, message."""
    x, y = vectors()[0]
    wide = nn.Linear(6, 5)
    return {
        "classes disagree": (
            make_mlp,
            vectors(),
            TeacherGuided(wide),
            ScoreError,
            "the student knows 3 classes, the teacher 5. Use a teacher trained on the same classes",
        ),
        "classes disagree, mse": (
            make_mlp,
            vectors(),
            TeacherGuided(wide, kd="mse"),
            ScoreError,
            "3 classes",
        ),
        "shapes disagree": (
            make_cnn,
            images(),
            TeacherGuided(nn.Conv2d(1, 3, 3)),
            ScoreError,
            r"student outputs have shape (5, 3), teacher outputs (5, 3, 4, 4); they must be equal",
        ),
        "labels missing": (make_mlp, [x], guided(), ScoreError, "alpha=0.5 needs labels, batch 0 has none"),
        "labels missing later": (make_mlp, [(x, y), x], guided(), ScoreError, "batch 1 has none"),
        "labels missing, joint": (make_mlp, [x], guided(form="joint"), ScoreError, "needs labels"),
        "labels missing, task": (
            make_mlp,
            [x],
            TaskGradient(),
            ScoreError,
            "TaskGradient needs labels, batch 0",
        ),
        "NaN in data": (make_mlp, [(x, y), NAN_BATCH], guided(), DataError, "NaN or infinity"),
        "infinity in data": (make_mlp, [INF_BATCH], guided(), DataError, "NaN or infinity"),
        "empty loader": (make_mlp, [], guided(), DataError, "yielded no batch"),
        "no loader": (make_mlp, None, guided(), ScoreError, "needs calibration batches"),
        "three parts": (make_mlp, [(x, y, y)], guided(), DataError, "(inputs, labels), got 3 parts"),
        "other names": (make_mlp, [{"x": x, "labels": y}], guided(), DataError, "argument: 'input'"),
        "lists in a dictionary": (make_mlp, [{"x": x.tolist()}], guided(), DataError, "got list"),
        "labels as list": (
            make_mlp,
            [(x, y.tolist())],
            guided(),
            DataError,
            "labels of a batch must be a tensor, got list",
        ),
        "detached student": (
            Detached,
            vectors(),
            guided(),
            ScoreError,
            "does not depend on the model's weights",
        ),
        "odd student": (Odd, vectors(), guided(), ScoreError, "an object with .logits, got dict"),
        "odd teacher": (make_mlp, vectors(), TeacherGuided(Odd()), ScoreError, "with .logits, got dict"),
        "loss of many": (
            make_mlp,
            vectors(),
            guided(kd=lambda s, t: (s - t).square()),
            ScoreError,
            "the KD loss must be a scalar, got shape (5, 3)",
        ),
        "one logit": (
            lambda: nn.Linear(6, 1),
            [x],
            TeacherGuided(nn.Linear(6, 1), alpha=0),
            ScoreError,
            "2 classes or more, got (5, 1)",
        ),
    }


@pytest.mark.parametrize("case", attempts())
def test_scoring_refuses_and_changes_nothing(case: str) -> None:
    make, batches, criterion, error, message = attempts()[case]
    student = make().train()
    before = Snapshot.of(student)
    teacher = getattr(criterion, "teacher", None)
    teacher_before = copy.deepcopy(teacher.state_dict()) if teacher is not None else {}
    with pytest.raises(error) as caught:
        score(student, batches, criterion)
    assert message in str(caught.value)
    before.assert_unchanged(student)
    if teacher is not None:
        assert same_state(teacher.state_dict(), teacher_before)
        assert teacher.training


def test_a_teacher_that_is_the_student_gives_nothing_to_rank_by_alone() -> None:
    student, teacher = make_mlp(), make_mlp()
    with pytest.warns(
        SecateurWarning, match=r"the same outputs .* at alpha=0 scores are nothing but rounding"
    ):
        score(student, vectors(), TeacherGuided(teacher, alpha=0))
    score(student, vectors(), TeacherGuided(teacher))  # with the labels there is no need to say so


def test_a_name_or_class_for_a_criterion_is_told() -> None:
    for wrong in ("magnitude", Magnitude):
        with pytest.raises(InvalidArgument, match=r"criterion must be .*, such as Magnitude\(\), got"):
            score(make_mlp(), vectors(), wrong)  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument, match=r"criterion must be .*, such as Magnitude\(\), got"):
            cut(make_mlp(), vectors(), wrong, sparsity=0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "key", ["teacher-guided", "teacher-curvature", "teacher-fisher", "layer-reconstruction"]
)
def test_a_teacher_must_be_a_network(key: str) -> None:
    for wrong in (None, "resnet56", nn.Linear):
        with pytest.raises(InvalidArgument, match=r"teacher must be a Module, such as a trained .* got"):
            CRITERIA[key](teacher=wrong)


def test_a_model_must_be_a_network() -> None:
    for work in (cut, score):
        options: dict[str, Any] = {"sparsity": 0.5} if work is cut else {}
        with pytest.raises(InvalidArgument, match=r"(student|model) must be a Module, .* got None"):
            work(None, vectors(), Magnitude(), **options)


def test_stages_are_whole() -> None:
    with pytest.raises(InvalidArgument, match=r"stages must be a whole number of at least 1, got 2\.5"):
        cut(make_mlp(), None, Magnitude(), sparsity=0.5, stages=2.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("values", [torch.ones(4).numpy(), [1.0] * 4, 0.5])
def test_scores_are_tensors(values: Any) -> None:
    with pytest.raises(ScoreError, match=r"scores of 'w' must be a floating tensor, got \w+\. Make one"):
        allocate({"w": values}, sparsity=0.5)


def test_labels_that_are_no_classes_are_told_by_scores() -> None:
    with pytest.raises(DataError, match=r"labels go from \d+ to 9; .* Target"):
        score(make_mlp(), [(x, y * 0 + 9) for x, y in vectors()], TaskGradient())


def test_a_task_loss_of_many_numbers_is_refused() -> None:
    with pytest.raises(ScoreError, match=r"the task loss must be a scalar, got shape \(5,\)\. Average it"):
        score(
            make_mlp(),
            vectors(),
            TaskGradient(),
            task_loss=lambda z, y: F.cross_entropy(z, y, reduction="none"),
        )


def test_batches_are_taken_apart() -> None:
    x, y = vectors()[0]
    cpu = torch.device("cpu")
    for batch, labelled in ((x, False), ((x,), False), ([x], False), ((x, y), True), ([x, y], True)):
        ((inputs, labels),) = split_batches([batch], cpu)
        assert inputs is x
        assert (labels is y) == labelled
    whole = torch.zeros(3, dtype=torch.uint8)  # whole numbers cannot be NaN
    assert list(split_batches([whole], cpu)) == [(whole, None)]
    for bad in ((), (x, y, y), None, 3, "xy", (None, y), (x, 3)):
        with pytest.raises(DataError):
            list(split_batches([bad], cpu))


def test_every_error_is_also_a_standard_one() -> None:
    for error in SecateurError.__subclasses__():
        assert issubclass(error, (ValueError, RuntimeError, ImportError)), error
