"""A plan as a PyTorch module with dense weights, to be run by torch or compiled by it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.runtime.attributes import WEIGHTS_OF
from secateur.runtime.plan import Plan
from secateur.runtime.program import Op
from secateur.runtime.reference import concrete, number_or
from secateur.runtime.torch_ops import run_in_torch

_Step = Callable[[Op, Sequence[Tensor], Mapping[str, Tensor]], Tensor]


class PlanModule(nn.Module):
    """The network of a plan, operation by operation; BatchNorm is folded as in the plan.

    Args:
        plan: Any plan.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self._program = plan.program
        self._weights = {name: torch.from_numpy(w.to_dense().copy()) for name, w in plan.weights.items()}

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The outputs, for inputs of the shapes in the plan."""
        batch = inputs[0].shape[0]
        floats = [x.float() if x.dtype == torch.bool else x for x in inputs]  # as plans keep conditions
        found = {value: x for (_, value), x in zip(self._program.inputs, floats, strict=True)}
        for op in self._program.ops:
            shape = concrete(self._program.values[op.output].shape, batch)
            weights = {
                key: self._weights[op.attributes[key]]
                for key in WEIGHTS_OF
                if op.attributes.get(key) is not None
            }
            arguments = [found[i] for i in op.inputs]
            if op.kind == "torch":
                result = run_in_torch(op, arguments, batch)
            elif op.kind in ("reshape", "expand"):
                result = arguments[0].reshape(shape) if op.kind == "reshape" else arguments[0].expand(shape)
            else:
                result = _STEPS[op.kind](op, arguments, weights)
            found[op.output] = _ACTIVATIONS[op.attributes.get("activation", "none")](result)
        return tuple(found[value] for _, value in self._program.outputs)


def _conv(op: Op, x: Sequence[Tensor], w: Mapping[str, Tensor]) -> Tensor:
    a = op.attributes
    top, left, bottom, right = a["padding"]
    padding, image = (top, left), x[0]
    if (top, left) != (bottom, right):
        padding, image = (0, 0), F.pad(image, (left, right, top, bottom))
    found = F.conv2d(image, w["weight"], w.get("bias"), a["stride"], padding, a["dilation"], a["groups"])
    return found + x[1] if len(x) == 2 else found


def _linear(op: Op, x: Sequence[Tensor], w: Mapping[str, Tensor]) -> Tensor:
    found = F.linear(x[0], w["weight"], w.get("bias"))
    return found + x[1] if len(x) == 2 else found


def _scale_shift(op: Op, x: Sequence[Tensor], w: Mapping[str, Tensor]) -> Tensor:
    shape = (-1,) + (1,) * (x[0].ndim - 2)
    return x[0] * w["scale"].view(shape) + w["shift"].view(shape)


def _max_pool(op: Op, x: Sequence[Tensor], w: Mapping[str, Tensor]) -> Tensor:
    top, left, bottom, right = op.attributes["padding"]
    image = F.pad(x[0], (left, right, top, bottom), value=float("-inf"))
    return F.max_pool2d(image, op.attributes["kernel"], op.attributes["stride"])


def _avg_pool(op: Op, x: Sequence[Tensor], w: Mapping[str, Tensor]) -> Tensor:
    a = op.attributes
    top, left, bottom, right = a["padding"]
    image = F.pad(x[0], (left, right, top, bottom))
    found = F.avg_pool2d(image, a["kernel"], a["stride"])
    if a["count_padding"]:
        return found
    inside = F.pad(torch.ones_like(x[0][:1, :1]), (left, right, top, bottom))
    return found / F.avg_pool2d(inside, a["kernel"], a["stride"])


def _layer_norm(op: Op, x: Sequence[Tensor], w: Mapping[str, Tensor]) -> Tensor:
    shape = x[0].shape[-op.attributes["n_dims"] :]
    return F.layer_norm(x[0], shape, w.get("scale"), w.get("shift"), op.attributes["eps"])


def _attention(op: Op, x: Sequence[Tensor], w: Mapping[str, Tensor]) -> Tensor:
    q, k, v = x[:3]
    a = op.attributes
    mask = x[3] if len(x) == 4 else None
    return F.scaled_dot_product_attention(q, k, v, mask, scale=a["factor"], is_causal=a["causal"])


def _slice(op: Op, x: Sequence[Tensor], w: Mapping[str, Tensor]) -> Tensor:
    dim, *part = (op.attributes[key] for key in ("dim", "start", "stop", "step"))
    return x[0][(slice(None),) * dim + (slice(*part),)]


def _pad(op: Op, x: Sequence[Tensor], w: Mapping[str, Tensor]) -> Tensor:
    edges = [n for pair in reversed(op.attributes["padding"]) for n in pair]
    return F.pad(x[0], edges, value=float(number_or(op.attributes["value"], -math.inf)))


def _clip(op: Op, x: Sequence[Tensor], w: Mapping[str, Tensor]) -> Tensor:
    low, high = number_or(op.attributes["low"], -math.inf), number_or(op.attributes["high"], math.inf)
    return torch.clamp(x[0], float(low), float(high))


_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "exp": torch.exp,
    "log": torch.log,
    "log1p": torch.log1p,
    "sqrt": torch.sqrt,
    "erf": torch.erf,
    "sin": torch.sin,
    "cos": torch.cos,
    "floor": torch.floor,
    "round": torch.round,
}
_STEPS: Mapping[str, _Step] = {
    "conv": _conv,
    "linear": _linear,
    "scale_shift": _scale_shift,
    "activate": lambda op, x, w: x[0],
    "clip": _clip,
    "add": lambda op, x, w: x[0] + x[1],
    "sub": lambda op, x, w: x[0] - x[1],
    "mul": lambda op, x, w: x[0] * x[1],
    "div": lambda op, x, w: x[0] / x[1],
    "equal": lambda op, x, w: (x[0] == x[1]).float(),
    "less": lambda op, x, w: (x[0] < x[1]).float(),
    "less_equal": lambda op, x, w: (x[0] <= x[1]).float(),
    "where": lambda op, x, w: torch.where(x[0] != 0, x[1], x[2]),
    "convert": lambda op, x, w: x[0].float() if op.attributes["dtype"] == "f32" else x[0].long(),
    "cumsum": lambda op, x, w: torch.cumsum(x[0], op.attributes["dim"]),
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "adaptive_avg_pool": lambda op, x, w: F.adaptive_avg_pool2d(x[0], op.attributes["size"]),
    "mean": lambda op, x, w: x[0].mean(op.attributes["dims"], op.attributes["keep"]),
    "sum": lambda op, x, w: x[0].sum(op.attributes["dims"], op.attributes["keep"]),
    "softmax": lambda op, x, w: torch.softmax(x[0], op.attributes["dim"]),
    "layer_norm": _layer_norm,
    "matmul": lambda op, x, w: x[0] @ x[1],
    "attention": _attention,
    "embedding": lambda op, x, w: F.embedding(x[0], w["weight"]),
    "permute": lambda op, x, w: x[0].permute(op.attributes["dims"]),
    "slice": _slice,
    "cat": lambda op, x, w: torch.cat(list(x), op.attributes["dim"]),
    "pad": _pad,
    "constant": lambda op, x, w: w["weight"],
}
