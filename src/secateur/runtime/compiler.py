"""From a PyTorch model to a plan."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from secateur.counts import check_whole
from secateur.errors import CompileError, DataError, InvalidArgument, PlanError
from secateur.inputs import Arguments, as_inputs, check_takes
from secateur.kinds import check_kind
from secateur.modules import modes_kept
from secateur.provenance import versions
from secateur.runtime.agreement import check_batches
from secateur.runtime.capture import capture
from secateur.runtime.choice import choose_kernels
from secateur.runtime.engine import n_threads
from secateur.runtime.fusion import fuse
from secateur.runtime.graph import Graph
from secateur.runtime.plan import Plan
from secateur.runtime.program import parse_program
from secateur.runtime.weights import PRECISIONS

Precision = Literal["fp32", "bf16", "fp16"]


def compile_model(
    model: nn.Module,
    example: Tensor | Sequence[Tensor] | Mapping[str, Tensor] | Arguments,
    *,
    precision: Precision = "fp32",
    fallback: Literal["torch"] | None = None,
    batches: Iterable[int] | None = None,
    threads: int | None = None,
) -> Plan:
    """A plan for a model: captured by `torch.export`, BatchNorm folded, operations fused, kernels timed.

    The model is compiled as in eval mode, whatever mode it is in, and is left as it was. The batch
    size stays open. Kernels are chosen by running the network with each of them on this machine,
    with the example as input, so compile where the plan will run.

    Args:
        model: On the CPU, in float32.
        example: Its input, a sequence of its inputs, or a mapping of them by name, the batch first; float32,
            int64 or bool. A plan takes them in the same order, or by name.
        precision: Type to store weights in; "bf16" and "fp16" halve them. With "fp16", convolutions and
            linear layers also compute in it where the processor can (AVX512-FP16), else in fp32.
        fallback: "torch" runs operators that a plan has no operation for in torch, which is then
            needed to run the plan.
        batches: Batch sizes to choose kernels for; None for 1 and that of the example.
        threads: Threads to choose kernels for, 1 … 1024; None for as many as this process has cores.

    Returns:
        The plan: ``print`` it, `Plan.save` it, or run it as ``Engine(plan)``.

    Raises:
        CompileError: if the model uses something that a plan cannot hold; names it and its place.
        InvalidArgument: if an option or the example is not as above.
    """
    _check(model, precision, fallback)
    inputs = _inputs(model, example)
    sizes = {1, len(inputs)} if batches is None else _sizes(batches)
    threads = n_threads(threads)
    # A plan computes in float32, also for a caller whose mixed precision is on.
    with modes_kept(model), torch.autocast("cpu", enabled=False):
        model.eval()
        graph = capture(model, inputs, fallback=fallback == "torch")
        fuse(graph)
        if precision == "fp16":
            _check_range(graph)
        found = versions()
        provenance = {"secateur": found["secateur"], "torch": found["torch"]}
        plan = Plan(*graph.finish(precision, provenance))
        _check_program(plan)
        # Rounding shall not hide a difference; but who asks for arithmetic in fp16 can run nothing else.
        as_it_is = precision == "fp32" or os.environ.get("SECATEUR_ISA", "").endswith("fp16")
        exact = plan if as_it_is else Plan(*graph.finish("fp32", provenance))
        check_batches(model, exact, inputs, threads=threads)
    arrays = [x.detach().numpy() for x in inputs.tensors]
    return choose_kernels(plan, arrays, batches=sizes, threads=threads)


def _sizes(batches: object) -> set[int]:
    sizes = list(cast("Iterable[int]", batches)) if isinstance(batches, Iterable) else []
    if not sizes:
        raise InvalidArgument(f"batches must be sizes of at least 1, got {batches!r}.")
    for size in sizes:
        check_whole("each of batches", size, least=1)
    return set(map(int, sizes))


def _inputs(model: nn.Module, example: object) -> Arguments:
    try:
        inputs = as_inputs([example] if isinstance(example, Tensor) else example)
        assert isinstance(inputs, Arguments)
        check_takes(model, inputs)
    except DataError as error:
        raise InvalidArgument(f"the example cannot be used: {error}") from error
    inputs = inputs.map(lambda x: x.long() if x.dtype == torch.int32 else x)
    if not len(inputs):
        raise InvalidArgument("the example must be a batch of at least one.")
    names = [*(f"number {i}" for i in range(len(inputs.positional))), *map(repr, inputs.named)]
    for name, x in zip(names, inputs.tensors, strict=True):
        if x.dtype not in (torch.float32, torch.int64, torch.bool) or x.device.type != "cpu":
            raise InvalidArgument(
                f"input {name} of the example must be float32, int64 or bool on the CPU, "
                f"got {x.dtype} on {x.device}."
            )
        if not x.numel():
            raise InvalidArgument(
                f"input {name} of the example has the shape {tuple(x.shape)}; every size must be at least 1."
            )
    return inputs


def _check_program(plan: Plan) -> None:
    """What no file could hold is refused now, not when the plan is saved or loaded."""
    try:
        parse_program(plan.program.to_json())
    except (PlanError, ValueError) as error:
        raise CompileError(
            f"a plan cannot hold this model: {error.__cause__ or error}. Write that part in other operators."
        ) from error


def _check_range(graph: Graph) -> None:
    """fp16 ends at 65504; a weight beyond would become infinite."""
    largest = float(np.finfo(np.float16).max)
    exact = graph.exact_weights()
    for name, numbers in graph.weights.items():
        if name in exact or numbers.dtype != np.float32:
            continue
        if np.abs(numbers[np.isfinite(numbers)]).max(initial=0) > largest:
            raise InvalidArgument(
                f"weight {name!r} has numbers beyond {largest:g}, too large for fp16. Use bf16."
            )


def _check(model: nn.Module, precision: str, fallback: str | None) -> None:
    check_kind("model", model, nn.Module, "nn.Linear(6, 4)")
    if precision not in PRECISIONS:
        raise InvalidArgument(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}.")
    if isinstance(model, torch.jit.ScriptModule):
        raise InvalidArgument("the model is TorchScript; compile the module that it was made from.")
    if fallback not in (None, "torch"):
        raise InvalidArgument(f'fallback must be "torch" or None, got {fallback!r}.')
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.device.type != "cpu":
            raise InvalidArgument(f"{name!r} is on {tensor.device}; move the model to the CPU to compile it.")
        if tensor.dtype in (torch.float16, torch.bfloat16, torch.float64):
            raise InvalidArgument(
                f"{name!r} is {tensor.dtype}; convert the model with .float() to compile it."
            )
