"""A network as a function of its parameters, for scores that differentiate twice or sample by sample."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from secateur.errors import ScoreError, first_line
from secateur.inputs import Arguments, Inputs, call, check_takes, filled, is_of_types, tensors_of
from secateur.losses import logits_of
from secateur.naming import Named
from secateur.scores.gradient import check_depends, reentrance_explained
from secateur.targets import unwrap

_NO_CHECKPOINTS = (
    "a score that runs the network with other weights than its own cannot follow activation checkpointing. "
    "Switch that off while scoring."
)
_MOST_SAMPLES = 32
"""Samples whose gradients are taken at a time; more are not faster, and their activations need memory."""
_MOST_GRADIENTS = 1 << 26
"""Numbers in these gradients: 256 MB of float32."""


@dataclass(frozen=True)
class Functional:
    """A bare model, and its state as leaves of their own, so that nothing in the model is touched.

    Attributes:
        module: The model without its wrappers; a compiled one is run uncompiled, which second
            derivatives need.
        parameters: Trainable parameters by state-dict name, leaves that require gradients.
        frozen: The other parameters.
        buffers: The buffers. Each call gets copies, so a module that writes its buffers finds the same
            ones in every call.
        dtype: What floating values were promoted to at least.
        slots: See `slots_of`.
    """

    module: nn.Module
    parameters: dict[str, Tensor]
    frozen: dict[str, Tensor]
    buffers: dict[str, Tensor]
    dtype: torch.dtype
    slots: dict[str, str]

    @classmethod
    def of(cls, model: nn.Module, dtype: torch.dtype = torch.float32) -> Functional:
        """The function that `model` is, evaluated in at least `dtype`.

        So a half-precision model has derivatives that do not vanish in its own precision.
        """
        module = unwrap(model)
        parameters: dict[str, Tensor] = {}
        frozen: dict[str, Tensor] = {}
        for name, parameter in module.named_parameters():
            value = promoted(parameter.detach(), dtype)
            if parameter.requires_grad:
                parameters[name] = value.requires_grad_()
            else:
                frozen[name] = value
        buffers = {name: promoted(buffer.detach(), dtype) for name, buffer in module.named_buffers()}
        return cls(module, parameters, frozen, buffers, dtype, slots_of(module))

    def map(self, change: Callable[[Tensor], Tensor]) -> Functional:
        """The same network with `change` applied to each floating parameter and buffer."""
        return replace(
            self,
            parameters={n: change(p.detach()).requires_grad_() for n, p in self.parameters.items()},
            frozen={n: change(p) if p.is_floating_point() else p for n, p in self.frozen.items()},
            buffers={n: change(b) if b.is_floating_point() else b for n, b in self.buffers.items()},
        )

    def __call__(self, parameters: Mapping[str, Tensor], x: Inputs) -> Tensor:
        """The outputs for `x` with `parameters` in place of those of the same name."""
        state = {
            **self.frozen,
            **{name: buffer.clone() for name, buffer in self.buffers.items()},
            **self.parameters,
            **parameters,
        }
        x = filled(x, [promoted(tensor, self.dtype) for tensor in tensors_of(x)])
        return logits_of(call_with(self.module, self.slots, state, x))


def slots_of(module: nn.Module) -> dict[str, str]:
    """The name that a parameter or buffer goes by, for each place in `module` that holds one.

    A tensor in two places goes by one name. A place that can be reached by two names, as its module can, is
    there once: `functional_call` would put back what it had itself put there
    (https://github.com/pytorch/pytorch/issues/164759).
    """
    names = {id(tensor): name for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    places: dict[str, str] = {}
    for prefix, part in module.named_modules():
        how: Any = {"prefix": prefix, "recurse": False, "remove_duplicate": False}
        for place, tensor in (*part.named_parameters(**how), *part.named_buffers(**how)):
            places[place] = names[id(tensor)]
    return places


def call_with(module: nn.Module, slots: Mapping[str, str], state: Named, x: Inputs) -> object:
    """The outputs of `module` for `x`, with `state` in the places of its names (`slots_of`).

    Raises:
        ScoreError: if the network makes tensors that do not go with the precision of `state`, or computes
            activations anew in the backward pass, when its own weights are in their places again.
        DataError: if it does not take the inputs.
    """
    placed = {place: state[name] for place, name in slots.items() if name in state}
    try:
        # The fused attentions have no second derivative.
        with sdpa_kernel(SDPBackend.MATH), disable_saved_tensors_hooks(_NO_CHECKPOINTS):
            return call(
                lambda *args, **named: functional_call(module, placed, args, named, tie_weights=False), x
            )
    except TypeError:
        if isinstance(x, Arguments):
            check_takes(module, x)
        raise
    except RuntimeError as error:
        if _NO_CHECKPOINTS in str(error):
            raise ScoreError(_NO_CHECKPOINTS) from error
        if not is_of_types(error):
            raise
        precisions = ", ".join(sorted({str(t.dtype) for t in placed.values() if t.is_floating_point()}))
        raise ScoreError(
            f"{type(module).__name__} fails with a copy of its weights in {precisions}: {first_line(error)}. "
            "Let tensors that its forward makes take their type from its inputs, as x.new_zeros does."
        ) from error


@contextmanager
def sample_by_sample(criterion: object, advice: str) -> Generator[None]:
    """Say what to do where vmap cannot follow a network.

    Args:
        criterion: Whose gradients of single samples are taken inside.
        advice: What to choose instead.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ScoreError(
            f"{type(criterion).__name__} takes the gradients of single samples with torch.func.vmap, which "
            f"cannot follow this network: {first_line(error)} {advice}"
        ) from error


def promoted(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor` in at least `dtype`, itself if it is already or is not floating."""
    return tensor.to(torch.promote_types(tensor.dtype, dtype)) if tensor.is_floating_point() else tensor


def gradients_of(loss: Tensor, wanted: Named, *, create_graph: bool = False) -> dict[str, Tensor]:
    """∂loss/∂w for each of `wanted`, zeros where the loss does not depend on it.

    Raises:
        ScoreError: if the loss does not depend on any weight.
    """
    check_depends(loss)
    with reentrance_explained():
        found = torch.autograd.grad(
            loss, list(wanted.values()), create_graph=create_graph, allow_unused=True, materialize_grads=True
        )
    return dict(zip(wanted, found, strict=True))


def hessian_product(loss: Tensor, wanted: Named, vector: Named) -> dict[str, Tensor]:
    """``H·v`` by a second backward pass, H the second derivatives of `loss` with respect to `wanted`.

    Args:
        loss: A scalar with its graph, which is used up.
        wanted: The leaves to differentiate by.
        vector: v, a tensor for each of `wanted`.

    Raises:
        ScoreError: if the loss does not depend on any weight.
    """
    gradients = gradients_of(loss, wanted, create_graph=True)
    curved = {name: gradient for name, gradient in gradients.items() if gradient.requires_grad}
    if not curved:  # the loss is linear in every weight
        return {name: torch.zeros_like(weight) for name, weight in wanted.items()}
    found = torch.autograd.grad(
        list(curved.values()),
        list(wanted.values()),
        grad_outputs=[vector[name] for name in curved],
        allow_unused=True,
        materialize_grads=True,
    )
    return dict(zip(wanted, found, strict=True))


def samples_at_once(n_weights: int, *, of: int = 1) -> int:
    """How many gradients of `n_weights` numbers are taken at a time, each of a group of `of` samples; ≥ 1."""
    return max(1, min(_MOST_SAMPLES // of, _MOST_GRADIENTS // n_weights))
