"""Operators without an operation of their own, made of others, against torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.models import sparsify
from runtime.test_ops import Function, check, image
from secateur.errors import CompileError
from secateur.runtime import compile as compile_model

SCALE = torch.linspace(0.5, 2, 8)
MASK = torch.arange(63).reshape(9, 7) % 3 == 0
LIMITS = torch.arange(63.0).reshape(9, 7).masked_fill(torch.arange(63).reshape(9, 7) % 2 == 0, float("inf"))
FUNCTIONS: dict[str, dict[str, Callable[[Tensor], Tensor]]] = {
    "activations": {
        "square": torch.square,
        "absolute": torch.abs,
        "leaky relu": lambda x: F.leaky_relu(x, 0.1),
        "leaky relu of a mean slope": lambda x: F.rrelu(x, 0.1, 0.4, training=False),
        "elu": lambda x: F.elu(x * 9, 0.7),
        "celu": lambda x: F.celu(x, 0.3),
        "selu": lambda x: F.selu(x / 1000),
        "softplus": lambda x: F.softplus(x * 30, beta=0.5),
        "log-sigmoid": lambda x: F.logsigmoid(x * 30),
        "softsign": F.softsign,
        "mish": lambda x: F.mish(x * 20),
        "glu": lambda x: F.glu(x, 1),
        "reciprocal": lambda x: 1 / (x * x + 1) + torch.rsqrt(x * x + 1) + (x * x + 1) ** -2,
        "root": lambda x: (x * x) ** 0.5,
        "powers": lambda x: x**5 - x**4 + x.abs() ** 0.75 + x.abs().clamp(0.1) ** -1.5,
        "power by a parameter": lambda x: (x * x + 1) ** SCALE[3:4],
        "powers of numbers": lambda x: 2.5**x + torch.exp2(x),
        "logarithms": lambda x: torch.log2(x.abs() + 0.1) + torch.log10(x.abs() + 0.1),
        "waves and error function": lambda x: torch.sin(x * 5) + torch.cos(x) + torch.erf(x),
        "whole numbers": lambda x: x.mul(4).floor() + x.mul(9).ceil() + torch.trunc(x * 3) + (x * 2).frac(),
        "nearest": lambda x: torch.round(
            torch.cat([x * 7, torch.tensor([0.5, 1.5, -2.5, 0, 1e9, 1e-9, 4]) + 0 * x], 1)
        ),
        "sign": lambda x: torch.sign(x) + torch.sign(x * 0),
    },
    "extremes": {
        "largest": lambda x: x.amax((2, 3)),
        "largest of channels": lambda x: x.amax(1, keepdim=True),
        "largest and not where": lambda x: x.max(3).values,
        "smallest and not where": lambda x: x.min(1, keepdim=True).values,
        "smallest": lambda x: x.amin((1, 3)),
        "larger": lambda x: torch.maximum(x, x.mean(1, keepdim=True)),
        "smaller": lambda x: torch.minimum(x, SCALE.reshape(8, 1, 1)),
        "logarithm of a sum": lambda x: torch.logsumexp(x * 100, (1, 2)),
        "log-softmax": lambda x: F.log_softmax(x * 100, 1),
        "places of the largest": lambda x: x.max(1).indices * 1.0,
        "places of the smallest": lambda x: x.min(-1, keepdim=True).indices * 1.0,
        "largest few": lambda x: x.topk(3, 1).values,
        "places of the largest few": lambda x: x.topk(5, 2).indices * 1.0,
        "smallest few": lambda x: x.topk(1, -1, largest=False).values,
        "few of which not all are finite": lambda x: x.masked_fill(MASK, -math.inf).topk(9, 2).values,
        "largest where the batch is not first": lambda x: x.permute(2, 3, 0, 1).amax(0).permute(1, 0, 2),
        "larger where the batch is not first": lambda x: torch.maximum(
            x.permute(1, 2, 0, 3), SCALE.reshape(8, 1, 1, 1) - 1
        ).permute(2, 0, 1, 3),
        "log-softmax where the batch is not first": lambda x: (
            x.permute(3, 2, 0, 1).log_softmax(1).permute(2, 3, 0, 1)
        ),
        "found": lambda x: torch.cat(
            [
                x[:, :, 0, 0].gather(1, x[:, :, 1, 1].topk(3, 1).indices),
                x[:, :, 1, 1].gather(1, x[:, :, 0, 0].argmax(1, True)),
            ],
            1,
        ),
        "chosen by their logarithm": lambda x: F.cross_entropy(
            x[:, :, 0, 0], x[:, :, 1, 1].argmin(1), reduction="none"
        ),
        "between others": lambda x: torch.clamp(x, SCALE.reshape(8, 1, 1) - 1, x.mean(1, keepdim=True) + 1),
    },
    "masks": {
        "masked": lambda x: F.softmax(x.masked_fill(MASK, float("-inf")), -1),
        "masked by a number": lambda x: x.masked_fill(MASK, 2.5),
        "chosen": lambda x: torch.where(MASK, x * 2, x.mean((2, 3), keepdim=True)),
        "chosen, some infinite": lambda x: torch.where(MASK, LIMITS, x),
        "chosen or zero": lambda x: torch.where(MASK, 0.0, x),
    },
    "norms": {
        "norm": lambda x: F.normalize(x, dim=1),
        "norms of other orders": lambda x: x.norm(1, 1) + x.norm(3, 1) + x.norm(math.inf, 1),
        "variance": lambda x: x.var((1, 2)) + x.var((1, 2), unbiased=False),
        "deviation": lambda x: x.std((1, 2)) + x.std((2, 3), correction=0).mean(1, keepdim=True),
        "variance or deviation and mean": lambda x: (
            torch.add(*torch.var_mean(x, (1, 2))) - torch.add(*torch.std_mean(x, (1, 2), correction=0))
        ),
        "rms norm": lambda x: F.rms_norm(x, (9, 7), MASK.float() + 1, 1e-3),
        "group norm with a scale": lambda x: F.group_norm(x, 2, weight=SCALE),
        "group norm with a shift": lambda x: F.group_norm(x, 2, bias=SCALE),
        "product and sum": lambda x: torch.baddbmm(x[:, 0], x[:, 1], x[:, 2, :7, :7], beta=0.5, alpha=2),
        "einsum": lambda x: (
            torch.einsum("nchw,ndhw->ncd", x, x) @ torch.einsum("nchw,cw->nch", x, torch.ones(8, 7))
        ),
    },
    "moves": {
        "roll": lambda x: torch.roll(x, (2, -3, 9), (1, 3, 2)),
        "repeat": lambda x: x.repeat(1, 2, 1, 3),
        "each repeated": lambda x: x.repeat_interleave(3, 1).repeat_interleave(2, -1),
        "backwards": lambda x: x.flip((1, -1)),
        "places": lambda x: x[:, [7, 0, 1, 2, -1, 2]].index_select(3, torch.tensor([5, 6, 0])),
        "places in the shape of their index": lambda x: x[:, :, torch.tensor([[0, 3], [1, 2]])],
        "reflected": lambda x: F.pad(x, (3, 2, 0, 8), mode="reflect"),
        "replicated": lambda x: F.pad(x, (3, 0, 1, 12), mode="replicate"),
        "circular": lambda x: F.pad(x, (3, 7, 9, 0), mode="circular"),
        "padded and cut off": lambda x: F.pad(x, (4, -7, -9, 3), value=2.0),
        "diagonals": lambda x: x.diagonal(0, 2, 3) + x.diagonal(2, 3, 2) + x.diagonal(-1, -2, -1),
        "windows of a dimension": lambda x: x.unfold(2, 4, 2),
        "windows": lambda x: F.unfold(x, (3, 2), dilation=(2, 1), padding=(1, 2), stride=(1, 2)),
        "windows put together": lambda x: F.fold(F.unfold(x, 3, 2, 1, 2), (9, 7), 3, 2, 1, 2),
        "pixel shuffle": lambda x: F.pixel_shuffle(x, 2),
        "pixel unshuffle": lambda x: F.pixel_unshuffle(x[:, :, :8, :6], 2),
    },
    "what torch takes apart": {
        "a step towards": lambda x: torch.lerp(x, x * x, 0.3) + torch.addcmul(x, x, x, value=0.5),
        "triangles": lambda x: x.tril(1) + x.triu(),
        "shrunk": lambda x: F.hardshrink(x, 0.3) + F.softshrink(x, 0.3) + F.threshold(x, 0.1, 2.0),
        "odds": lambda x: torch.logit(x, 0.1),
        "turned": lambda x: torch.rot90(x, 1, (2, 3)),
        "distance": lambda x: F.pairwise_distance(x, x * x),
        "one of several": lambda x: F.one_hot(x.argmax(1), 8) * 2.0,
    },
}


def written(write: Callable[[Tensor], object]) -> Callable[[Tensor], Tensor]:
    """A function that writes to its input in place, as one that leaves it alone."""

    def function(x: Tensor) -> Tensor:
        x = x * 1.0
        write(x)
        return x

    return function


def shifted(x: Tensor) -> Tensor:
    """A part of the channels moved by a row, as in temporal shift modules."""
    out = torch.empty_like(x)
    out[:, :3, 1:], out[:, :3, 0] = x[:, :3, :-1], 0
    out[:, 3:].copy_(x[:, 3:])
    return out


def spread(x: Tensor) -> Tensor:
    out = x.new_empty(x.shape[0], 8, 18, 21)
    out[:] = 0.5
    out[:, :, ::2, 1::3] = x
    return out


WRITES: dict[str, Callable[[Tensor], Tensor]] = {
    "a place": written(lambda x: x[:, -1].fill_(2.0)),
    "a range": written(lambda x: x[:, :4].add_(x[:, 4:])),
    "all": written(lambda x: x.copy_(x.mean(1, keepdim=True))),
    "nothing": written(lambda x: x[:, 5:5].zero_()),
    "places": written(lambda x: x.__setitem__((slice(None), [0, 2, -1]), x[:, [1, 3, 4]])),
    "places filled": lambda x: x.index_fill(2, torch.tensor([1, 2]), 0.5),
    "places added to": lambda x: x.index_add(1, torch.tensor([0, 3]), x[:, 4:6], alpha=2),
    "where a mask holds": written(lambda x: x.__setitem__(x > 0.5, -1.0)),
    "where a mask of images and channels holds": written(lambda x: x.__setitem__(x.mean((2, 3)) > 0, 0)),
    "shifted": shifted,
    "spread": spread,
}


def test_writing_to_parts_of_a_tensor() -> None:
    check(Several(WRITES.values()), image(8))


def test_writes_that_depend_on_what_is_found_are_refused() -> None:
    for write, message in (
        (lambda x: x.__setitem__(x > 0, x[x > 0] * 2), r"depends on values|values"),
        (
            lambda x: (
                x.__setitem__((slice(None), [0, 0]), 1.0) or x.index_add_(1, torch.tensor([0, 0]), x[:, :2])
            ),
            "several times",
        ),
        (lambda x: x[0].fill_(0), "along the batch"),
    ):
        with pytest.raises(CompileError, match=message):
            compile_model(Function(written(write)), image(8))


class Several(nn.Module):
    """Functions side by side: one plan for all of them."""

    def __init__(self, functions: Iterable[Callable[[Tensor], Tensor]]) -> None:
        super().__init__()
        self.functions = list(functions)
        self.layers = nn.ModuleList(f for f in self.functions if isinstance(f, nn.Module))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [function(x) for function in self.functions]


@pytest.mark.parametrize("group", FUNCTIONS)
def test_functions(group: str) -> None:
    check(Several(FUNCTIONS[group].values()), image(8))


MODULES = [nn.PReLU(), nn.PReLU(8), nn.GLU(1), nn.ChannelShuffle(2)]
MODULES += [nn.InstanceNorm2d(8, affine=True, track_running_stats=True)]
MODULES += [nn.GroupNorm(4, 8), nn.GroupNorm(2, 8, affine=False), nn.InstanceNorm2d(8, affine=True)]


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_modules(module: nn.Module) -> None:
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.2, 2)
    check(module, image(8))
    check(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), module, nn.Conv2d(4 if isinstance(module, nn.GLU) else 8, 4, 1)
        ),
        image(),
    )


SIZES = [{"size": (18, 21)}, {"size": (4, 10)}, {"scale_factor": (1.7, 0.6)}, {"scale_factor": 2}]
MODES = {
    "nearest": {},
    "nearest-exact": {},
    "bilinear": {"align_corners": False},
    "bilinear aligned": {"align_corners": True},
    "bicubic": {"align_corners": False},
    "area": {},
}


@pytest.mark.parametrize("mode", MODES)
def test_interpolation(mode: str) -> None:
    options = {**MODES[mode], "mode": mode.split()[0]}
    check(Several(partial(F.interpolate, **size, **options) for size in SIZES), image())


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_interpolation_in_one_dimension(mode: str) -> None:
    check(nn.Upsample(scale_factor=3, mode=mode), torch.randn(2, 3, 7))


TRANSPOSED = [
    {"kernel_size": 2, "stride": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1},
    {"kernel_size": 4, "stride": 2, "padding": 1, "groups": 2},
    {"kernel_size": (3, 5), "stride": (1, 3), "padding": (0, 2), "dilation": (2, 1), "bias": False},
    {"kernel_size": 1, "stride": 3, "output_padding": 2},
    {"kernel_size": 3, "padding": 3},  # more than the window: the first pixels count for nothing
    {"kernel_size": 3, "stride": 2, "padding": 4},
    {"kernel_size": 3, "stride": 4, "dilation": 3, "output_padding": 2},
]


def test_transposed_convolution() -> None:
    layers = [nn.ConvTranspose2d(4, 6, **options) for options in TRANSPOSED]
    normed = [nn.Sequential(layer, nn.BatchNorm2d(6), nn.ReLU()) for layer in layers[:2]]
    check(Several([*layers, *normed]), image(4))


def test_transposed_convolution_in_one_dimension() -> None:
    check(nn.ConvTranspose1d(4, 6, 4, 2, 1), torch.randn(2, 4, 9))


def test_a_transposed_convolution_has_no_more_products_than_weights() -> None:
    """Every weight is in one phase: the convolution in its place has as many non-zeros."""
    layer = sparsify(nn.ConvTranspose2d(8, 8, 3, 2, 1, 1), density=0.2)
    plan = compile_model(layer, image(8))
    (conv,) = (op for op in plan.program.ops if op.kind == "conv")
    assert plan.weights[conv.attributes["weight"]].n_stored == int(layer.weight.count_nonzero())


class UNet(nn.Module):
    """Down twice and up again, once by a transposed convolution and once by interpolation, with shortcuts."""

    def __init__(self) -> None:
        super().__init__()
        widths = itertools.pairwise((3, 8, 16, 32))
        self.down = nn.ModuleList(self._block(*pair) for pair in widths)
        self.first = nn.ConvTranspose2d(32, 16, 2, 2)
        self.second = nn.Upsample(scale_factor=2, mode="bilinear")
        self.up = nn.ModuleList([self._block(32, 16), self._block(24, 8)])
        self.last = nn.Conv2d(8, 2, 1)

    @staticmethod
    def _block(n_in: int, n_out: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(n_in, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ELU()
        )

    def forward(self, x: Tensor) -> Tensor:
        a = self.down[0](x)
        b = self.down[1](F.max_pool2d(a, 2))
        c = self.down[2](F.max_pool2d(b, 2))
        d = self.up[0](torch.cat([b, self.first(c)], 1))
        return self.last(self.up[1](torch.cat([a, self.second(d)], 1)))


class Decoder(nn.Module):
    """A causal block with RMSNorm, rotary positions and gates, as in language models."""

    def __init__(self, width: int = 16, length: int = 6) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(20, width), nn.RMSNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.gate, self.up = nn.Linear(width, 24, bias=False), nn.Linear(width, 24, bias=False)
        self.head = nn.Linear(24, 20, bias=False)
        angles = torch.outer(torch.arange(float(length)), 10 ** -torch.arange(0, 1, 0.25)).repeat(1, 2)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())
        self.register_buffer("later", torch.ones(length, length).triu(1).bool())

    def _turned(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return x * self.cos + torch.cat([-second, first], -1) * self.sin

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        batch, length, width = x.shape
        heads = self.qkv(self.norm(x)).view(batch, length, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        q, k, v = heads.unbind(0)
        scores = self._turned(q) @ self._turned(k).transpose(-1, -2) / 3
        seen = scores.masked_fill(self.later, float("-inf")).softmax(-1) @ v
        x = x + self.out(seen.transpose(1, 2).reshape(batch, length, width))
        return F.log_softmax(self.head(F.silu(self.gate(x)) * self.up(x)), -1)


def test_networks() -> None:
    check(UNet(), image(3, 16, 16))
    check(Decoder(), torch.randint(0, 20, (2, 6)))


def test_what_runs_along_the_batch_is_refused() -> None:
    for function in (
        lambda x: x.permute(1, 0, 2, 3).amax(1),
        lambda x: x.amax(0),
        lambda x: x.roll(1),
        lambda x: x.flip(0),
        lambda x: x.repeat_interleave(2),
    ):
        with pytest.raises(CompileError, match=r"batch|all dimensions"):
            compile_model(Function(function), image())


def test_an_index_by_a_mask_or_of_two_dimensions_is_refused() -> None:
    first = torch.tensor([0, 1])
    for function in (lambda x: x[:, :, MASK.any(1)], lambda x: x[:, first, first], lambda x: x[:, first[:0]]):
        with pytest.raises(CompileError, match=r"aten\.index\.Tensor.*(mask|of 2|empty|depends on values)"):
            compile_model(Function(function), image(8))


@pytest.mark.parametrize("size", [(8, 6), (9, 7)], ids=str)
def test_maxima_go_back_to_their_places(size: tuple[int, int]) -> None:
    """As in SegNet and ENet."""

    def back(x: Tensor) -> list[Tensor]:
        wide, where = F.max_pool2d(x, (3, 2), return_indices=True)
        small, there = F.max_pool2d(x, 2, return_indices=True)
        return [F.max_unpool2d(small, there, 2, output_size=size), where * 1.0, wide, there * 0.5]

    check(Function(back), image(4, *size))


def test_places_of_maxima_of_windows_that_overlap_are_refused() -> None:
    def places(x: Tensor) -> Tensor:
        return F.max_pool2d(x, 3, 2, return_indices=True)[1] * 1.0

    with pytest.raises(CompileError, match=r"max_pool2d_with.* only the first 1 can be used, not number 2"):
        compile_model(Function(places), image())
