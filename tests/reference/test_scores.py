"""Scores against finite differences, plain loops and hand computation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers import SharedNet, make_mlp, vectors
from reference import scores as oracle
from secateur.allocate import allocate
from secateur.diagnostics import mask_overlap
from secateur.errors import InvalidArgument
from secateur.losses import kd_loss
from secateur.scores import (
    Fisher,
    GuidedScores,
    TaskGradient,
    Taylor,
    TeacherFisher,
    TeacherGuided,
    score,
)

KINDS = ("forward", "reverse", "ca-kld", "mse", "cosine")
SALIENCIES = ("grad", "grad*weight", "grad^2")
ACCUMULATIONS = ("mean", "ema")

DoubleBatches = list[tuple[Tensor, Tensor]]


def setup() -> tuple[nn.Sequential, nn.Sequential, DoubleBatches]:
    """A small student and teacher in float64 (36 weights to difference), three batches of four."""
    student, teacher = make_mlp(0, width=4).double(), make_mlp(1, width=5).double()
    return student, teacher, [(x.double(), y) for x, y in vectors(3, 4)]


def task_gradients(student: nn.Module, weight: Tensor, batches: DoubleBatches) -> list[Tensor]:
    return [
        oracle.finite_difference(
            lambda x=x, y=y: oracle.cross_entropy(oracle.logits(student, x), y.tolist()),  # type: ignore[misc]
            weight,
        )
        for x, y in batches
    ]


def kd_gradients(
    student: nn.Module, teacher: nn.Module, weight: Tensor, batches: DoubleBatches, **options: Any
) -> list[Tensor]:
    return [
        oracle.finite_difference(
            lambda x=x: oracle.kd(  # type: ignore[misc]
                oracle.logits(student, x), oracle.logits(teacher, x), **options
            ),
            weight,
        )
        for x, _ in batches
    ]


def weights_of(model: nn.Sequential) -> dict[str, Tensor]:
    return {"0.weight": model[0].weight, "2.weight": model[2].weight}


def close(actual: Tensor, expected: Tensor) -> bool:
    return torch.allclose(actual.double(), expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("accumulate", ACCUMULATIONS)
@pytest.mark.parametrize("saliency", SALIENCIES)
def test_task_scores_are_those_of_finite_differences(saliency: Any, accumulate: Any) -> None:
    student, _, batches = setup()
    momentum = {"mean": 0.9, "ema": 0.7}[accumulate]
    scores = score(student, batches, TaskGradient(saliency, accumulate, momentum))
    for name, weight in weights_of(student).items():
        gradients = task_gradients(student, weight, batches)
        expected = oracle.term(gradients, weight, kind=saliency, how=accumulate, momentum=momentum)
        assert close(scores[name], expected)
        assert float(expected.max()) > 1e-4  # the comparison is not one of zeros


@pytest.mark.parametrize(
    ("kind", "standardize"), [*((kind, False) for kind in KINDS), *((kind, True) for kind in KINDS[:3])]
)
def test_teacher_scores_are_those_of_finite_differences(kind: Any, standardize: bool) -> None:
    student, teacher, batches = setup()
    options: dict[str, Any] = {"temperature": 3.0, "standardize": standardize} if kind in KINDS[:3] else {}
    if kind == "ca-kld":
        options["beta"] = 0.3
    full = {"temperature": 4.0, "beta": 0.5, "standardize": False, **options}
    gradients = {
        name: kd_gradients(student, teacher, weight, batches, kind=kind, **full)
        for name, weight in weights_of(student).items()
    }
    for saliency in SALIENCIES:
        for how, momentum in {"mean": 0.9, "ema": 0.8}.items():
            criterion: Any = TeacherGuided(
                teacher, alpha=0, kd=kind, saliency=saliency, accumulate=how, momentum=momentum, **options
            )
            scores = score(student, batches, criterion)
            for name, weight in weights_of(student).items():
                expected = oracle.term(gradients[name], weight, kind=saliency, how=how, momentum=momentum)
                assert close(scores[name], expected)
                assert float(expected.max()) > 1e-5


@pytest.mark.parametrize("accumulate", ACCUMULATIONS)
@pytest.mark.parametrize("saliency", SALIENCIES)
def test_separate_adds_absolute_values_and_joint_adds_first(saliency: Any, accumulate: Any) -> None:
    student, teacher, batches = setup()
    alpha, options = 0.3, {"temperature": 4.0, "kind": "forward"}
    rule = {"kind": saliency, "how": accumulate, "momentum": 0.9}
    for name, weight in weights_of(student).items():
        task = task_gradients(student, weight, batches)
        kd = kd_gradients(student, teacher, weight, batches, **options)
        both = [alpha * a + (1 - alpha) * b for a, b in zip(task, kd, strict=True)]
        separate = alpha * oracle.term(task, weight, **rule) + (1 - alpha) * oracle.term(kd, weight, **rule)
        for form, expected in (("separate", separate), ("joint", oracle.term(both, weight, **rule))):
            criterion = TeacherGuided(
                teacher,
                alpha=alpha,
                saliency=saliency,
                accumulate=accumulate,
                form=form,  # type: ignore[arg-type]
            )
            assert close(score(student, batches, criterion)[name], expected)


def test_separate_by_hand_for_one_linear_layer() -> None:
    """For z = Wx: ∂CE/∂W = (p − y)xᵀ and ∂KD/∂W = T²·(1/T)·(p_S − p_T)xᵀ, both averaged over samples."""
    student = nn.Linear(2, 3, bias=False).double()
    teacher = nn.Linear(2, 3, bias=False).double()
    with torch.no_grad():
        student.weight.copy_(torch.tensor([[1.0, -0.5], [0.25, 0.75], [-1.0, 0.5]]))
        teacher.weight.copy_(torch.tensor([[2.0, 0.5], [-0.25, 1.0], [-1.5, -1.0]]))
    xs, labels, temperature, alpha = [[1.0, 2.0], [-0.5, 3.0]], [0, 2], 4.0, 0.3
    expected = [[0.0, 0.0] for _ in range(3)]
    for i in range(3):
        for j in range(2):
            task = kd = 0.0
            for x, label in zip(xs, labels, strict=True):
                z_s = [sum(w * v for w, v in zip(row, x, strict=True)) for row in student.weight.tolist()]
                z_t = [sum(w * v for w, v in zip(row, x, strict=True)) for row in teacher.weight.tolist()]
                task += (oracle.softmax(z_s)[i] - (i == label)) * x[j] / len(xs)
                warm = oracle.softmax(z_s, temperature)[i] - oracle.softmax(z_t, temperature)[i]
                kd += temperature * warm * x[j] / len(xs)
            w = student.weight.tolist()[i][j]
            expected[i][j] = alpha * abs(w * task) + (1 - alpha) * abs(w * kd)
    batch = (torch.tensor(xs).double(), torch.tensor(labels))
    scores = score(student, [batch], TeacherGuided(teacher, alpha=alpha, temperature=temperature))
    by_hand = torch.tensor(expected, dtype=torch.float64)
    assert torch.allclose(scores["weight"], by_hand, rtol=1e-12, atol=0)


def test_numbers_of_a_score_written_out() -> None:
    """One weight a class, one sample x = 1: everything fits on a line."""
    student, teacher = nn.Linear(1, 2, bias=False).double(), nn.Linear(1, 2, bias=False).double()
    with torch.no_grad():
        student.weight.copy_(torch.tensor([[2.0], [0.0]]))
        teacher.weight.copy_(torch.tensor([[0.0], [2.0]]))
    batch = (torch.ones(1, 1).double(), torch.tensor([0]))
    scores = score(student, [batch], TeacherGuided(teacher, temperature=2.0, saliency="grad"))
    assert isinstance(scores, GuidedScores)
    assert scores.task is not None
    # softmax(2, 0)[1] = 0.1192029220…; at T = 2 softmax(1, 0) − softmax(0, 1) = tanh(1/2), times T
    assert scores.task["weight"].view(-1).tolist() == pytest.approx([0.11920292202211755] * 2)
    assert scores.kd["weight"].view(-1).tolist() == pytest.approx([2 * 0.46211715726000975] * 2)


def test_ema_by_hand() -> None:
    student, _, batches = setup()
    each = [score(student, [batch], TaskGradient())["0.weight"] for batch in batches]
    ema = score(student, batches, TaskGradient(accumulate="ema", momentum=0.9))["0.weight"]
    expected = 0.9 * (0.9 * each[0] + 0.1 * each[1]) + 0.1 * each[2]
    assert torch.allclose(ema, expected, rtol=1e-12, atol=0)


class TwoPaths(nn.Module):
    """Uses one layer for inputs above 0 on average, the other below."""

    def __init__(self) -> None:
        super().__init__()
        self.high = nn.Linear(6, 3)
        self.low = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.high(x) if float(x.mean()) > 0 else self.low(x)


@pytest.mark.parametrize(
    ("options", "share"), [({}, (0.5, 0.5)), ({"accumulate": "ema", "momentum": 0.75}, (0.75, 0.25))]
)
def test_a_weight_that_a_batch_does_not_reach_has_gradient_zero_there(options: Any, share: Any) -> None:
    (x, y), *_ = vectors()
    up, down = (x.abs(), y), (-x.abs(), y)
    model = TwoPaths()
    alone = {"high": score(model, [up], TaskGradient()), "low": score(model, [down], TaskGradient())}
    assert bool((alone["high"]["low.weight"] == 0).all())
    scores = score(model, [up, down], TaskGradient(**options))
    for name, part in zip(alone, share, strict=True):
        expected = part * alone[name][f"{name}.weight"]
        assert torch.allclose(scores[f"{name}.weight"], expected, rtol=1e-5)


def test_a_weight_used_twice_gets_the_sum_of_its_gradients() -> None:
    model = SharedNet().double()
    batches = [(x.double(), y) for x, y in vectors(2)]
    scores = score(model, batches, TaskGradient("grad"))
    gradients = task_gradients(model, model.first.weight, batches)
    expected = oracle.term(gradients, model.first.weight, kind="grad", how="mean", momentum=0)
    assert close(scores["first.weight"], expected)


class AddedWeights(nn.Module):
    """Two weights whose gradients autograd hands out as views of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 3, bias=False)
        self.b = nn.Linear(6, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, (self.a.weight.view(-1) + self.b.weight.view(-1)).view(3, 6))


@pytest.mark.parametrize("saliency", SALIENCIES)
def test_gradients_that_share_memory_are_scored_apart(saliency: Any) -> None:
    model = AddedWeights()
    batches = vectors(1)
    F.cross_entropy(model(batches[0][0]), batches[0][1]).backward()
    assert model.a.weight.grad is not None
    assert model.b.weight.grad is not None
    assert model.a.weight.grad.data_ptr() == model.b.weight.grad.data_ptr()  # what this test is about
    gradient = model.a.weight.grad.double()
    scores = score(model, batches, TaskGradient(saliency))
    for name, weight in (("a.weight", model.a.weight), ("b.weight", model.b.weight)):
        expected = oracle.term([gradient], weight.double(), kind=saliency, how="mean", momentum=0)
        assert torch.allclose(scores[name].double(), expected, rtol=1e-5)


def test_weights_of_an_input_that_is_always_zero_score_exactly_zero() -> None:
    student, teacher, batches = setup()
    for x, _ in batches:
        x[:, 2] = 0
    scores = score(student, batches, TeacherGuided(teacher))
    assert bool((scores["0.weight"][:, 2] == 0).all())
    assert bool((scores["0.weight"][:, [0, 1, 3, 4, 5]] > 0).all())


@pytest.mark.parametrize("how", ACCUMULATIONS)
def test_equal_batches_score_like_one(how: Any) -> None:
    student, teacher, batches = setup()
    once = score(student, batches[:1], TeacherGuided(teacher, accumulate=how))
    thrice = score(student, batches[:1] * 3, TeacherGuided(teacher, accumulate=how))
    assert all(torch.allclose(once[name], thrice[name], rtol=1e-12) for name in once)


def test_a_momentum_that_nothing_would_read_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="does nothing with accumulate='mean', only with ema"):
        TeacherGuided(make_mlp(), momentum=0.5)


class Output:
    """What a model of `transformers` returns."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class Reader(nn.Module):
    """A language model of 6 words: (batch, positions) to logits of (batch, positions, words)."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.words, self.out = nn.Embedding(6, 4), nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Output:
        return Output(self.out(torch.tanh(self.words(x))))


def test_a_language_model_is_scored_by_each_of_its_words() -> None:
    student, teacher = Reader(0), Reader(1)
    x, y = torch.randint(0, 6, (2, 4, 5)).unbind()
    found = score(student, [(x, y)], TeacherGuided(teacher, alpha=0.5))
    logits, taught = student(x).logits.flatten(0, 1), teacher(x).logits.flatten(0, 1)
    for term, loss in (
        (found.task, F.cross_entropy(logits, y.flatten())),
        (found.kd, kd_loss(logits, taught, temperature=4.0)),
    ):
        (gradient,) = torch.autograd.grad(loss, [student.out.weight], retain_graph=True)
        assert torch.allclose(term["out.weight"], (gradient * student.out.weight).abs(), atol=1e-7)


def uneven(n: int = 64, rest: int = 1) -> list[tuple[Tensor, Tensor]]:
    """A batch of `n` and one of `rest`."""
    (x, y), *_ = vectors(1, n + rest)
    return [(x[:n], y[:n]), (x[n:], y[n:])]


@pytest.mark.parametrize(("saliency", "power"), [("grad", 1), ("grad*weight", 1), ("grad^2", 2)])
def test_batches_count_by_their_samples(saliency: Any, power: int) -> None:
    model, batches = make_mlp(), uneven(10, 3)
    alone = [score(model, [batch], TaskGradient(saliency)) for batch in batches]
    for name, found in score(model, batches, TaskGradient(saliency)).items():
        weighted = 10**power * alone[0][name] + 3**power * alone[1][name]
        expected = weighted / (13 * 6.5 ** (power - 1))
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "criterion",
    [
        TaskGradient(),
        TaskGradient("grad^2"),
        Taylor(),
        Fisher(per="batch"),
        TeacherGuided(make_mlp(1)),
        TeacherGuided(make_mlp(1), form="joint"),
        TeacherFisher(make_mlp(1)),
        TeacherFisher(make_mlp(1), power=0.5),
    ],
    ids=lambda criterion: type(criterion).__name__,
)
def test_an_odd_sample_at_the_end_does_not_decide_the_cut(criterion: Any) -> None:
    model, batches = make_mlp(0, width=64), uneven(512)
    kept = [
        allocate(score(model, given, criterion), sparsity=0.8)
        for given in (batches[:1] * 8, batches[:1] * 8 + batches[1:])
    ]
    # A batch for itself, of equal weight, overlaps by a half to three quarters.
    assert mask_overlap(*kept) > 0.9


def test_half_precision_has_room_for_the_distances_of_maps() -> None:
    torch.manual_seed(0)
    student, teacher = (3 * torch.randn(16, 21, 64, 64) for _ in range(2))
    found = kd_loss(student.half(), teacher.half(), temperature=1.0)
    torch.testing.assert_close(found, kd_loss(student, teacher, temperature=1.0), rtol=1e-3, atol=0)


def test_a_network_that_writes_to_its_inputs_changes_nobody_elses() -> None:
    class Centred(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.sub_(1.0).div_(2.0))

    student, teacher = Centred(nn.Linear(6, 4)), Centred(nn.Linear(6, 4))
    batches = vectors(3)
    before = [x.clone() for x, _ in batches]
    first, again = (score(student, batches, TeacherGuided(teacher)) for _ in range(2))
    assert all(torch.equal(x, y) for x, (y, _) in zip(before, batches, strict=True))
    centred = [((x - 1.0) / 2.0, y) for x, y in batches]
    plain = score(nn.Sequential(student[0]), centred, TeacherGuided(nn.Sequential(teacher[0])))
    assert torch.equal(first["0.weight"], again["0.weight"])
    torch.testing.assert_close(first["0.weight"], plain["0.weight"])
