"""Whole networks against torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from runtime.models import Attention, Encoder, MobileNet, SqueezeExcite, outputs_of, sparsify, worst_error
from secateur.errors import CompileError, InvalidArgument
from secateur.models import resnet
from secateur.models.vgg import vgg16_bn

TOLERANCE = 1e-4  # of issue and docs/runtime.md, relative to the largest output
IMAGES = (2, 3, 32, 32)
MODELS = {
    "resnet20": (resnet.resnet20, torch.zeros(IMAGES)),
    "resnet18": (resnet.resnet18, torch.zeros(IMAGES)),
    "resnet50": (resnet.resnet50, torch.zeros(IMAGES)),
    "vgg16": (vgg16_bn, torch.zeros(IMAGES)),
    "mobilenet": (MobileNet, torch.zeros(IMAGES)),
    "efficientnet-lite": (lambda: MobileNet(kernel=5), torch.zeros(IMAGES)),
    "squeeze-excite": (SqueezeExcite, torch.zeros(2, 3, 9, 7)),
    "encoder": (Encoder, torch.zeros(2, 12, dtype=torch.int64)),
    "attention": (Attention, torch.zeros(2, 7, 24)),
}


def random_like(x: Tensor, n: int) -> Tensor:
    shape = (n, *x.shape[1:])
    return torch.randint(0, 50, shape) if x.dtype == torch.int64 else torch.randn(shape)


@pytest.mark.parametrize(
    ("name", "density"),
    [*((name, 0.1) for name in MODELS), *((name, 0.8) for name in ("resnet20", "mobilenet", "encoder"))],
)
def test_models_give_what_torch_gives(name: str, density: float) -> None:
    build, example = MODELS[name]
    model = sparsify(build(), density=density)
    plan = sc.runtime.compile(model, example)
    for n in (1, 2, 5):
        assert worst_error(model, plan, [random_like(example, n)]) < TOLERANCE


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("name", ["resnet20", "encoder"])
def test_a_saved_plan_gives_the_same_numbers(name: str, tmp_path: Path) -> None:
    build, example = MODELS[name]
    plan = sc.runtime.compile(sparsify(build()), example)
    plan.save(tmp_path / "net.plan")
    x = random_like(example, 3).numpy()
    loaded, again = (sc.runtime.load(tmp_path / "net.plan", threads=2) for _ in range(2))
    first = sc.runtime.Engine(plan, threads=2)(x)
    assert isinstance(first, np.ndarray)
    np.testing.assert_array_equal(loaded(x), first)
    np.testing.assert_array_equal(again(x), loaded(x))


def test_a_network_keeps_its_mode_and_weights() -> None:
    model = sparsify(resnet.resnet20())
    model.train()
    model.layer1.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    sc.runtime.compile(model, torch.randn(IMAGES))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_layers_are_fused() -> None:
    plan = sc.runtime.compile(sparsify(resnet.resnet18()), torch.randn(IMAGES))
    kinds = [op.kind for op in plan.program.ops]
    assert kinds == ["conv"] * 20 + ["mean", "linear"]
    assert sum(len(op.inputs) == 2 for op in plan.program.ops) == 8  # one shortcut a block
    assert {op.attributes["activation"] for op in plan.program.ops if op.kind == "conv"} == {"relu", "none"}


def test_parameter_free_shortcuts_become_convolutions() -> None:
    plan = sc.runtime.compile(sparsify(resnet.resnet20()), torch.randn(IMAGES))
    assert [op.kind for op in plan.program.ops] == ["conv"] * 21 + ["mean", "linear"]
    identity = plan.weights["layer2.0.downsample.identity"].to_dense()
    assert identity.shape == (32, 16, 1, 1)
    x = np.arange(16, dtype=np.float32)
    np.testing.assert_array_equal(identity[:, :, 0, 0] @ x, np.pad(x, (8, 8)))


class Strange(nn.Module):
    """An operator that no plan has."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.atan(x)


class Odd(nn.Module):
    """Uses two operators that no plan has."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.strange = Strange()
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.strange(self.conv(x))
        return self.head(torch.asinh(x).mean((2, 3)))


def test_a_missing_operator_is_named_with_its_place() -> None:
    with pytest.raises(CompileError, match=r"aten\.atan\.default in strange .*fallback=\"torch\""):
        sc.runtime.compile(Odd(), torch.randn(IMAGES))


@pytest.mark.usefixtures("engine")
def test_missing_operators_run_in_torch_if_asked(tmp_path: Path) -> None:
    model = sparsify(Odd())
    plan = sc.runtime.compile(model, torch.randn(IMAGES), fallback="torch")
    assert "aten.asinh.default, aten.atan.default" in str(plan)
    plan.save(tmp_path / "odd.plan")
    engine = sc.runtime.load(tmp_path / "odd.plan", threads=1)
    for n in (1, 3):
        x = torch.randn(n, 3, 32, 32)
        np.testing.assert_allclose(engine(x.numpy()), outputs_of(model, [x])[0], rtol=1e-4, atol=1e-5)


def test_a_part_in_torch_may_be_given_the_batch_size_and_constants() -> None:
    class Copied(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            rows = torch.ops.aten.view_copy(torch.flip(x, [2]), (x.shape[0], 3, 1024))
            return torch.atan2(rows, torch.arange(3.0).view(3, 1) + torch.zeros(x.shape[0], 3, 1))

    plan = sc.runtime.compile(Copied(), torch.randn(IMAGES), fallback="torch")
    targets = [op.attributes["target"] for op in plan.program.ops if op.kind == "torch"]
    assert targets == ["aten.view_copy.default", "aten.atan2.default"]
    assert worst_error(Copied(), plan, [torch.randn(4, 3, 32, 32)]) < 1e-6


def test_what_depends_on_values_cannot_be_compiled() -> None:
    class Fickle(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(CompileError, match="depends on values"):
        sc.runtime.compile(Fickle(), torch.randn(IMAGES))


def test_the_batch_cannot_be_mixed() -> None:
    class Mixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean(0, keepdim=True) + x

    with pytest.raises(CompileError, match=r"aten\.mean\.dim in the model itself .*along the batch"):
        sc.runtime.compile(Mixed(), torch.randn(IMAGES))


def test_an_attention_mask_of_zeros_and_ones_is_constant() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(
                x, x, x, attn_mask=torch.ones(6, 6, dtype=torch.bool).tril()
            )

    plan = sc.runtime.compile(Masked(), torch.randn(2, 6, 8))
    assert worst_error(Masked(), plan, [torch.randn(3, 6, 8)]) < TOLERANCE


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_narrow_weights_are_half_the_size_and_about_as_good(precision: str, tmp_path: Path) -> None:
    model = sparsify(resnet.resnet20(), density=0.1)
    x = torch.randn(4, 3, 32, 32)
    sizes: dict[str, int] = {}
    for kind in ("fp32", precision):
        plan = sc.runtime.compile(model, x, precision=kind)  # pyright: ignore[reportArgumentType]
        plan.save(tmp_path / kind)
        sizes[kind] = (tmp_path / kind).stat().st_size
        engine = sc.runtime.load(tmp_path / kind, threads=1)
        error = np.abs(engine(x.numpy()) - outputs_of(model, [x])[0]).max()
        assert error < (1e-4 if kind == "fp32" else 0.2) * np.abs(outputs_of(model, [x])[0]).max()
    assert sizes[precision] < 0.7 * sizes["fp32"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int8"}, "precision must be one of fp32, bf16, fp16, got 'int8'"),
        ({"fallback": "numpy"}, 'fallback must be "torch" or None'),
        ({"batches": []}, "batches must be sizes of at least 1"),
        ({"batches": 4}, "batches must be sizes of at least 1, got 4"),
        ({"batches": [0, 4]}, "each of batches must be at least 1, got 0"),
        ({"batches": [1.5]}, r"each of batches must be a whole number of at least 1, got 1\.5"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"threads": 2.0}, r"threads must be a whole number of at least 1, got 2\.0"),
        ({"threads": 5000}, "threads must be at most 1024, got 5000"),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        sc.runtime.compile(resnet.resnet20(), torch.randn(IMAGES), **options)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ((), "got none"),
        (torch.tensor(1.0), r"tensors of shape \(batch, …\), got \[\(\)\]"),
        (torch.zeros(0, 3, 32, 32), "a batch of at least one"),
        ({"images": torch.zeros(IMAGES)}, r"ResNet cannot be called .* \('images'\): missing"),
        (torch.zeros(IMAGES, dtype=torch.float64), "int64 or bool on the CPU, got torch.float64"),
        ((torch.zeros(IMAGES), torch.zeros(3, 1)), "Repeat along the first axis"),
    ],
)
def test_examples_are_checked(example: object, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        sc.runtime.compile(resnet.resnet20(), example)  # pyright: ignore[reportArgumentType]


def test_weights_too_large_for_fp16_are_named() -> None:
    model = nn.Linear(4, 4)
    nn.init.constant_(model.bias, 1e5)
    with pytest.raises(InvalidArgument, match="weight 'bias' has numbers beyond 65504"):
        sc.runtime.compile(model, torch.zeros(2, 4), precision="fp16")


def test_models_in_other_types_are_refused() -> None:
    with pytest.raises(
        InvalidArgument, match=r"'conv1.weight' is torch.float64; convert the model with .float"
    ):
        sc.runtime.compile(resnet.resnet20().double(), torch.randn(IMAGES))
