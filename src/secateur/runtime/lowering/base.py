"""What every lowering function is given: the graph to add to, and constants as values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

from secateur.runtime.graph import UNCHOSEN, Graph
from secateur.runtime.shapes import MOVES, Shape


class Unsupported(ValueError):
    """An operator is used in a way that no operation of a plan covers; the message says in which."""


@dataclass(frozen=True)
class Activation:
    """A value of the graph, as an argument of an operator.

    Attributes:
        value: Its id.
        shape: Its shape; −k is k times the batch size.
        is_condition: Whether it is of torch's type bool: floats that are 1 or 0.
    """

    value: int
    shape: Shape
    is_condition: bool = False


BATCHES = (2, 3, 5, 33)
"""Batch sizes for which it is computed what depends on nothing else: an even and an odd one, one that is
beyond small numbers that a model may compare it with, or divide it by, and one that is beyond larger ones."""


@dataclass(frozen=True, eq=False)
class Sized:
    """What depends on the batch size and on nothing else.

    Attributes:
        at: What it is for each of `BATCHES`.
    """

    at: tuple[Tensor, ...]

    @classmethod
    def or_constant(cls, found: Sequence[Tensor]) -> Sized | Tensor:
        """What was found for each of `BATCHES`; a constant if that is the same."""
        return found[0] if all(_is_same(found[0], x) for x in found) else cls(tuple(found))

    def is_range(self) -> bool:
        """Whether it counts the images, along its first dimension."""
        return all(
            x.shape[:1] == (n,) and x.numel() == n and torch.equal(x.flatten(), torch.arange(n))
            for x, n in zip(self.at, BATCHES, strict=True)
        )

    def one_for_all(self) -> tuple[Tensor, int, Shape]:
        """What each image has of it.

        Returns:
            Its numbers for one image, with a dimension of size 1 for the batch; the place of that dimension;
            and the shape of the whole, in which the batch is joined with the dimension behind it.

        Raises:
            Unsupported: if it is not the same for all images and all batch sizes.
        """
        shapes = [x.shape for x in self.at]
        dims = [d for d, sizes in enumerate(zip(*shapes, strict=True)) if len(set(sizes)) > 1]
        if len(dims) != 1 or any(s[dims[0]] % n for s, n in zip(shapes, BATCHES, strict=True)):
            raise Unsupported("what it is given depends on the batch size")
        (dim,) = dims
        images = [x.unflatten(dim, (n, -1)) for x, n in zip(self.at, BATCHES, strict=True)]
        one = images[0].narrow(dim, 0, 1)
        if any(one.shape[dim + 1] != x.shape[dim + 1] or not _is_same(one.expand_as(x), x) for x in images):
            raise Unsupported("what it is given differs from image to image")
        return one, dim, (*shapes[0][:dim], -one.shape[dim + 1], *shapes[0][dim + 1 :])


def _is_same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same shape, type and numbers, NaN being one."""
    return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())


Operand = Activation | Tensor | float
"""Something that a plan can compute with: an activation, a constant or a number."""
Lower = Callable[..., Activation | Tensor | list[Activation]]

_TYPES = (torch.bool, torch.int64, torch.float32)
_F = TypeVar("_F", bound=Lower)


def kept_as(dtype: torch.dtype) -> torch.dtype:
    """The one of bool, int64 and float32 that a plan keeps a type of torch as."""
    if dtype.is_floating_point:
        return torch.float32
    return torch.bool if dtype == torch.bool else torch.int64


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
        turned: Each constant that has been transposed and what came out, by the id of its tensor, so that
            a layer that is run again has one weight.
        filled: The constant that a value is made of throughout, by the id of the value.
        repeated: The value of what depends on the batch size.
    """

    graph: Graph
    names: dict[int, str]
    place: str = ""
    shapes: Sequence[Shape] = ()
    dtypes: Sequence[torch.dtype] = ()
    entered: dict[int, tuple[str, Tensor]] = field(default_factory=dict[int, tuple[str, Tensor]])
    turned: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict[int, tuple[Tensor, Tensor]])
    filled: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    repeated: dict[Sized, Activation] = field(default_factory=dict[Sized, Activation])

    def add(
        self, kind: str, inputs: Sequence[Operand], shape: Shape = (), /, **attributes: object
    ) -> Activation:
        """Add an operation; its inputs are brought to one type, constants among them become values."""
        found = [self.as_activation(x) for x in (inputs if kind == "torch" else self.promoted(inputs))]
        value = self.graph.add(kind, self.place, [x.value for x in found], shape, **attributes)
        conditions = kind in (*MOVES, "mul") and bool(found) and all(x.is_condition for x in found)
        return Activation(value, self.graph.shape(value), conditions)

    def compare(self, kind: str, a: Operand, b: Operand) -> Activation:
        """Add a comparison."""
        return replace(self.add(kind, [a, b]), is_condition=True)

    def choose(self, condition: Operand, a: Operand, b: Operand) -> Activation:
        """Add a choice of a where a condition holds, else of b."""
        first = self.as_activation(self.to(condition, torch.bool))
        second, third = (self.as_activation(x) for x in self.promoted([a, b]))
        value = self.graph.add("where", self.place, [first.value, second.value, third.value])
        return Activation(value, self.graph.shape(value), second.is_condition)

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
        return Activation(value, self.graph.shape(value), tensor.dtype == torch.bool)

    def dtype(self, x: Activation) -> torch.dtype:
        """Type of a value: float32, int64 or bool."""
        if x.is_condition:
            return torch.bool
        return torch.float32 if self.graph.values[x.value].dtype == "f32" else torch.int64

    def promoted(self, operands: Sequence[Operand]) -> list[Operand]:
        """All in the widest type among them: bool, int64, float32."""
        widest = max((self._rank(x) for x in operands), default=0)
        return [self.to(x, _TYPES[widest]) for x in operands]

    def is_whole(self, *operands: Operand) -> bool:
        """Whether there are no floats among them."""
        return all(self._rank(x) < _TYPES.index(torch.float32) for x in operands)

    def _rank(self, x: Operand) -> int:
        if isinstance(x, Activation):
            return _TYPES.index(self.dtype(x))
        return _TYPES.index(kept_as(x.dtype if isinstance(x, Tensor) else torch.tensor(x).dtype))

    def to(self, x: Operand, wanted: torch.dtype) -> Operand:
        """An operand as float32, int64 or bool; as it is, if it is of this type."""
        if isinstance(x, Tensor):
            return x if kept_as(x.dtype) == wanted else x.to(wanted)
        if not isinstance(x, Activation):
            return float(x) if wanted == torch.float32 else torch.tensor(x).to(wanted)
        if self.dtype(x) == wanted:
            return x
        if x.value in self.filled:
            return self.fill(self.filled[x.value].to(wanted), x.shape)
        if wanted == torch.bool:
            return self.compare("equal", self.compare("equal", x, 0), 0.0)
        if wanted == torch.float32 and x.is_condition:
            return replace(x, is_condition=False)
        dtype = "f32" if wanted == torch.float32 else "i64"
        value = self.graph.add("convert", self.place, [x.value], dtype=dtype)
        return Activation(value, x.shape)

    def repeat(self, x: Sized) -> Activation:
        """What depends on the batch size as a value.

        Raises:
            Unsupported: if it is not the same for all images and all batch sizes.
        """
        if x not in self.repeated:
            one, dim, shape = x.one_for_all()
            if shape[dim] == -1:
                self.repeated[x] = self.fill(one.squeeze(dim + 1).clone(), shape)
            else:
                whole = self.fill(one.clone(), (*one.shape[:dim], -1, *one.shape[dim + 1 :]))
                self.repeated[x] = self.reshape(whole, shape)
        return self.repeated[x]

    def fill(self, tensor: Tensor, shape: Shape) -> Activation:
        """A constant repeated along its dimensions of size 1, as often as the batch asks for."""
        found = self.as_activation(tensor)
        if found.shape != shape:
            found = self.add("expand", [found], shape)
        self.filled[found.value] = tensor
        return found

    def weight(self, tensor: Tensor, role: str) -> str:
        """The name in the graph of a constant, which is entered if it is not there yet."""
        key = id(tensor)
        if key not in self.entered:
            name = self.names.get(key) or (f"{self.place}.{role}" if self.place else role)
            self.entered[key] = (self.graph.add_weight(name, as_numbers(tensor)), tensor)
        return self.entered[key][0]

    def transposed(self, matrix: Tensor) -> Tensor:
        """A constant matrix with rows for columns, the same tensor each time."""
        if id(matrix) not in self.turned:
            self.turned[id(matrix)] = (matrix, matrix.t())
        return self.turned[id(matrix)][1]

    def activate(self, x: Activation, activation: str) -> Activation:
        """Add an activation function, of floats as in torch."""
        return self.add("activate", [self.to(x, torch.float32)], activation=activation)

    def row_as_image(self, x: Activation) -> Activation:
        """Rows of pixels, of shape (batch, channels, width), as images one pixel high."""
        return self.reshape(x, (*x.shape[:2], 1, x.shape[2]))

    def reshape(self, x: Activation, shape: Shape) -> Activation:
        """The same numbers in another shape; nothing if it has that shape."""
        return x if x.shape == shape else self.add("reshape", [x], shape)


def as_numbers(tensor: Tensor) -> NDArray[Any]:
    """A copy of a constant as float32, or int64 if it is of whole numbers.

    Raises:
        Unsupported: if it is complex or of another type that a plan cannot hold.
    """
    if tensor.dtype.is_complex or tensor.is_quantized:
        raise Unsupported(f"it uses a constant of type {tensor.dtype}")
    wide = torch.int64 if kept_as(tensor.dtype) == torch.int64 else torch.float32
    # a copy: what is trained after compiling is another network
    return tensor.detach().to("cpu", wide, copy=True).contiguous().numpy()


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
