"""Layer-wise reconstruction against dense least squares, row by row, over inputs unfolded by plain loops."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.allocate import allocate
from secateur.cutting import cut
from secateur.errors import InvalidArgument, ScoreError
from secateur.scores import LayerReconstruction, Random, SolvingScores, score
from secateur.scores.least_squares import Moments
from secateur.stages import Stage
from secateur.testing import check_criterion

DAMPING = 0.05


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().double().eval()


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shaken(model: nn.Module, size: float = 0.3) -> nn.Module:
    """A relative of `model`: another network, but one that thinks alike."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for place, parameter in enumerate(other.parameters()):
            parameter += size * parameter.std(correction=0) * noise(*parameter.shape, seed=place)
    return other


def rows_of(layer: Any, x: Tensor, o: int) -> Tensor:
    """What output `o` multiplies its weights with, a row for each sample and position, by plain loops."""
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, x.shape[-1])
    dims = len(layer.kernel_size)
    padded = F.pad(x, [p for p in reversed(layer.padding) for _ in range(2)])
    n_in = x.shape[1] // layer.groups
    first = o // (layer.out_channels // layer.groups) * n_in
    reach = [d * (k - 1) for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
    starts = [range(0, padded.shape[2 + i] - reach[i], layer.stride[i]) for i in range(dims)]
    rows = []
    for n, start in product(range(len(x)), product(*starts)):
        row = []
        for channel, offset in product(range(n_in), product(*map(range, layer.kernel_size))):
            place = [s + k * d for s, k, d in zip(start, offset, layer.dilation, strict=True)]
            row.append(padded[(n, first + channel, *place)])
        rows.append(torch.stack(row))
    return torch.stack(rows)


class Dense:
    """The problem of one layer of a network, with one dense matrix a row."""

    def __init__(self, layer: Any, x: Tensor, target: Tensor) -> None:
        bias = 0 if layer.bias is None else layer.bias.detach().view(-1, *(1,) * (layer.weight.ndim - 2))
        target = target - bias
        by_output = target.movedim(-1 if isinstance(layer, nn.Linear) else 1, 0)
        self.y = by_output.flatten(1)  # (outputs, rows)
        self.x = [rows_of(layer, x, o) for o in range(len(self.y))]
        self.w = layer.weight.detach().flatten(1)
        self.unit = float(torch.stack([x.square().sum(0) for x in self.x]).mean())
        self.spread = float((self.y - self.y.mean(1, keepdim=True)).square().sum())

    def problem(self, o: int) -> tuple[Tensor, Tensor]:
        """``H`` and the right-hand side of row `o`."""
        ridge = DAMPING * self.unit
        h = self.x[o].T @ self.x[o] + ridge * torch.eye(self.w.shape[1], dtype=torch.float64)
        return h, self.x[o].T @ self.y[o] + ridge * self.w[o]

    def best(self, o: int, kept: Tensor) -> Tensor:
        h, right = self.problem(o)
        v = torch.zeros_like(right)
        v[kept] = torch.linalg.solve(h[kept][:, kept], right[kept])
        return v

    def saliency(self) -> Tensor:
        found = []
        for o, w in enumerate(self.w):
            inverse = torch.linalg.inv(self.problem(o)[0])
            found.append(self.best(o, w != 0).square() / inverse.diagonal() / self.spread)
        return torch.stack(found)

    def solve(self, kept: Tensor) -> Tensor:
        return torch.stack([self.best(o, keep) for o, keep in enumerate(kept)])

    def error(self, w: Tensor) -> float:
        return sum(float((self.y[o] - self.x[o] @ row).square().sum()) for o, row in enumerate(w))


def layers() -> dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]]:
    return {
        "linear": (lambda: nn.Linear(5, 4), (9, 5)),
        "linear over positions": (lambda: nn.Linear(5, 4, bias=False), (3, 4, 5)),
        "conv": (lambda: nn.Conv2d(2, 3, 3), (3, 2, 5, 5)),
        "strided": (lambda: nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 0), bias=False), (3, 2, 6, 5)),
        "dilated": (lambda: nn.Conv2d(2, 2, 3, padding=2, dilation=(1, 2)), (3, 2, 6, 7)),
        "groups": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), (3, 4, 4, 4)),
        "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, bias=False), (4, 4, 5, 5)),
        "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (4, 4, 9)),
        "conv3d": (lambda: nn.Conv3d(2, 2, 2), (2, 2, 3, 4, 3)),
    }


@pytest.mark.parametrize("kind", layers())
def test_scores_and_kept_weights_are_those_of_dense_least_squares(kind: str) -> None:
    make, shape = layers()[kind]
    student = seeded(lambda: nn.Sequential(make()))
    teacher, x = shaken(student), noise(*shape)
    with torch.no_grad():
        student[0].weight.view(-1)[::5] = 0.0  # type: ignore[index]
        dense = Dense(student[0], x, teacher(x))  # type: ignore[index]
    scores = score(student, [x[:2], x[2:]], LayerReconstruction(teacher, damping=DAMPING))
    found = scores["0.weight"].flatten(1).double()
    expected = dense.saliency()
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-6 * float(expected.max()))
    masks = allocate(scores, sparsity=0.5)
    assert isinstance(scores, SolvingScores)
    solution = scores.solve(masks)
    assert solution.predicted is None
    weights, kept = solution.weights["0.weight"].flatten(1).double(), masks["0.weight"].flatten(1)
    assert torch.allclose(weights, dense.solve(kept), rtol=1e-3, atol=1e-4)
    assert bool((weights[~kept] == 0).all())
    assert dense.error(weights) < dense.error(dense.w * kept)


def test_the_error_is_what_the_rows_say_and_moments_add_up() -> None:
    x, y, w = noise(2, 20, 3), noise(2, 20, 4, seed=2), noise(2, 4, 3, seed=3)
    whole = Moments.of(x, y)
    parts = Moments.of(x[:, :7], y[:, :7]) + Moments.of(x[:, 7:], y[:, 7:])
    expected = float((y - x @ w.mT).square().sum())
    assert whole.error(w) == pytest.approx(expected)
    assert parts.error(w) == pytest.approx(expected)
    assert parts.spread == pytest.approx(float((y - y.mean(1, keepdim=True)).square().sum()))


def test_a_weight_scores_what_taking_it_away_alone_costs() -> None:
    """With the teacher a copy, the score is the growth of the least error, over the energy of the outputs."""
    student = seeded(lambda: nn.Sequential(nn.Linear(4, 2)))
    x = noise(30, 4)
    scores = score(student, [x], LayerReconstruction(copy.deepcopy(student), damping=1e-9))["0.weight"]
    with torch.no_grad():
        dense = Dense(student[0], x, student(x))
    for o, i in product(range(2), range(4)):
        kept = torch.ones(2, 4, dtype=torch.bool)
        kept[o, i] = False
        cost = dense.error(dense.solve(kept)) / dense.spread
        assert float(scores[o, i]) == pytest.approx(cost, rel=0.1)  # the dense one has more of a ridge


class Block(nn.Module):
    """A transformer block of which everything but the norms is Linear, behind a patch embedding."""

    def __init__(self, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patches(x).flatten(2).transpose(1, 2)
        z = self.norms[0](h)
        q, k, v = (part(z).unflatten(2, (self.heads, -1)).mT for part in (self.query, self.key, self.value))
        h = h + self.out(F.scaled_dot_product_attention(q, k, v).mT.flatten(2))
        h = h + self.down(F.gelu(self.up(self.norms[1](h))))
        return self.head(h.mean(1))


def pictures() -> list[Tensor]:
    return [noise(150, 1, 6, 6, seed=seed) for seed in (3, 4)]


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(72, 3),
    )


def distance(student: nn.Module, teacher: nn.Module) -> float:
    """Of the outputs, on inputs that were not seen."""
    x = noise(200, 1, 6, 6, seed=5)
    with torch.no_grad():
        return float((student(x) - teacher(x)).square().mean())


@pytest.mark.parametrize("make", [Block, cnn])
@pytest.mark.parametrize("stages", [1, 4])
def test_solving_brings_a_cut_network_nearer_to_its_teacher(make: Any, stages: int) -> None:
    dense = seeded(make)
    left: dict[str, float] = {}
    for name, criterion in {
        "solved": LayerReconstruction(dense),
        "scored": LayerReconstruction(dense, update_weights=False),
        "random": Random(),
    }.items():
        student = copy.deepcopy(dense)
        masks = cut(student, pictures(), criterion, sparsity=0.6, stages=stages)
        masks.check(student)
        left[name] = distance(student, dense)
    assert left["solved"] < 0.8 * left["scored"]
    assert left["scored"] < left["random"]


def test_a_later_stage_makes_up_for_what_earlier_layers_lost() -> None:
    """The target stays the teacher's: another stage without a new cut still lowers the error."""
    dense = seeded(cnn)
    student = copy.deepcopy(dense)
    masks = cut(student, pictures(), LayerReconstruction(dense), sparsity=0.6)
    before = distance(student, dense)
    scores = score(student, pictures(), LayerReconstruction(dense))
    assert isinstance(scores, SolvingScores)
    with torch.no_grad():
        for name, weight in scores.solve(masks).weights.items():
            student.get_parameter(name).copy_(weight)
    masks.check(student)
    assert distance(student, dense) < before


def test_layers_of_a_later_pass_see_what_the_solved_ones_before_give() -> None:
    student = seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)))
    teacher, x = shaken(student), noise(40, 4)
    scores = score(student, [x], LayerReconstruction(teacher, damping=DAMPING, passes=2))
    masks = allocate(scores, sparsity=0.5)
    assert isinstance(scores, SolvingScores)
    solved = {name: w.double() for name, w in scores.solve(masks).weights.items()}
    with torch.no_grad():
        first = Dense(student[0], x, teacher[0](x))  # type: ignore[index]
        seen = torch.tanh(F.linear(x, solved["0.weight"], student[0].bias))  # type: ignore[index]
        second = Dense(student[2], seen, teacher(x))  # type: ignore[index]
    assert torch.allclose(solved["0.weight"], first.solve(masks["0.weight"]), rtol=1e-3, atol=1e-4)
    assert torch.allclose(solved["2.weight"], second.solve(masks["2.weight"]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("make", [Block, cnn])
def test_more_passes_bring_a_network_nearer_to_its_teacher(make: Any) -> None:
    dense, left = seeded(make), list[float]()
    for passes in (1, 99):
        student = copy.deepcopy(dense)
        cut(student, pictures(), LayerReconstruction(dense, passes=passes), sparsity=0.6)
        left.append(distance(student, dense))
    assert left[1] < left[0]


def test_stages_solve_and_say_that_they_predict_nothing() -> None:
    dense, seen = seeded(cnn), list[Stage]()
    cut(
        copy.deepcopy(dense),
        pictures(),
        LayerReconstruction(dense),
        sparsity=0.5,
        stages=2,
        on_stage=seen.append,
    )
    assert [stage.predicted for stage in seen] == [None, None]
    assert all(stage.loss is not None for stage in seen)


@pytest.mark.parametrize("teacher", ["wider", "deeper", "unrelated", "itself"])
def test_without_a_teacher_that_thinks_alike_the_layers_own_outputs_are_the_target(teacher: str) -> None:
    student = seeded(cnn)
    foreign = {
        "wider": lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 3)),
        "deeper": lambda: nn.Sequential(*cnn(), nn.Linear(3, 3)),  # type: ignore[misc]
        "unrelated": lambda: shaken(cnn(), 20.0),
    }
    other = student if teacher == "itself" else seeded(foreign[teacher])
    found = score(student, pictures(), LayerReconstruction(other))
    expected = score(student, pictures(), LayerReconstruction(copy.deepcopy(student)))
    for name in expected:
        assert torch.allclose(found[name], expected[name], rtol=1e-3, atol=1e-6 * float(expected[name].max()))
    assert isinstance(found, SolvingScores)
    everything = {name: torch.ones_like(s, dtype=torch.bool) for name, s in found.items()}
    for name, weight in found.solve(everything).weights.items():
        assert torch.allclose(weight.double(), student.get_parameter(name), atol=1e-4)


def test_scores_alone_are_plain_and_the_same() -> None:
    student, teacher = seeded(cnn), shaken(seeded(cnn))
    plain = score(student, pictures(), LayerReconstruction(teacher, update_weights=False))
    solving = score(student, pictures(), LayerReconstruction(teacher))
    assert not isinstance(plain, SolvingScores)
    assert isinstance(solving, SolvingScores)
    assert all(torch.equal(plain[name], solving[name]) for name in plain)


def test_the_layers_of_a_library_encoder_are_seen() -> None:
    """Which skips its layers' calls on a fast path, unless they are watched."""
    make = lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)  # noqa: E731
    student = seeded(make)
    x = noise(6, 5, 8)
    hidden = ["linear1.weight", "linear2.weight"]
    scores = score(student, [x], LayerReconstruction(copy.deepcopy(student)), include=["linear*"])
    assert list(scores) == hidden
    with pytest.raises(ScoreError, match=r"never saw an input of 'self_attn\.out_proj\.weight'"):
        score(student, [x], LayerReconstruction(copy.deepcopy(student)))


def test_nothing_is_explained_where_all_inputs_are_zero() -> None:
    student = seeded(lambda: nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    with torch.no_grad():
        student[0].bias.fill_(-100)  # type: ignore[index]
    scores = score(student, [noise(8, 4)], LayerReconstruction(copy.deepcopy(student)))
    assert all(bool(torch.isfinite(s).all()) for s in scores.values())
    assert isinstance(scores, SolvingScores)
    solved = scores.solve(allocate(scores, sparsity=0.25)).weights["2.weight"].double()
    assert torch.allclose(solved[solved != 0], student[2].weight[solved != 0])  # type: ignore[index]


def test_the_contract() -> None:
    check_criterion(LayerReconstruction)
    check_criterion(LayerReconstruction(nn.Identity(), damping=1.0, update_weights=False))


class Twice(nn.Module):
    """Calls its layer once or twice."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.times = times

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = self.layer(x)
        return x


def test_refusals() -> None:
    for damping in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InvalidArgument, match="damping"):
            LayerReconstruction(nn.Identity(), damping=damping)
    with pytest.raises(InvalidArgument, match="passes"):
        LayerReconstruction(nn.Identity(), passes=0)
    x = noise(6, 4)
    with pytest.raises(ScoreError, match=r"'layer\.weight' gives \(6, 4\) in the student and nothing in the"):
        score(seeded(lambda: Twice(2)), [x], LayerReconstruction(seeded(lambda: Twice(1))))
    upwards = seeded(lambda: nn.Sequential(nn.ConvTranspose1d(1, 1, 2)))
    with pytest.raises(
        ScoreError, match=r"transposed convolutions, such as that of '0\.weight'\. Exclude it"
    ):
        score(upwards, [x[:, None]], LayerReconstruction(copy.deepcopy(upwards)))
    same = seeded(lambda: nn.Sequential(nn.Linear(4, 2)))
    with pytest.raises(ScoreError, match="too much alike"):
        score(
            same,
            [torch.ones(9, 4, dtype=torch.float64)],
            LayerReconstruction(copy.deepcopy(same), damping=1e-300),
        )
    broken = copy.deepcopy(same)
    with torch.no_grad():
        broken[0].weight[0, 0] = float("nan")  # type: ignore[index]
    with pytest.raises(ScoreError, match=r"'0\.weight' are not finite"):
        score(same, [x], LayerReconstruction(broken))
