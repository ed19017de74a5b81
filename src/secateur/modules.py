"""Small facts about a network: where it is, which mode each part is in, and whether all of it is there."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, contextmanager
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.modules import transformer
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from secateur.errors import SecateurError

_LEAST_MOMENTUM = 0.1
"""Torch's default, of BatchNorm's running statistics."""


def twin(model: nn.Module) -> nn.Module:
    """A deep copy, also of a model that keeps what a pass computed.

    Old ``weight_norm`` does, and whoever stores activations in an attribute. Torch copies no tensor with a
    history, so these are copied without it.
    """
    computed = (
        leaf
        for module in model.modules()
        for leaf in tree_leaves(vars(module))
        if isinstance(leaf, Tensor) and not leaf.is_leaf
    )
    return copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in computed})


@contextmanager
def modes_kept(model: nn.Module) -> Generator[None]:
    """Give every module back the training flag it had."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def consulted(model: nn.Module) -> Generator[None]:
    """`model` in eval mode, to be asked and not changed: modes and buffers come back as they were."""
    put_back = remembered(model.buffers())
    with modes_kept(model):
        model.eval()
        try:
            yield
        finally:
            put_back()


def random_state_kept(device: torch.device) -> AbstractContextManager[None]:
    """What is drawn inside, on the CPU or on `device`, is not missing from the caller's random numbers."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def to_training(model: nn.Module) -> None:
    """Training mode, but for frozen BatchNorm: layers in eval mode none of whose parameters is trained."""
    frozen = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm)
        and not module.training
        and (own := list(module.parameters(recurse=False)))
        and not any(parameter.requires_grad for parameter in own)
    ]
    model.train()
    for module in frozen:
        module.eval()


@contextmanager
def batch_statistics(model: nn.Module) -> Generator[None]:
    """BatchNorm in training mode inside, unless frozen, and its averages moving by a tenth a batch or more.

    So they follow weights that change, however slowly the network's own training let them move. All else is
    in eval mode, dropout among it, but for recurrent layers, which cannot be trained in it on every device.
    Modes and momenta come back.
    """
    with modes_kept(model):
        to_training(model)
        for module in model.modules():
            if not isinstance(module, (_BatchNorm, nn.RNNBase)):
                module.training = False
        momenta = {module: module.momentum for module in model.modules() if isinstance(module, _BatchNorm)}
        try:
            for module, momentum in momenta.items():
                module.momentum = max(momentum or 0.0, _LEAST_MOMENTUM)
            yield
        finally:
            for module, momentum in momenta.items():
                module.momentum = momentum


def remembered(tensors: Iterable[Tensor]) -> Callable[[], None]:
    """Copy `tensors`; what comes back gives them, bit for bit, the values that they have now.

    Expanded ones are left out: torch lets nobody write to what is one number in several places.
    """
    state = [(tensor, tensor.detach().clone()) for tensor in tensors if not is_expanded(tensor)]

    def put_back() -> None:
        with torch.no_grad():
            for tensor, value in state:
                tensor.copy_(value)

    return put_back


def is_expanded(tensor: Tensor) -> bool:
    """Whether several elements are one number in memory."""
    return any(n > 1 and stride == 0 for n, stride in zip(tensor.shape, tensor.stride(), strict=True))


def why_not_writable(tensor: Tensor) -> str | None:
    """Why nothing can be written to a tensor, and what to do about it; None if it can."""
    if tensor.is_inference() and not torch.is_inference_mode_enabled():
        return "it was made under torch.inference_mode(). Use copy.deepcopy(model), made outside of it."
    if is_expanded(tensor):
        return "it is expanded, many of its numbers are one in memory. Make it with .clone()."
    return None


@contextmanager
def plain_attention() -> Generator[None]:
    """Transformer layers in the operators that they are made of, not in one that does it all.

    That one, for eval mode without gradients, hands nested tensors on. Nor do they look into a mask whether
    it is causal, which only saves time and which export takes for a branch on values.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    detect = transformer._detect_is_causal_mask  # pyright: ignore[reportPrivateUsage]
    torch.backends.mha.set_fastpath_enabled(False)
    transformer._detect_is_causal_mask = _as_told  # pyright: ignore[reportPrivateUsage]
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
        transformer._detect_is_causal_mask = detect  # pyright: ignore[reportPrivateUsage]


def _as_told(mask: Tensor | None, is_causal: bool | None = None, size: int | None = None) -> bool:
    return bool(is_causal)


def device_of(model: nn.Module) -> torch.device:
    """Where the first parameter of `model` lives; the CPU for a model without any."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def without_shape(model: nn.Module) -> str | None:
    """A parameter or buffer that a lazy layer makes when it sees its first input; None if all are there."""
    tensors = chain(model.named_parameters(), model.named_buffers())
    return next((name for name, tensor in tensors if is_lazy(tensor)), None)


def check_has_shapes(model: nn.Module, error: type[SecateurError]) -> None:
    """Refuse to fill a model with a lazy layer that has seen no input yet.

    Raises:
        SecateurError: of the kind `error`, naming a parameter.
    """
    name = without_shape(model)
    if name is not None:
        raise error(
            f"{name!r} of {type(model).__name__} has no shape yet: its lazy layer has seen no input. "
            "Run one batch through the model first, or use the layer with its sizes given."
        )


def share_weights(one: nn.Module, other: nn.Module) -> bool:
    """Whether any parameter of `one` is also one of `other`, as in a wrapper of it."""
    ours = {id(parameter) for parameter in one.parameters()}
    return any(id(parameter) in ours for parameter in other.parameters())
