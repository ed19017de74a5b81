"""Keeping masks: the one way a pruned weight stays pruned while any loop trains the model."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from secateur.errors import MaskError
from secateur.kinds import check_kind
from secateur.masks import Masks, apply_masks, local_mask, local_part


@contextmanager
def keep_masks(model: nn.Module, optimizer: Optimizer, masks: Masks) -> Generator[None]:
    """Keep pruned weights at exactly 0.0 while the body trains `model` with `optimizer`.

    On entry the pruned weights, their gradients and whatever the optimizer remembers at their places
    (momentum, second moments; the whole history of LBFGS) are zeroed. While inside, their gradients
    are zeroed as soon as they are accumulated, so neither clipping nor optimizer state ever sees
    them (those of a weight that was frozen on entry, before each step), and the weights are zeroed after each
    step. On exit every hook is removed and the masks are
    checked. Nothing in the model is renamed or wrapped, so state dicts, copies, ``torch.compile``,
    autocast and gradient scaling work as ever.

    Args:
        model: The model in training, bare, wrapped by ``torch.compile`` or DistributedDataParallel, or
            sharded by FSDP2 (``fully_shard``); then `masks` are the whole ones, equal on all ranks.
        optimizer: Any `torch.optim` optimizer that takes dense gradients, over parameters of `model`.
        masks: What stays.

    Raises:
        MaskError: if the masks do not fit the model, if the optimizer trains none of its masked
            weights, or if on exit a pruned weight is not zero.
        InvalidArgument: if an argument is of another kind, as when two have changed places.
    """
    for name, value, kind, example in (
        ("model", model, nn.Module, "the network that was cut"),
        ("optimizer", optimizer, Optimizer, "torch.optim.SGD(model.parameters(), lr=0.1)"),
        ("masks", masks, Masks, "what cut returns"),
    ):
        check_kind(name, value, kind, f"{example} in keep_masks(model, optimizer, masks)")
    parameters = masks.match(model)
    kept = {name: local_mask(masks[name], p).to(_bits(local_part(p)).dtype) for name, p in parameters.items()}
    _check_optimizer(optimizer, parameters)
    apply_masks(model, masks)
    for name, parameter in parameters.items():
        _gradient_masker(kept[name])(parameter)
    _zero_state(optimizer, parameters, kept)

    def zero_weights(*_: object) -> None:
        # Looked up by name: a wrapper may have replaced the parameter objects since.
        with torch.no_grad():
            bits = [_bits(local_part(parameter)) for parameter in masks.match(model).values()]
            torch._foreach_mul_(  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
                bits, list(kept.values())
            )

    frozen = {name for name, parameter in parameters.items() if not parameter.requires_grad}

    def mask_late(*_: object) -> None:
        # What is trained only later can have had no hook.
        for name, parameter in masks.match(model).items():
            if name in frozen:
                _gradient_masker(kept[name])(parameter)

    with ExitStack() as stack:
        for name, parameter in parameters.items():
            if parameter.requires_grad:
                handle = parameter.register_post_accumulate_grad_hook(_gradient_masker(kept[name]))
                stack.callback(handle.remove)
        if frozen:
            stack.callback(optimizer.register_step_pre_hook(mask_late).remove)
        stack.callback(optimizer.register_step_post_hook(zero_weights).remove)
        yield
        masks.check(model)


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _bits(tensor: Tensor) -> Tensor:
    """The bits of a float tensor as integers, over the same memory."""
    return tensor.view(_INTEGERS[tensor.element_size()])


def _zero(tensor: Tensor, kept: Tensor) -> None:
    """Set what is not kept to +0.0, in place, NaN and infinity too.

    `kept` is 1 where a weight stays and 0 where it goes, and the bits are multiplied by it: several times
    faster than ``masked_fill_``, which would cost a training step a few percent.
    """
    bits = _bits(tensor)
    bits.mul_(kept.to(bits.dtype))


def _gradient_masker(kept: Tensor) -> Callable[[Tensor], None]:
    def mask_gradient(parameter: Tensor) -> None:
        if parameter.grad is not None:
            _zero(local_part(parameter.grad), kept)

    return mask_gradient


def _check_optimizer(optimizer: Optimizer, parameters: dict[str, nn.Parameter]) -> None:
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not any(id(p) in trained for p in parameters.values()):
        raise MaskError(
            "the optimizer trains none of the masked weights. "
            "Make it over the parameters of this very model, after any move or wrap."
        )


def _zero_state(optimizer: Optimizer, parameters: dict[str, nn.Parameter], kept: dict[str, Tensor]) -> None:
    """Zero what the optimizer remembers of pruned weights, wherever it is shaped like the weight."""
    if isinstance(optimizer, torch.optim.LBFGS):
        optimizer.state.clear()  # its history lies in flat vectors over all parameters: it starts anew
        return
    for name, parameter in parameters.items():
        for value in optimizer.state.get(parameter, {}).values():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                _zero(local_part(value), kept[name])
