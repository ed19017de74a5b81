"""Why torch.export cannot capture a model, said in words of the model: what of it, where, and what to do."""

from __future__ import annotations

import inspect
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Generator, Mapping

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from secateur.errors import CompileError, first_line
from secateur.inputs import Arguments, call


def check_runs(model: nn.Module, inputs: Arguments) -> None:
    """Refuse an example that the model itself cannot be called with.

    Raises:
        CompileError: with what the model raises.
    """
    error = _failure(model, inputs)
    if error is not None:
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs.tensors)
        raise CompileError(
            f"the model itself fails with inputs of shape {shapes}: {first_line(error).rstrip('.')}. "
            "Give an example that it can be called with, in batches of any size."
        ) from error


def _failure(model: nn.Module, inputs: Arguments) -> Exception | None:
    """What the model itself raises, None if it runs."""
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call(model, inputs)
    except Exception as error:
        return error
    return None


def why_not(error: Exception, model: nn.Module, inputs: Arguments) -> str:
    """Why export failed and what to do, as far as it is known; else what torch says of it."""
    clues = "\n".join((f"{type(error).__name__}: {error}", *_clues(error)))
    for pattern, says in _KNOWN.items():
        match = re.search(pattern, clues)
        if match and isinstance(says, str):
            return says.format(*match.groups(), where=_where_raised(error))
        told = says(match, model, inputs) if match and not isinstance(says, str) else None
        if told:
            return told
    return (
        f"torch.export cannot capture this model with a batch of any size{_where_raised(error)}: "
        f"{said(error)}. Change that part of forward so that torch.export takes it."
    )


def _clues(error: Exception) -> Generator[str]:
    """Through which functions of torch an exception came, and whether they were given a packed sequence."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        yield f"in {frame.f_globals.get('__name__')}.{frame.f_code.co_name}"
        if any(type(value) is PackedSequence for value in frame.f_locals.values()):
            yield "with a PackedSequence"


def _where_raised(error: Exception) -> str:
    """The last line of the model's own code that an exception came through, empty if there is none."""
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        package = str(frame.f_globals.get("__name__")).partition(".")[0]
        if package not in _NOT_OF_THE_MODEL:
            place = f' (File "{frame.f_code.co_filename}", line {line}, in {frame.f_code.co_name})'
    return place


def said(error: Exception) -> str:
    """The first line of an exception that says something, with its kind."""
    lines = [line.strip(" -") for line in str(error).splitlines()]
    told = next((line for line in lines if line and not line.startswith("Constraints violated")), "")
    return f"{type(error).__name__}: {told}".rstrip(" .:")


_NOT_OF_THE_MODEL = {"torch", "secateur", "sympy", "None", *sys.stdlib_module_names}
"""Packages whose lines are no place in a model; what torch makes up has none."""


def _of_one_batch(match: re.Match[str], model: nn.Module, inputs: Arguments) -> str:
    """What to say of a batch size that is fixed; the model run with another one tells where."""
    n = len(inputs)
    error = _failure(model, inputs[torch.arange(n + 1) % n])
    if error is None:
        return (
            "forward makes a plain number of the batch size, as int(x.shape[0]), len(x) and loops over "
            "samples do, and a plan takes any. Use x.shape[0] as it is, and operators on the whole batch."
        )
    reason = first_line(error).rstrip(".")
    return (
        f"forward can be captured for a batch of {match[1]} alone: with {n + 1} it fails"
        f"{_where_raised(error)}: {reason}. Take the number from x.shape[0]."
    )


def _of_names(_: re.Match[str], model: nn.Module, inputs: Arguments) -> str | None:
    """What to say of inputs that forward takes by no name of its own; None if there are none."""
    parameters = inspect.signature(model.forward).parameters
    names = ", ".join(repr(name) for name in inputs.named if name not in parameters)
    last = list(parameters)[-1]
    return names and f"forward takes {names} in its **{last}. Name it in the signature of forward."


def _of_inference(_: re.Match[str], model: nn.Module, __: Arguments) -> str | None:
    """What to say of weights made in inference mode; None if there are none."""
    name = next((name for name, x in model.named_parameters() if x.is_inference()), None)
    return name and (
        f"parameter {name!r} was made under torch.inference_mode(), and torch.export takes none of those. "
        "Outside of that mode, compile copy.deepcopy(model)."
    )


_Says = Callable[[re.Match[str], nn.Module, Arguments], str | None]
_KNOWN: Mapping[str, str | _Says] = {
    r"in torch\.nn\.utils\.rnn\.(?:pack|pad_packed|_packed)|with a PackedSequence": (
        "packed sequences cannot be captured{where}. Run the layer on the padded sequences as they are, "
        "without pack_padded_sequence, and mask what lies behind their ends."
    ),
    r"Constraints violated[\s\S]*constant \((\d+)\)": _of_one_batch,
    r"Found <class '(.+?)'> in output": (
        "forward returns a {0}. Return a tensor, or a tuple, list, dict or NamedTuple of tensors."
    ),
    r"Must provide a tree_name": _of_names,
    r"data-dependent[\s\S]*in torch\.distributions\.": (
        "a distribution of torch checks the values that it is given{where}, and a plan takes one path for "
        "all. Make it with validate_args=False."
    ),
    r"data-dependent": (
        "what forward does depends on values{where}: for others, it takes another path or another size, and "
        "a plan takes one for all. Choose with torch.where there, or take it out of forward."
    ),
    r"(?:UnsupportedOperatorException: |no fake impl registered for <CustomOpDef\()([\w:.]+)": (
        "torch.export cannot capture {0}{where}: torch does not know what shape it gives. Write it in other "
        "operators, or take it out of forward."
    ),
    r"inference tensor": _of_inference,
}
"""By what stands in an exception of export or its `_clues`: what is said, or a function that says it."""
