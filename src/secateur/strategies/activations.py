"""How often the neurons of each layer are on: what a layer's activation takes in, over calibration data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from secateur.errors import ScoreError
from secateur.inputs import call
from secateur.modules import device_of
from secateur.naming import Batches, split_batches
from secateur.scores.base import preserving

RECTIFIERS = frozenset(
    {"relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "prelu", "rrelu", "softplus"}
    | {"elu", "elu_", "selu", "celu", "gelu", "silu", "mish", "hardswish"}
)
"""Activations by the name of their function, also where a module calls it."""

_LAYERS = frozenset(
    {"linear", "bilinear", "matmul", "__matmul__", "mm", "bmm", "addmm", "baddbmm", "einsum"}
    | {"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
    | {"scaled_dot_product_attention", "multi_head_attention_forward"}
)
"""Functions whose output is their own, no longer that of the layers before."""


def layer_entropies(
    model: nn.Module, batches: Batches, targets: Mapping[str, nn.Parameter]
) -> dict[str, float]:
    """Mean entropy of the neurons of each layer that a rectifier follows, in bits.

    A layer's neurons are the channels of what the first rectifier takes in that the layer's output
    reaches in a forward pass, be it through normalisation, pooling or the addition of a shortcut; layers
    that are added up share their neurons. A neuron is on where that is above 0. With p the fraction of
    samples and places where it is on, its entropy is ``−p·log₂p − (1−p)·log₂(1−p)``; neurons that are
    always on or always off are left out of the mean (https://arxiv.org/abs/2308.06619).

    The model is looked at in eval mode and comes back bit for bit.

    Args:
        model: The network, run eagerly.
        batches: Calibration batches, with or without labels.
        targets: The weights of the layers, by name.

    Returns:
        A number in [0, 1] for each layer that a rectifier follows; 0 if all its neurons are always on or
        always off.

    Raises:
        ScoreError: if no layer is followed by a rectifier.
        DataError: if the batches are empty or not usable.
    """
    counts: dict[str, _Counts] = {}
    names = {id(weight): name for name, weight in targets.items()}

    def count(name: str, inputs: Tensor) -> None:
        channel = inputs.ndim - 1 if targets[name].ndim == 2 else 1  # a Linear has its outputs last
        on = (inputs > 0).movedim(channel, 0).flatten(1)
        counts.setdefault(name, _Counts()).add(on)

    with preserving(model), torch.no_grad():
        for inputs, _ in split_batches(batches, device_of(model)):
            with _Tracing(names, count):
                call(model, inputs)
    if not counts:
        raise ScoreError(
            "no prunable layer is followed by a rectifier such as ReLU or GELU, so none has an entropy. "
            "Use another strategy; a compiled network must be given uncompiled."
        )
    return {name: counts[name].entropy() for name in targets if name in counts}


class _Counts:
    """How often each neuron of a layer was on."""

    def __init__(self) -> None:
        self._n_on: Tensor | None = None
        self._n_seen = 0

    def add(self, on: Tensor) -> None:
        """Take in booleans of shape (neurons, samples and places)."""
        n_on = on.sum(dim=1)
        self._n_on = n_on if self._n_on is None else self._n_on + n_on
        self._n_seen += on.shape[1]

    def entropy(self) -> float:
        """Mean over the neurons that are neither always on nor always off; 0 without any."""
        assert self._n_on is not None, "it is made when something is to be counted"
        p = self._n_on.double() / self._n_seen
        p = p[(p > 0) & (p < 1)]
        return float(-(p * p.log2() + (1 - p) * (1 - p).log2()).mean()) if len(p) else 0.0


class _Tracing(TorchFunctionMode):
    """In one forward pass, follows the outputs of layers from function to function to a rectifier.

    Functions and modules are seen alike: `nn.ReLU` calls ``F.relu`` as a forward method may.

    Args:
        names: Of the layers, by the id of their weight.
        on_rectifier: Called with a layer's name and what goes into its rectifier, once a layer.
    """

    def __init__(self, names: Mapping[int, str], on_rectifier: Callable[[str, Tensor], None]) -> None:
        super().__init__()
        self._names = names
        self._on_rectifier = on_rectifier
        self._arrived: set[str] = set()
        self._sources = cast("dict[Tensor, frozenset[str]]", WeakTensorKeyDictionary())

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Call `func`, and note which layers its result comes from."""
        kind, tensors = getattr(func, "__name__", ""), list(_tensors(args, kwargs or {}))
        sources: set[str] = set()
        if kind in _LAYERS:
            sources = {self._names[id(t)] for t in tensors if id(t) in self._names}
        else:
            for tensor in tensors:
                sources |= self._sources.get(tensor, frozenset())
        if kind in RECTIFIERS:
            for name in sources - self._arrived:
                self._on_rectifier(name, tensors[0])
            self._arrived |= sources
            sources = set()
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor):
            self._sources[found] = frozenset(sources)
        return found


def _tensors(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    for item in (*args, *kwargs.values()):
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, (list, tuple)):
            yield from (entry for entry in cast("list[object]", item) if isinstance(entry, Tensor))
