"""Checks that scores do not depend on what they should not: chance, containers, layouts, number types."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from secateur.errors import DataError, ScoreError
from secateur.naming import Batches, Named
from secateur.scores import AbstractCriterion
from secateur.targets import select_targets
from secateur.testing.answers import require_scores
from secateur.testing.networks import images, make_cnn, make_mlp, seeded, vectors
from secateur.testing.snapshot import same_bits
from secateur.testing.subjects import (
    Subject,
    built,
    require,
    require_equal,
    scored,
    scored_or_refused,
)


def is_deterministic(subject: Subject) -> None:
    """The same network and data have the same scores, bit for bit, whatever the caller's state.

    That is: from the same value again and from a new one, with another random state, with the student in
    training or in eval mode, and under ``no_grad``.
    """
    student, teacher = make_cnn().train(), make_cnn(1, width=6)
    criterion = built(subject, teacher)

    def again(use: AbstractCriterion) -> Named:
        return scored(subject, student, images(), teacher, where="of a small CNN", criterion=use)

    expected = again(criterion)
    _require_same(subject, expected, again(criterion), "the second time", "Keep no state in the criterion.")
    anew = again(built(subject, teacher))
    _require_same(subject, expected, anew, "from an equal criterion", "Keep no state outside of __call__.")
    with seeded(99):
        other = again(criterion)
    fix = "Draw from torch.Generator().manual_seed(self.seed), with the seed as a field; score in eval mode."
    _require_same(subject, expected, other, "in another random state", fix)
    student.eval()
    fix = "Leave the modes of inputs.model as they are: eval."
    _require_same(subject, expected, again(criterion), "of a student in eval mode", fix)
    with torch.no_grad():
        quiet = again(criterion)
    _require_same(subject, expected, quiet, "under no_grad", "Use torch.enable_grad() where you need it.")


def takes_any_container(subject: Subject) -> None:
    """Batches come in a list, a tuple, a DataLoader or any iterable; as tuples or as lists.

    From an iterator, which can be gone through once only, the scores are the same or an error says so.
    """
    student, teacher, pairs = make_cnn(), make_cnn(1), images()
    expected = scored(subject, student, pairs, teacher, where="from a list of tuples")
    fix = "Take batches from inputs.stream(), not from inputs.batches."
    inputs, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    containers: dict[str, Batches] = {
        "a tuple of lists": tuple([x, y] for x, y in pairs),
        "a DataLoader": DataLoader(TensorDataset(inputs, labels), batch_size=len(pairs[0][1])),
        "an iterable without a length": _Iterable(pairs),
    }
    for name, batches in containers.items():
        found = scored(subject, student, batches, teacher, where=f"from {name}", fix=fix)
        _require_same(subject, expected, found, f"from {name} as from a list of tuples", fix)
    fix = "Go through inputs.stream() once, or keep what you need twice."
    found = scored_or_refused(subject, student, iter(pairs), teacher, where="from an iterator", fix=fix)
    if found is not None:
        _require_same(subject, expected, found, "from an iterator as from a list", fix)


class _Iterable:
    """Nothing but iterable."""

    def __init__(self, batches: list[Any]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self._batches)


def takes_any_memory_layout(subject: Subject) -> None:
    """A network and images that are channels-last have the same scores, but for rounding."""
    student, teacher = make_cnn(), make_cnn(1)
    expected = scored(subject, student, images(), teacher, where="of a contiguous network")
    layout = torch.channels_last
    batches = [(x.contiguous(memory_format=layout), y) for x, y in images()]
    student, teacher = (_laid_out(network, layout) for network in (student, teacher))
    fix = "Use reshape or flatten where you use view, and keep the order of the elements."
    found = scored(subject, student, batches, teacher, where="of a channels-last network", fix=fix)
    what = "of a channels-last network as of a contiguous one"
    require_equal(subject, expected, found, _nearly_equal, what=what, fix=fix)


def _laid_out(network: nn.Module, layout: torch.memory_format) -> nn.Module:
    network = copy.deepcopy(network)
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=layout)
    return network


def takes_unlabelled_data_or_says_so(subject: Subject) -> None:
    """Bare inputs are scored, also alone in a tuple or a list; or a ScoreError asks for labels."""
    student, teacher = make_mlp(), make_mlp(1)
    bare = [x for x, _ in vectors()]
    forms: dict[str, Batches] = {
        "bare inputs": bare,
        "tuples of inputs alone": [(x,) for x in bare],
        "lists of inputs alone": [[x] for x in bare],
    }
    found = {
        name: scored_or_refused(
            subject,
            student,
            batches,
            teacher,
            where=f"from {name}",
            fix='Begin with `if y is None: raise secateur.ScoreError("… needs labels")`.',
            errors=(ScoreError,),
            saying="label",
        )
        for name, batches in forms.items()
    }
    fix = "Take batches from inputs.stream()."
    first = found["bare inputs"]
    for name, scores in found.items():
        same = (scores is None) == (first is None)
        require(same, subject, f"{name} to be taken as bare inputs are", "only one of them is refused", fix)
        if scores is not None and first is not None:
            require_scores(subject, scores, select_targets(student))
            _require_same(subject, first, scores, f"from {name} as from bare inputs", fix)


def asks_for_the_data_it_needs(subject: Subject) -> None:
    """Without data there are scores, or a ScoreError; from an empty loader the same as ever, or an error."""
    student, teacher = make_cnn(), make_cnn(1)
    fix = "Take batches from inputs.stream(), which refuses both."
    without = "without batches"
    found = scored_or_refused(subject, student, None, teacher, where=without, fix=fix, errors=(ScoreError,))
    if found is not None:
        require_scores(subject, found, select_targets(student))
    where, errors = "from an empty loader", (ScoreError, DataError)
    found = scored_or_refused(subject, student, [], teacher, where=where, fix=fix, errors=errors)
    if found is not None:
        full = scored(subject, student, images(), teacher, where="from a list of batches")
        _require_same(subject, full, found, f"{where} as with data, or an error", fix)


def takes_other_precisions_or_says_so(subject: Subject) -> None:
    """Networks in bfloat16, float16 and float64 are scored much as in float32; or an error refuses them."""
    fix = "Compute in float32: weight.detach().float()."
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        student, teacher = make_mlp().to(dtype), make_mlp(1).to(dtype)
        batches = [(x.to(dtype), y) for x, y in vectors()]
        found = scored_or_refused(subject, student, batches, teacher, where=f"in {dtype}", fix=fix)
        if found is None:
            continue
        require_scores(subject, found, select_targets(student))
        single = [(x.float(), y) for x, y in batches]
        expected = scored(subject, student.float(), single, teacher.float(), where="in float32")
        what = f"in {dtype} as in float32, but for rounding"
        require_equal(subject, expected, found, _alike, what=what, fix=fix)


def _require_same(subject: Subject, expected: Named, found: Named, what: str, fix: str) -> None:
    require_equal(subject, expected, found, same_bits, what=what, fix=fix)


def _nearly_equal(a: Tensor, b: Tensor) -> bool:
    scale = float(a.abs().max())
    return torch.allclose(a.double(), b.double(), rtol=1e-3, atol=1e-4 * scale)


def _alike(a: Tensor, b: Tensor) -> bool:
    """The same direction, as far as half precision can tell."""
    a, b = a.double().flatten(), b.double().flatten()
    size = float(a.norm() * b.norm())
    return float(a @ b) > 0.9 * size or size == 0
