"""SynFlow and Wanda against plain loops, Jacobians and hand computation."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers import SharedNet, images, make_cnn, make_mlp, vectors
from reference import scores as oracle
from reference.test_scores import AddedWeights
from secateur.allocate import Layerwise, allocate
from secateur.errors import InvalidArgument, ScoreError
from secateur.scores import Magnitude, SynFlow, Wanda, score

# SynFlow


def test_synflow_by_hand_for_two_layers() -> None:
    """R = Σ_ij |V_ij|·Σ_k |W_jk|, so S of W_jk is |W_jk|·Σ_i |V_ij|, and S of V_ij is |V_ij|·Σ_k |W_jk|."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -2.0], [3.0, 4.0]]))
        model[2].weight.copy_(torch.tensor([[-5.0, 0.5]]))
    scores = score(model, [torch.zeros(7, 2)], SynFlow())
    assert scores["0.weight"].flatten().tolist() == pytest.approx([5 / 15, 10 / 15, 1.5 / 15, 2 / 15])
    assert scores["2.weight"].tolist() == [[1.0, pytest.approx(3.5 / 15)]]


def positive(model: nn.Module) -> nn.Module:
    """A copy with every parameter and buffer made positive, in float64 and eval mode."""
    twin = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        for tensor in twin.state_dict().values():
            tensor.abs_()
    return twin


def test_synflow_is_the_slope_of_the_flow_by_finite_differences() -> None:
    model = make_cnn()
    with torch.no_grad():
        model[1].running_mean.neg_()  # of either sign, so that making it positive matters
        model[4].weight.neg_()
    twin = positive(model)
    ones = torch.ones(1, 1, 6, 6).double()
    expected = {
        name: twin.get_parameter(name).detach()
        * oracle.finite_difference(lambda: float(twin(ones).sum()), twin.get_parameter(name))
        for name in ("0.weight", "3.weight", "8.weight")
    }
    largest = max(float(t.max()) for t in expected.values())
    scores = score(model, images(), SynFlow())
    for name, values in expected.items():
        assert torch.allclose(scores[name].double(), values.detach() / largest, rtol=1e-4, atol=1e-8)
        assert bool((values > 0).any())


def test_synflow_is_conserved_from_layer_to_layer() -> None:
    """Without biases and BatchNorm all of R flows through each layer, through each hidden unit as well."""
    torch.manual_seed(3)
    layers = [nn.Linear(a, b, bias=False) for a, b in ((6, 9), (9, 4), (4, 7), (7, 3))]
    model = nn.Sequential(*(module for layer in layers for module in (layer, nn.ReLU())))
    scores = [*score(model, vectors(), SynFlow()).values()]
    totals = [float(s.sum()) for s in scores]
    assert totals == pytest.approx([totals[0]] * 4, rel=1e-5)
    for before, after in pairwise(scores):
        assert torch.allclose(before.sum(1), after.sum(0), rtol=1e-5)


def test_synflow_sees_the_shape_of_the_data_and_nothing_else_of_it() -> None:
    model = make_cnn()
    expected = score(model, images(), SynFlow())
    other = score(model, [1e3 * torch.randn(2, 1, 6, 6)], SynFlow())
    assert all(torch.equal(other[name], expected[name]) for name in expected)


def test_synflow_of_a_network_whose_flow_float32_cannot_hold() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(60)))
    for layer in model:
        nn.init.normal_(layer.weight)
    with torch.no_grad():
        assert not torch.isfinite(nn.Sequential(*copy.deepcopy(model))(torch.full((1, 64), 1e10))).all()
    scores = score(model, [torch.zeros(1, 64)], SynFlow())
    assert all(
        s.dtype == torch.float32 and bool(torch.isfinite(s).all() & (s > 0).all()) for s in scores.values()
    )
    assert max(float(s.max()) for s in scores.values()) == 1


def test_synflow_names_tensors_that_do_not_follow_the_copy_in_float64() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.GRU(6, 8, batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.cell(x, torch.zeros(1, len(x), 8))[0][:, -1])

    with pytest.raises(ScoreError, match=r"Recurrent fails with .* torch\.float64: .* as x\.new_zeros does"):
        score(Recurrent(), [torch.randn(4, 5, 6)], SynFlow())


def test_synflow_refuses_what_it_cannot_do() -> None:
    deep = nn.Sequential(*(nn.Linear(4, 4) for _ in range(12)))
    for layer in deep:
        nn.init.constant_(layer.weight, 1e30)
    with pytest.raises(ScoreError, match=r"SynFlow's R is inf.*too deep for float64"):
        score(deep, [torch.zeros(1, 4)], SynFlow())
    with pytest.raises(ScoreError, match=r"must be floating, got torch\.int64"):
        score(nn.Linear(4, 4), [torch.zeros(1, 4, dtype=torch.int64)], SynFlow())


# Wanda


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(5, 4), (5,)),
    "linear over positions": (nn.Linear(5, 4), (3, 5)),
    "plain": (nn.Conv2d(3, 4, 3), (3, 6, 5)),
    "strided": (nn.Conv2d(3, 4, 3, stride=2, padding=1), (3, 6, 7)),
    "uneven": (nn.Conv2d(2, 3, (3, 2), stride=(1, 3), padding=(2, 0), dilation=(2, 1)), (2, 7, 8)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2, padding=1), (4, 5, 5)),
    "depthwise": (nn.Conv2d(3, 6, 3, groups=3, stride=2), (3, 7, 7)),
    "same": (nn.Conv2d(2, 3, (4, 3), padding="same", dilation=(1, 2)), (2, 6, 6)),
    "valid": (nn.Conv2d(2, 3, 2, padding="valid"), (2, 4, 4)),
    "reflect": (nn.Conv2d(2, 3, 3, padding=(2, 1), padding_mode="reflect"), (2, 5, 5)),
    "circular": (nn.Conv1d(2, 3, 3, padding=2, padding_mode="circular"), (2, 6)),
    "replicate": (nn.Conv3d(1, 2, 2, padding=1, padding_mode="replicate"), (1, 3, 3, 2)),
    "same, even, reflect": (nn.Conv1d(2, 3, 4, padding="same", padding_mode="reflect"), (2, 7)),
    "line": (nn.Conv1d(4, 4, 3, stride=2, dilation=2, groups=2), (4, 11)),
    "volume": (nn.Conv3d(2, 2, 2, stride=2), (2, 4, 4, 5)),
    "transposed": (nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1, output_padding=1), (3, 4, 4)),
    "transposed, cropped": (nn.ConvTranspose2d(2, 3, 4, stride=1, padding=3, dilation=2), (2, 5, 4)),
    "transposed, grouped": (nn.ConvTranspose1d(4, 6, 3, stride=3, padding=2, groups=2), (4, 5)),
    "channels last": (nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last), (3, 6, 5)),  # type: ignore[call-overload]
    "transposed, channels last": (
        nn.ConvTranspose2d(4, 6, 3, groups=2).to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        (4, 3, 3),
    ),
    "transposed volume": (nn.ConvTranspose3d(2, 1, 2, stride=2), (2, 2, 3, 2)),
}


def norms_by_jacobian(layer: Any, x: Tensor) -> Tensor:
    """‖x‖ of what each weight is multiplied with: outputs are linear in it, so that is ∂outputs/∂w."""
    jacobian = torch.autograd.functional.jacobian(
        lambda w: torch.func.functional_call(layer, {"weight": w}, (x,)).flatten(), layer.weight.detach()
    )
    return jacobian.square().sum(0).sqrt()


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("case", LAYERS)
def test_wanda_is_the_weight_times_the_norm_of_what_it_meets(case: str) -> None:
    layer, shape = copy.deepcopy(LAYERS[case])
    layer.double()
    batches = [torch.randn(n, *shape).double() for n in (2, 3)]
    scores = score(layer, batches, Wanda("tensor"))["weight"]
    norms = sum(norms_by_jacobian(layer, x).square() for x in batches).sqrt()
    assert torch.allclose(scores, layer.weight.detach().abs() * norms, rtol=1e-9, atol=1e-12)
    assert len(norms.unique()) > 1


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("case", LAYERS)
def test_wanda_ranks_within_the_weights_of_one_output(case: str) -> None:
    """Which weights belong to an output is asked of the layer itself, by its Jacobian again."""
    layer, shape = copy.deepcopy(LAYERS[case])
    layer.double()
    x = torch.randn(2, *shape).double()
    raw, ranks = (score(layer, [x], Wanda(how))["weight"].flatten() for how in ("tensor", "row"))  # type: ignore[arg-type]
    output = layer(x)
    channels = output.movedim(-1 if isinstance(layer, nn.Linear) else 1, 0)
    rows = set()
    for channel in channels:
        reached = torch.autograd.grad(channel.square().sum(), layer.weight, retain_graph=True)[0].flatten()
        rows.add(tuple(reached.nonzero().flatten().tolist()))
    assert len(rows) == len(channels)
    for row in rows:
        place = torch.tensor(row)
        assert sorted(ranks[place].tolist()) == pytest.approx([(k + 1) / len(row) for k in range(len(row))])
        assert torch.equal(ranks[place].argsort(), raw[place].argsort(stable=True))


def test_wanda_by_hand() -> None:
    """Inputs (3, 1) and (4, 0) have feature norms 5 and 1: |W|·‖x‖ = (5, 2), (10, 1)."""
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -2.0], [2.0, 1.0]]))
    batches = [torch.tensor([[3.0, 1.0]]), torch.tensor([[4.0, 0.0]])]
    assert score(layer, batches, Wanda("tensor"))["weight"].tolist() == [[5.0, 2.0], [10.0, 1.0]]
    assert score(layer, batches, Wanda())["weight"].tolist() == [[1.0, 0.5], [1.0, 0.5]]


def test_wanda_is_magnitude_for_inputs_of_equal_norm() -> None:
    model = nn.Linear(6, 4, bias=False)
    scores = score(model, [torch.eye(6)], Wanda("tensor"))
    assert torch.allclose(scores["weight"], score(model, None, Magnitude())["weight"])


def test_wanda_by_rows_takes_the_same_share_of_every_row_under_any_scope() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    with torch.no_grad():
        model[2].weight.mul_(100)
    scores = score(model, vectors(), Wanda())
    for scope in (None, Layerwise()):
        masks = allocate(scores, sparsity=0.5, scope=scope)
        for mask in masks.values():
            assert mask.sum(1).tolist() == [mask.shape[1] // 2] * mask.shape[0]


def test_wanda_sees_every_use_of_a_shared_weight() -> None:
    model = SharedNet()
    seen: list[Tensor] = []
    for layer in (model.first, model.second):
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    batches = [x for x, _ in vectors()]
    for x in batches:
        model(x)
    norms = torch.cat(seen).square().sum(0).sqrt()
    scores = score(model, batches, Wanda("tensor"))
    assert torch.allclose(scores["first.weight"], model.first.weight.detach().abs() * norms)


def test_wanda_sees_the_calibration_data_and_nothing_else() -> None:
    """Images are tried out on the network before they are scored, which must not count."""
    model = nn.Conv2d(1, 2, 1, bias=False)
    nn.init.ones_(model.weight)
    x = torch.randn(5, 1, 4, 4)
    scores = score(model, [x], Wanda("tensor"))
    assert torch.allclose(scores["weight"].flatten(), x.norm().expand(2))


class Named(nn.Module):
    """Calls its layer with its input by name."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(input=x)


def test_wanda_sees_an_input_that_is_given_by_name() -> None:
    model, batches = Named(), vectors()
    expected = score(model.layer, batches, Wanda("tensor"))["weight"]
    assert torch.equal(score(model, batches, Wanda("tensor"))["layer.weight"], expected)


def test_wanda_of_one_image_without_a_batch_axis() -> None:
    layer, x = nn.Conv2d(1, 2, 3), torch.randn(1, 6, 6)
    expected = score(layer, [x[None]], Wanda("tensor"))["weight"]
    assert torch.allclose(score(layer, [x], Wanda("tensor"))["weight"], expected)


def test_wanda_refuses_a_weight_whose_inputs_it_does_not_see() -> None:
    with pytest.raises(ScoreError, match=r"Wanda never saw an input of 'a\.weight'.*Exclude it"):
        score(AddedWeights(), vectors(), Wanda())
    with pytest.raises(InvalidArgument, match="compare must be row or tensor, got 'layer'"):
        Wanda("layer")  # type: ignore[arg-type]


def test_wanda_needs_no_labels() -> None:
    model = make_mlp()
    bare, labelled = (score(model, b, Wanda()) for b in ([x for x, _ in vectors()], vectors()))
    assert all(torch.equal(bare[name], labelled[name]) for name in bare)
