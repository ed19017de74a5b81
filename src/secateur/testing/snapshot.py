"""All of a network's state, to find out bit for bit what something left behind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_MODULE_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def hooks_of(model: nn.Module) -> dict[str, int]:
    """Number of hooks on every module and parameter that has any."""
    found = {
        f"{name}.{kind}": len(getattr(module, kind))
        for name, module in model.named_modules()
        for kind in _MODULE_HOOKS
    }
    found |= {
        f"{name}.{kind}": len(getattr(parameter, kind) or ())
        for name, parameter in model.named_parameters()
        for kind in ("_backward_hooks", "_post_accumulate_grad_hooks")
    }
    return {place: count for place, count in found.items() if count}


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal to the last bit: −0.0 differs from 0.0, NaN equals itself."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    a, b = a.detach().contiguous(), b.detach().contiguous()
    return bool(torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8)))


@dataclass
class Snapshot:
    """A network's state and the random state at one moment.

    Attributes:
        tensors: Parameters and buffers by name, each as the object and as a copy of its value.
        grads: Gradients by the name of their parameter, likewise.
        flags: Names, modes, ``requires_grad``, strides and hooks.
        rng: State of torch's random generator on the CPU.
    """

    tensors: dict[str, tuple[Tensor, Tensor]]
    grads: dict[str, tuple[Tensor, Tensor] | None]
    flags: dict[str, Any]
    rng: Tensor

    @classmethod
    def of(cls, model: nn.Module) -> Snapshot:
        """The state of `model` now."""
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        return cls(
            tensors={name: (t, t.detach().clone()) for name, t in tensors.items()},
            grads={
                name: None if p.grad is None else (p.grad, p.grad.clone())
                for name, p in model.named_parameters()
            },
            flags={
                "names in the state dict": list(model.state_dict()),
                "training modes": {name: module.training for name, module in model.named_modules()},
                "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
                "strides": {name: t.stride() for name, t in tensors.items()},
                "hooks": hooks_of(model),
            },
            rng=torch.get_rng_state(),
        )

    def assert_unchanged(self, model: nn.Module) -> None:
        """Compare `model` with what it was.

        Raises:
            AssertionError: naming the first thing that is not as it was.
        """
        change = next(self.changes(model), None)
        if change is not None:
            raise AssertionError(change)

    def changes(self, model: nn.Module) -> Iterator[str]:
        """A phrase for everything about `model`, or about the random state, that is not as it was."""
        now = Snapshot.of(model)
        for kind, before in self.flags.items():
            if now.flags[kind] != before:
                yield f"the {kind} changed: {_difference(before, now.flags[kind])}"
        if not torch.equal(now.rng, self.rng):
            yield "the random state changed"
        for name in self.tensors.keys() ^ now.tensors.keys():
            yield f"{name} {'is gone' if name in self.tensors else 'is new'}"
        for name, (tensor, value) in self.tensors.items():
            if name in now.tensors and now.tensors[name][0] is not tensor:
                yield f"{name} is another object"
            elif name in now.tensors and not same_bits(now.tensors[name][1], value):
                yield f"the values of {name} changed"
        for name, before in self.grads.items():
            yield from _changes_of_gradient(name, before, now.grads.get(name))


def _difference(before: Any, now: Any) -> str:  # noqa: ANN401 - a list of names, or a value a name
    if isinstance(before, list):
        return f"{now}, before {before}"
    places = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
    return ", ".join(f"{place} is {now.get(place)}, was {before.get(place)}" for place in places)


def _changes_of_gradient(
    name: str, before: tuple[Tensor, Tensor] | None, now: tuple[Tensor, Tensor] | None
) -> Iterator[str]:
    if before is None and now is not None:
        yield f"{name} got a gradient"
    elif before is not None and now is None:
        yield f"{name} lost its gradient"
    elif before is not None and now is not None:
        if now[0] is not before[0]:
            yield f"the gradient of {name} is another object"
        elif not same_bits(now[1], before[1]):
            yield f"the gradient of {name} changed"
