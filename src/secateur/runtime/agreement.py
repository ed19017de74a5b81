"""Whether a plan gives what its model gives with other batch sizes than that of the example.

Export follows one path through the model. What it sees of the others it writes down, and `exporting` refuses
it; of a path for a batch of one it sees nothing. So both are run, and their outputs compared.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from secateur.errors import CompileError, InvalidArgument, SlowEngineWarning
from secateur.inputs import Arguments, call
from secateur.modules import plain_attention
from secateur.runtime.differences import largest_difference
from secateur.runtime.engine import Engine
from secateur.runtime.plan import Plan

_BATCHES = (1, 3)
_TOLERANCE = 1e-3
"""Ten times what the engine promises: another path, not another rounding."""
_HALF_TOLERANCE = 0.2
"""The same for arithmetic in fp16, where that is all that may be used."""
_ROUNDINGS = 10
"""So many times what rounding makes of the model itself is rounding, too, of sums in another order."""
_LEAST = 1e-3
"""Outputs smaller than this are nothing but what rounding left."""
_FAR = 1e9
"""Numbers beyond it are no ordinary ones: they overflow whole numbers, and squares of theirs in fp32."""
_DEPENDS = (
    "A plan does the same for every batch size: take out of forward what depends on it. If nothing does, "
    "please report this."
)
_NOT_ORDINARY = (
    "The example, or what the model makes of it, is infinite, NaN or very large: give one such as the model "
    "will see."
)


def check_batches(model: nn.Module, plan: Plan, example: Arguments, *, threads: int) -> None:
    """Run a model and its plan with a few other batch sizes.

    A batch size with which the model itself fails is passed over. A network that amplifies rounding may
    differ by more than others: by ten times what it differs from itself in double precision.

    Args:
        model: In eval mode; its buffers are left as they are.
        plan: Its plan, with fp32 weights unless it can only be run in fp16.
        example: Its inputs, whose rows are taken; where all numbers of one are 0, normal ones.
        threads: Threads of the engine.

    Raises:
        CompileError: if their outputs differ; names the batch size and the largest difference.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SlowEngineWarning)
        engine = Engine(plan, threads=threads)
    allowed = _HALF_TOLERANCE if engine.isa.endswith("fp16") else _TOLERANCE
    generator = torch.Generator().manual_seed(0)
    largest = max((float(x.double().abs().max()) for x in example.tensors), default=0.0)
    for batch in _BATCHES:
        inputs = example.filled([_rows(x, batch, generator) for x in example.tensors])
        expected = _outputs(model, inputs)
        if expected is None:
            continue
        try:
            with np.errstate(all="ignore"):
                found = engine(*(x.numpy() for x in inputs.tensors))
        except InvalidArgument as error:
            raise CompileError(
                f"the plan fails with a batch of {batch}, the model does not: {error}"
            ) from error
        names = [name for name, _ in plan.program.outputs]
        arrays = found if isinstance(found, tuple) else (found,)
        differences = [largest_difference(a, b, least=_LEAST) for a, b in zip(arrays, expected, strict=True)]
        if max(differences, default=0) <= allowed:
            continue
        _check_repeats(model, inputs, expected, allowed)
        roundings = _roundings(model, inputs, expected)
        for name, a, b, difference, rounding in zip(
            names, arrays, expected, differences, roundings, strict=True
        ):
            if difference > max(allowed, _ROUNDINGS * rounding):
                finite = bool(np.isfinite(b).all()) and largest <= _FAR
                raise CompileError(
                    f"with a batch of {batch}, {name} of the plan differs from that of the model by "
                    f"{difference:.2g} of its largest number, or in its shape ({a.shape} and {b.shape}); "
                    f"at most {allowed:g} is allowed. {_DEPENDS if finite else _NOT_ORDINARY}"
                )


def _rows(x: Tensor, batch: int, generator: torch.Generator) -> Tensor:
    if x.is_floating_point() and not x.any():
        return torch.randn((batch, *x.shape[1:]), generator=generator)
    return x.detach()[torch.arange(batch) % x.shape[0]].contiguous()


def _check_repeats(
    model: nn.Module, inputs: Arguments, expected: Sequence[NDArray[Any]], allowed: float
) -> None:
    """Refuse a model that does not give the same again: that is no rounding."""
    again = _outputs(model, inputs) or []
    differences = (largest_difference(a, b, least=_LEAST) for a, b in zip(again, expected, strict=False))
    if len(again) != len(expected) or max(differences) > allowed:
        raise CompileError(
            "the model does not give the same for the same input: it draws random numbers, or keeps "
            "something from one call to the next. A plan does neither: pass in as an input what changes."
        )


def _roundings(model: nn.Module, inputs: Arguments, expected: Sequence[NDArray[Any]]) -> list[float]:
    """How far outputs of the model in float32 are from those in double precision; 0 if nobody can tell."""
    exact = _outputs(model, inputs, double=True)
    if exact is None:
        return [0.0] * len(expected)
    found = [largest_difference(a, b, least=_LEAST) for a, b in zip(expected, exact, strict=True)]
    return [x if math.isfinite(x) else 0.0 for x in found]


def _outputs(model: nn.Module, inputs: Arguments, *, double: bool = False) -> list[NDArray[Any]] | None:
    """What the model returns, None if it fails."""

    def copied(x: Tensor) -> Tensor:
        return x.double() if double and x.is_floating_point() else x.clone()

    state = {name: copied(buffer) for name, buffer in model.named_buffers()}
    if double:
        state |= {name: copied(parameter) for name, parameter in model.named_parameters()}
    try:
        with plain_attention(), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = call(
                lambda *args, **named: functional_call(model, state, args, named, tie_weights=double),
                inputs.map(copied),
            )
    except Exception:
        return None
    return [x.detach().double().numpy() for x in tree_leaves(found) if isinstance(x, Tensor)]
