"""What `compile` makes of a model as a whole: its inputs and outputs, its state, its batch size."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.models import worst_error
from secateur.errors import CompileError
from secateur.runtime import Engine
from secateur.runtime import compile as compile_model
from secateur.runtime.graph import Graph
from secateur.runtime.lowering import LOWERINGS

X = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))


class With(nn.Module):
    """A function of a module with a buffer and its inputs."""

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("seen", torch.ones(6))

    def forward(self, *inputs: Tensor) -> object:
        return self.function(self, *inputs)


def agrees(model: nn.Module, *example: Tensor) -> None:
    """A model gives what torch gives, for the batch size of the example and for others."""
    plan = compile_model(model.eval(), example, threads=1)
    for n in (2, 1, 5):
        assert worst_error(model, plan, [torch.cat([x] * 5)[:n] for x in example]) < 1e-5


def test_an_input_changed_in_place_is_no_output() -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 4)).eval()
    engine = Engine(compile_model(model, X.clone(), threads=1), threads=1)
    x = X.numpy().copy()
    y = engine(x)
    assert isinstance(y, np.ndarray)
    assert y.shape == (2, 4)
    np.testing.assert_array_equal(x, X.numpy())


def test_a_counter_that_no_output_depends_on_is_left_out() -> None:
    def counted(self: nn.Module, x: Tensor) -> Tensor:
        self.seen.add_(1)
        return x * 2

    model = With(counted)
    agrees(model, X)
    assert [name for name, _ in compile_model(model, X).program.outputs] == ["output"]


@pytest.mark.parametrize("first", [True, False])
def test_state_is_refused_by_name(first: bool) -> None:
    def stateful(self: nn.Module, x: Tensor) -> Tensor:
        before = x * self.seen
        self.seen.add_(1)
        return before if first else x * self.seen

    with pytest.raises(CompileError, match=r"changes its buffer 'seen'.*pass it in as an input"):
        compile_model(With(stateful), X)


def test_one_tensor_may_be_the_example_of_two_inputs() -> None:
    plan = compile_model(With(lambda _, a, b: a - b), (X, X), threads=1)
    a, b = np.ones((3, 6), np.float32), np.zeros((3, 6), np.float32)
    np.testing.assert_array_equal(Engine(plan, threads=1)(a, b), a)


def test_an_output_that_is_no_tensor_is_refused() -> None:
    with pytest.raises(CompileError, match=r"output 1 of the model is no tensor, but 3"):
        compile_model(With(lambda _, x: (x, 3)), X)


@pytest.mark.parametrize("shown", [lambda x: (None, x), lambda x: {"logits": x, "loss": None}])
def test_an_output_that_is_none_is_left_out(shown: Callable[[Tensor], object]) -> None:
    plan = compile_model(With(lambda _, x: shown(x * 2)), X, threads=1)
    ones = np.ones((3, 6), np.float32)
    np.testing.assert_array_equal(Engine(plan, threads=1)(ones), 2 * ones)


def test_transformer_layers_do_not_look_into_their_masks() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    mask = torch.full((5, 5), float("-inf")).triu(1)
    x = torch.randn(3, 5, 8)
    model = With(lambda _, x: layers(x, mask=mask))
    model.layers = layers
    plan = compile_model(model.eval(), x, threads=1)
    expected = layers(x, mask=mask).detach().numpy()
    np.testing.assert_allclose(Engine(plan, threads=1)(x.numpy()), expected, atol=1e-5)


def test_whole_numbers_of_32_bits_are_taken() -> None:
    model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(20, 2)).eval()
    ids = torch.arange(15, dtype=torch.int32).reshape(3, 5) % 10
    plan = compile_model(model, ids, threads=1)
    expected = model(ids).detach().numpy()
    for given in (ids.numpy(), ids.long().numpy()):
        np.testing.assert_allclose(Engine(plan, threads=1)(given), expected, atol=1e-6)


@pytest.mark.parametrize(
    "function",
    [
        lambda _, x: x * x.shape[0],
        lambda _, x: x / x.numel(),
        lambda _, x: torch.add(x, x, alpha=x.shape[0]),
        lambda _, x: x ** x.shape[0],
        lambda _, x: x + torch.full((1, 6), x.shape[0]),
        lambda _, x: x.clamp(max=x.shape[0]),
        lambda _, x: x * x.shape[0] ** 0.5,
    ],
)
def test_arithmetic_with_the_batch_size_is_refused(function: Callable[..., Tensor]) -> None:
    with pytest.raises(CompileError, match=r"aten\..* depends on the batch size"):
        compile_model(With(function), X)


@pytest.mark.parametrize(
    "function",
    [
        lambda _, x: x + (torch.arange(x.shape[0]) // 4)[:, None],
        lambda _, x: x[torch.arange(x.shape[0]) % 4],
        lambda _, x: x[torch.arange(x.shape[0]).clamp(max=3)],
        lambda _, x: x + torch.full((x.shape[0], 1), x.shape[0] // 4),
        lambda _, x: x * (torch.arange(x.shape[0]) < 4)[:, None],
        lambda _, x: x * (torch.arange(x.shape[0]) < 32)[:, None],
    ],
)
def test_what_is_the_same_for_small_batches_alone_is_refused(function: Callable[..., Tensor]) -> None:
    with pytest.raises(CompileError, match=r"differs from image to image|made of the batch size"):
        compile_model(With(function), X)


def test_arithmetic_with_the_batch_size_runs_in_torch_if_asked() -> None:
    model = With(lambda _, x: x * x.shape[0] - x / x.numel())
    plan = compile_model(model, X, fallback="torch", threads=1)
    assert worst_error(model, plan, [torch.ones(5, 6)]) < 1e-6


def test_the_batch_size_in_a_shape_is_none_in_arithmetic() -> None:
    agrees(
        With(lambda _, x: x.view(x.shape[0], 2, 3)[: x.shape[0]].reshape(x.shape[0] * 2, 3).view(-1, 6)), X
    )


def test_what_breaks_a_lowering_is_told_with_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> object:
        return {}["nothing"]

    monkeypatch.setitem(LOWERINGS, "aten.tanh.default", broken)
    with pytest.raises(CompileError, match=r"aten\.tanh\.default in the model itself .*KeyError: 'nothing'"):
        compile_model(With(lambda _, x: x.tanh()), X)


@pytest.mark.parametrize(
    "function",
    [
        lambda _, x: x.float() * 2,
        lambda _, x: x.to(torch.float32).to("cpu").to(x.device) * 2,
        lambda _, x: x.to(x.dtype) + 1,
    ],
)
def test_conversions_to_the_type_at_hand_change_nothing(function: Callable[..., Tensor]) -> None:
    agrees(With(function), X)


def test_a_condition_on_the_batch_size_that_always_holds_is_none() -> None:
    """Such as (6 · batch) % batch = 0, and that it is the same as 6 times the other input's."""
    agrees(With(lambda _, x, y: (x.view(-1, 2) * 2).view(y.shape[0], 3, -1).flatten(1) + y), X, X + 1)


@pytest.mark.parametrize(
    ("function", "condition"),
    [
        (lambda _, x: x * 2 if x.shape[0] > 4 else x, "batch <= 4|2 ≤ batch ≤ 4"),
        (lambda _, x: x if x.shape[0] < 100 else x * 2, "batch < 100|2 ≤ batch ≤ 99"),
        (lambda _, x: x if x.shape[0] % 2 == 0 else x * 2, r"\(batch % 2\) == 0"),
    ],
)
def test_a_branch_on_the_batch_size_is_refused(function: Callable[..., Tensor], condition: str) -> None:
    with pytest.raises(CompileError, match=f"another path for some batch sizes: .*({condition})"):
        compile_model(With(function), X)


@pytest.mark.parametrize(
    ("function", "difference"),
    [
        (lambda _, x: x * 2 if x.shape[0] == 1 else x, r"output .* by 0\.5 "),
        (lambda _, x: (x + 1, x[:, :3] if x.shape[0] == 1 else x), r"output1 .*\(1, 6\) and \(1, 3\)"),
    ],
)
@pytest.mark.parametrize("x", [X, torch.zeros(2, 6)], ids=["random", "zeros"])
def test_a_branch_on_a_batch_of_one_is_refused(
    function: Callable[..., object], difference: str, x: Tensor
) -> None:
    with pytest.raises(CompileError, match=f"with a batch of 1, {difference}"):
        compile_model(With(function), x)


def test_a_batch_that_the_model_does_not_take_is_passed_over() -> None:
    def choosy(_: nn.Module, x: Tensor) -> Tensor:
        assert x.shape[0] != 1
        return x * 2

    model = With(choosy)
    assert worst_error(model, compile_model(model, X, threads=1), [torch.randn(4, 6)]) < 1e-6


def test_a_dimension_that_squeeze_takes_away_from_one_sample_is_no_difference() -> None:
    model = With(lambda _, x: x.mean((2, 3), keepdim=True).squeeze())
    compile_model(model, torch.randn(2, 6, 3, 3))


def test_indices_and_masks_of_the_example_are_used_again() -> None:
    table = nn.Embedding(9, 4)

    def masked(_: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
        scores = table(ids).sum(-1) + (1 - mask) * -1e9
        return scores.softmax(-1)

    mask = torch.tensor([[1.0, 1, 0], [1, 0, 0]])
    agrees(With(masked), torch.tensor([[1, 8, 0], [3, 2, 0]]), mask)
    compile_model(With(masked), (torch.zeros(2, 3, dtype=torch.int64), mask), precision="bf16")


@pytest.mark.parametrize(
    "function",
    [
        lambda _, x: x + torch.randn(6),
        lambda _, x: x + torch.rand_like(x),
        lambda _, x: F.dropout(x, 0.5, training=True),
        lambda _, x: F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], dropout_p=0.5),
    ],
)
@pytest.mark.parametrize("fallback", [None, "torch"])
def test_what_draws_random_numbers_is_refused(
    function: Callable[..., Tensor], fallback: Literal["torch"] | None
) -> None:
    with pytest.raises(CompileError, match=r"aten\..* draws random numbers"):
        compile_model(With(function), X, fallback=fallback)


def test_what_is_not_the_same_in_every_call_is_refused() -> None:
    """What torch cannot see: state in plain attributes, random numbers of Python."""

    def counting(self: nn.Module, x: Tensor) -> Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        return x * self.calls

    for function in (counting, lambda _, x: x * (1 + random.random())):
        with pytest.raises(CompileError, match="not give the same for the same input"):
            compile_model(With(function), X)


IDS = torch.tensor([[0, 3, 1], [2, 0, 0]])
TABLE = torch.randn(4, 2, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "function",
    [
        lambda _, x: x * torch.tensor([True, False] * 3) + torch.arange(6),
        lambda _, x: x / torch.tensor(2) + x / 3,
        lambda _, x: torch.cat([x, torch.arange(4).expand(x.shape[0], 4)], 1),
        lambda _, x: x + torch.full((x.shape[0], 1), 2) - x * torch.ones(x.shape[0], 1, dtype=torch.bool),
        lambda _, x: x + torch.zeros_like(x) + torch.ones_like(x) * torch.full_like(x, 3),
        lambda _, x: x + x.new_zeros(x.shape[0], 6) + x.new_ones(6) - x.new_full((x.shape[0], 1), 2),
        lambda _, x: x + torch.zeros(x.shape[0], 6, dtype=torch.long).float() + torch.arange(6).type_as(x),
        lambda _, x: x + torch.ones(x.shape[0], 6, dtype=torch.long).type_as(x),
        lambda _, x: F.embedding(torch.zeros(x.shape[0], 3, dtype=torch.long), TABLE).sum(2) + x[:, :3],
        lambda _, x: F.embedding(torch.full((x.shape[0], 3), 2), TABLE).sum(2) + x[:, :3],
        lambda _, x: torch.ones(x.shape[0], 6, dtype=torch.int64).to(x.dtype) * x,
        lambda _, x: x / 0,
        lambda _, x: x / 1e-40,
    ],
)
def test_types_of_constants(function: Callable[..., Tensor]) -> None:
    agrees(With(function), X)


@pytest.mark.parametrize("seen", [[True, False], [False, True], [True, True]], ids=str)
def test_an_attention_mask_may_be_repeated_for_each_sample(seen: list[bool]) -> None:
    def masked(_: nn.Module, x: Tensor) -> Tensor:
        q = x.view(-1, 1, 2, 3)
        mask = torch.tensor(seen)[None, None].expand(x.shape[0], 1, 2, 2)
        whole = torch.ones(x.shape[0], 1, 2, 2, dtype=torch.bool)
        one, other = (F.scaled_dot_product_attention(q, q, q, attn_mask=m) for m in (mask, whole))
        return one + other

    agrees(With(masked), X)


def test_a_number_read_from_a_buffer_is_no_batch_size() -> None:
    for fallback in (None, "torch"):
        with pytest.raises(CompileError, match=r"depends on (the batch size or on )?values"):
            compile_model(With(lambda self, x: x * self.seen.sum().item()), X, fallback=fallback)


@pytest.mark.parametrize(
    "function",
    [
        lambda self, i: self.seen[i],
        lambda _, i: TABLE[i],
        lambda _, i: TABLE[:, :, None].expand(4, 2, 3)[i] * 2,
        lambda _, i: TABLE.index_select(0, i[:, 0]),
    ],
)
def test_rows_of_a_constant(function: Callable[..., Tensor]) -> None:
    agrees(With(function), IDS)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda _, x: x.double() * 2, "it converts to torch.float64"),
        (lambda _, x: x.to(torch.uint8), "it converts to torch.uint8"),
        (lambda _, x: TABLE[:, (x > 0).long()[:, 0]], "another dimension of a constant than the first"),
    ],
)
def test_other_conversions_are_refused(function: Callable[..., Tensor], message: str) -> None:
    with pytest.raises(CompileError, match=message):
        compile_model(With(function), X)


def test_a_network_that_amplifies_rounding_is_no_other_path() -> None:
    x = torch.randn(2, 64)
    model = nn.Sequential(nn.Linear(64, 32), With(lambda _, x: torch.sin(x * 1e5))).eval()
    assert worst_error(model, compile_model(model, x, threads=1), [x]) > 1e-3


def test_an_example_that_the_model_does_not_take_is_told_apart() -> None:
    with pytest.raises(CompileError, match=r"the model itself fails with inputs of shape \(2, 6\): .*shapes"):
        compile_model(nn.Linear(8, 4), X)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda _, x: x @ x.t(), r"aten\.matmul\.default.*it returns the shape \[-1, -1\]"),
        (lambda _, x: x[:, :0], r"this model: .*value 1 cannot have the shape \[1, 0\]"),
        (lambda _, x: torch.cdist(x[:, None], x[:, None] + 1, p=torch.inf), r"aten\._?cdist.*argument inf"),
    ],
)
def test_what_no_file_could_hold_is_refused_at_once(function: Callable[..., Tensor], message: str) -> None:
    with pytest.raises(CompileError, match=f"a plan cannot hold {message}"):
        compile_model(With(function), X, fallback="torch")


def test_a_weight_that_is_used_again_is_stored_once() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix, self.bias = nn.Parameter(torch.randn(6, 6) / 3), nn.Parameter(torch.randn(6))

        def forward(self, x: Tensor) -> Tensor:
            h = x
            for _ in range(4):
                h = torch.tanh(torch.addmm(self.bias, h, self.matrix) + x @ self.matrix)
            return h

    model = Recurrent().eval()
    agrees(model, X)
    assert compile_model(model, X, threads=1).n_weights == 6 * 6 + 6


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        (["a", "a.index"], ["a", "a.index#2"]),
        (["a.values", "a"], ["a.values", "a#2"]),
        (["a.index", "a.values"], ["a.index", "a.values"]),
        (["__program__", "a"], ["__program__#2", "a"]),
    ],
)
def test_names_of_weights_do_not_meet_in_a_file(names: list[str], kept: list[str]) -> None:
    """A sparse weight has two entries, NAME.index and NAME.values; the program has one as well."""
    graph = Graph()
    assert [graph.add_weight(name, np.eye(6, dtype=np.float32)) for name in names] == kept


@pytest.mark.parametrize("fallback", [None, "torch"])
def test_a_number_has_no_dimensions(fallback: Literal["torch"] | None) -> None:
    model = With(lambda _, x: (x, torch.tensor(3.0)) if fallback is None else (x, x.sum() * 2))
    engine = Engine(compile_model(model, X, fallback=fallback, threads=1), threads=1)
    found = engine(X.numpy())
    assert isinstance(found, tuple)
    assert found[1].shape == ()
