"""What every lowering function is given: the graph to add to, and constants as values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from secateur.runtime.graph import UNCHOSEN, Graph
from secateur.runtime.shapes import Shape


class Unsupported(ValueError):
    """An operator is used in a way that no operation of a plan covers; the message says in which."""


@dataclass(frozen=True)
class Activation:
    """A value of the graph, as an argument of an operator.

    Attributes:
        value: Its id.
        shape: Its shape; −k is k times the batch size.
    """

    value: int
    shape: Shape


Operand = Activation | Tensor | float
"""Something that a plan can compute with: an activation, a constant or a number."""
Lower = Callable[..., Activation | list[Activation]]

_F = TypeVar("_F", bound=Lower)

LOWERINGS: dict[str, Lower] = {}
"""The function for each operator, by its name such as ``aten.conv2d.default``."""


def lowers(*targets: str) -> Callable[[_F], _F]:
    """Enter a function into `LOWERINGS` for these operators, named without ``aten.``."""

    def enter(function: _F) -> _F:
        for target in targets:
            LOWERINGS[f"aten.{target}"] = function
        return function

    return enter


@dataclass
class Lowering:
    """The operator at hand, and the graph that it is added to.

    Attributes:
        graph: The graph.
        names: State-dict name of each parameter and buffer, by the id of its tensor.
        place: Where the operator stands in the model.
        shapes: Shapes of what the operator returns.
        dtypes: Types of what the operator returns.
        entered: Name in the graph of each constant already in it, by the id of its tensor; with the
            tensor, so that the id stays taken.
        filled: The constant that a value is made of throughout, by the id of the value.
    """

    graph: Graph
    names: dict[int, str]
    place: str = ""
    shapes: Sequence[Shape] = ()
    dtypes: Sequence[torch.dtype] = ()
    entered: dict[int, tuple[str, Tensor]] = field(default_factory=dict[int, tuple[str, Tensor]])
    filled: dict[int, Tensor] = field(default_factory=dict[int, Tensor])

    def add(
        self, kind: str, inputs: Sequence[Operand], shape: Shape = (), /, **attributes: object
    ) -> Activation:
        """Add an operation; constants among its inputs become values first, beside floats floats."""
        beside_floats = any(isinstance(x, Activation) and self.dtype(x) == torch.float32 for x in inputs)
        if beside_floats and kind != "torch":
            inputs = [self._widened(x) for x in inputs]
        ids = [self.as_activation(x).value for x in inputs]
        value = self.graph.add(kind, self.place, ids, shape, **attributes)
        return Activation(value, self.graph.shape(value))

    def add_layer(
        self, kind: str, x: Operand, weight: Tensor, bias: Tensor | None, **attributes: object
    ) -> Activation:
        """Add a convolution or linear layer without activation, its kernel not chosen yet."""
        return self.add(
            kind,
            [x],
            weight=self.weight(weight, "weight"),
            bias=None if bias is None else self.weight(bias, "bias"),
            activation="none",
            **{**attributes, **UNCHOSEN},
        )

    def as_activation(self, x: Operand) -> Activation:
        """A constant as a value, computed anew in each run; activations as they are."""
        if isinstance(x, Activation):
            return x
        tensor = x if isinstance(x, Tensor) else torch.tensor(float(x))
        value = self.graph.add("constant", self.place, [], weight=self.weight(tensor, "constant"))
        return Activation(value, self.graph.shape(value))

    def dtype(self, x: Activation) -> torch.dtype:
        """Type of a value, float32 or int64."""
        return torch.float32 if self.graph.values[x.value].dtype == "f32" else torch.int64

    def fill(self, tensor: Tensor, shape: Shape) -> Activation:
        """A constant repeated along its dimensions of size 1, as often as the batch asks for."""
        found = self.as_activation(tensor)
        if found.shape != shape:
            found = self.add("expand", [found], shape)
        self.filled[found.value] = tensor
        return found

    def _widened(self, x: Operand) -> Operand:
        """What is constant in floats, as torch does with whole numbers beside them."""
        if isinstance(x, Tensor):
            return x if x.dtype.is_floating_point else x.float()
        if isinstance(x, Activation) and x.value in self.filled:
            return self.fill(self.filled[x.value].float(), x.shape)
        return x

    def weight(self, tensor: Tensor, role: str) -> str:
        """The name in the graph of a constant, which is entered if it is not there yet."""
        key = id(tensor)
        if key not in self.entered:
            name = self.names.get(key) or (f"{self.place}.{role}" if self.place else role)
            self.entered[key] = (self.graph.add_weight(name, as_numbers(tensor)), tensor)
        return self.entered[key][0]

    def activate(self, x: Activation, activation: str) -> Activation:
        """Add an activation function."""
        return self.add("activate", [x], activation=activation)

    def reshape(self, x: Activation, shape: Shape) -> Activation:
        """The same numbers in another shape; nothing if it has that shape."""
        return x if x.shape == shape else self.add("reshape", [x], shape)


def as_numbers(tensor: Tensor) -> NDArray[Any]:
    """A constant as float32 or int64.

    Raises:
        Unsupported: if it is complex or of another type that a plan cannot hold.
    """
    if tensor.dtype.is_complex or tensor.is_quantized:
        raise Unsupported(f"it uses a constant of type {tensor.dtype}")
    wide = torch.float32 if tensor.dtype.is_floating_point else torch.int64
    return np.ascontiguousarray(tensor.detach().to("cpu", wide).numpy())


def constant(x: object, what: str) -> Tensor:
    """A constant that must be one.

    Raises:
        Unsupported: if it is an activation.
    """
    if not isinstance(x, Tensor):
        raise Unsupported(f"its {what} is not constant")
    return x


def optional(x: object, what: str) -> Tensor | None:
    """A constant or nothing."""
    return None if x is None else constant(x, what)


def number(x: object, what: str) -> float:
    """A number that must not depend on the input.

    Raises:
        Unsupported: if it does.
    """
    if isinstance(x, Tensor) and x.numel() == 1:
        return float(x)
    if not isinstance(x, int | float):
        raise Unsupported(f"its {what} is not a fixed number")
    return x


def pair(x: int | Sequence[int]) -> list[int]:
    """One number for both directions, or one for each, as two."""
    items = [x] if isinstance(x, int) else list(x)
    return [int(i) for i in (items * 2 if len(items) == 1 else items)]


def dimension(dim: int, shape: Shape) -> int:
    """A dimension counted from 0, which must not be the batch.

    Raises:
        Unsupported: if it is the batch.
    """
    positive = dim % len(shape)
    if shape[positive] < 0:
        raise Unsupported("it runs along the batch")
    return positive
