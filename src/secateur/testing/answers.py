"""Checks of what a criterion is, and of the scores it returns."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, cast

import torch
from torch import Tensor, nn

from secateur.naming import Named
from secateur.scores import AbstractCriterion
from secateur.targets import select_targets
from secateur.testing.networks import (
    SharedNet,
    busy_cnn,
    half_idle_mlp,
    images,
    make_cnn,
    make_mlp,
    noisy_teacher,
    seeded,
    vectors,
)
from secateur.testing.snapshot import same_bits
from secateur.testing.subjects import Subject, built, require, scored


def is_a_frozen_value(subject: Subject) -> None:
    """The criterion is a frozen dataclass of plain fields: equal options make equal values.

    Plain are None, bool, int, float, str, tuples of these, networks, named functions, and criteria: what
    a configuration can hold and a result can say, without pickle.
    """
    teacher = make_mlp(1)
    criterion: Any = built(subject, teacher)
    kind = type(criterion).__name__
    require(
        isinstance(criterion, AbstractCriterion),
        subject,
        "a criterion that derives from secateur.AbstractCriterion",
        f"{kind} does not",
        f"Write `class {kind}(secateur.AbstractCriterion):`.",
    )
    parameters: Any = vars(type(criterion)).get("__dataclass_params__")
    require(
        parameters is not None and parameters.frozen,
        subject,
        "a frozen dataclass",
        f"{kind} is not one",
        "Put @dataclass(frozen=True) above the class.",
    )
    for field in dataclasses.fields(criterion):
        value = getattr(criterion, field.name)
        require(
            _is_plain(value),
            subject,
            f"a plain value, a network, a named function or a criterion in the field {field.name!r}",
            f"it holds a {type(value).__name__}",
            "Keep the plain options it is made from, and make it in __call__.",
        )
    other = built(subject, teacher)
    require(
        criterion == other and hash(criterion) == hash(other),
        subject,
        "equal options to make equal values with equal hashes",
        "two with the same options differ",
        "Let the dataclass write __eq__ and __hash__.",
    )


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, cast("tuple[object, ...]", value)))
    if value is None or isinstance(value, (bool, int, float, str, nn.Module, AbstractCriterion)):
        return True
    return callable(value) and hasattr(value, "__qualname__")


def scores_every_target(subject: Subject) -> None:
    """A finite, floating tensor of its own for each target, shaped like it, that ranks its weights."""
    for student, batches, teacher in (
        (make_mlp(), vectors(), make_mlp(1)),
        (busy_cnn(), images(), noisy_teacher()),
    ):
        targets = select_targets(student)  # before, lest the criterion freezes them
        scores = scored(subject, student, batches, teacher, where="for each of inputs.targets")
        require_scores(subject, scores, targets)


def scores_nothing_else(subject: Subject) -> None:
    """Weights that are frozen, excluded or not included get no score, and do not disturb."""
    fix = "Go through inputs.targets, not through the parameters or modules of inputs.model."
    limits: tuple[dict[str, Any], ...] = ({"include": ["[03].weight"]}, {"exclude": ["8.*"]})
    for options in limits:
        where = f"with {options}"
        scores = scored(subject, make_cnn(), images(), make_cnn(1), where=where, fix=fix, **options)
        _require_names(subject, scores, ["0.weight", "3.weight"], where, fix)
    student, where = make_cnn(), "of a network with a frozen layer"
    student[3].requires_grad_(False)
    scores = scored(subject, student, images(), make_cnn(1), where=where, fix=fix)
    _require_names(subject, scores, ["0.weight", "8.weight"], where, fix)


def scores_a_shared_weight_once(subject: Subject) -> None:
    """A weight that two layers use has one score, under its first name."""
    with seeded(0):
        student = SharedNet()
    fix = "Go through inputs.targets; if you need the layers of a weight, expect several."
    scores = scored(subject, student, vectors(), make_mlp(1), where="of tied weights", fix=fix)
    _require_names(subject, scores, ["first.weight", "head.weight"], "of tied weights", fix)


def scores_a_masked_network(subject: Subject) -> None:
    """In a cut in stages some weights are 0 already; all have usable scores, and the originals stay.

    `ScoreInputs.weights` then holds the values from before the masks, and these are what scores that depend
    on weights go by: by the parameters, all masked weights would be alike, whatever they were.
    """
    student = make_cnn()
    targets = select_targets(student)
    originals = {name: weight.detach().clone() for name, weight in targets.items()}
    kept = {name: weight.clone() for name, weight in originals.items()}
    with torch.no_grad(), seeded(5):
        masked = {name: torch.rand_like(weight) < 0.5 for name, weight in targets.items()}
        for name, weight in targets.items():
            weight.masked_fill_(masked[name], 0.0)
    again = copy.deepcopy(student)  # before, lest the criterion changes it
    where = "of a network in which half of the weights are masked"
    fix = "Guard divisions by a weight, and multiply by inputs.weights."
    scores = scored(subject, student, images(), make_cnn(1), where=where, fix=fix, weights=originals)
    require_scores(subject, scores, targets)
    same = all(same_bits(originals[name], kept[name]) for name in kept)
    require(same, subject, "inputs.weights to stay as it is", "it was written to", "Work on copies.")
    doubled = {name: torch.where(masked[name], 2 * kept[name], kept[name]) for name in kept}
    others = scored(subject, again, images(), make_cnn(1), where=where, fix=fix, weights=doubled)
    at_masked, of_doubled = (torch.cat([s[n][masked[n]] for n in masked]) for s in (scores, others))
    require(
        len(at_masked.unique()) > 1 or not torch.equal(at_masked, of_doubled),
        subject,
        "scores of masked weights that follow what inputs.weights holds for them",
        f"all are {float(at_masked[0]):g}, also with other values there",
        "Take values from inputs.weights, and only gradients from the parameters of inputs.targets.",
    )


def higher_means_keep(subject: Subject) -> None:
    """Weights that do nothing to speak of are not ranked above those that carry the network.

    Half of the hidden units of a network have weights 1,000 times smaller into and out of them. Any
    score by size, gradient or activation puts these last, one by chance nowhere in particular; only one
    turned upside down puts them first. A score of both signs weighs the direction of a change, for which
    small is not unneeded: of that, nothing is asked here.
    """
    student, idle = half_idle_mlp()
    found = scored(subject, student, vectors(), make_mlp(1), where="of a network with idle units")
    scores = {name: found[name].detach() for name in idle}
    signs = {sign for tensor in scores.values() for sign in tensor.sign().unique().tolist()} - {0.0}
    if len(signs) > 1:
        return
    wins = [_share_of_wins(scores[name][~idle[name]], scores[name][idle[name]]) for name in idle]
    share = sum(wins) / len(wins)
    require(
        share > 0.25,  # chance is 0.50 ± 0.04 here, upside down 0
        subject,
        "higher scores for weights that are needed than for weights that do nothing",
        f"only {share:.0%} of the comparisons were won by the needed ones",
        "Higher = keep: return the negative if your formula says what to remove.",
    )


def _share_of_wins(needed: Tensor, idle: Tensor) -> float:
    """How often a needed weight scores above an idle one; a tie is half a win."""
    difference = needed.double().reshape(-1, 1) - idle.double().reshape(1, -1)
    return float((difference.sign() + 1).mean() / 2)


def require_scores(subject: Subject, scores: Named, targets: Named) -> None:
    """Refuse scores that nothing can be allocated by.

    Args:
        subject: The criterion, for the message.
        scores: What it returned.
        targets: The weights that it was to score.

    Raises:
        AssertionError: naming the first weight whose scores are not usable.
    """
    fix = "Build the answer by going through inputs.targets."
    _require_names(subject, scores, list(targets), "of all targets, in the order that settles ties", fix)
    memory = {p.untyped_storage().data_ptr() for p in targets.values()}
    for name, weight in targets.items():
        _require_tensor(subject, name, scores[name], weight, memory)
    require(
        len({value for name in scores for value in scores[name].flatten().tolist()}) > 1,
        subject,
        "scores that rank the weights",
        "all are the same number",
        "Check that the signal reaches the weights.",
    )


def _require_names(subject: Subject, scores: Named, names: list[str], where: str, fix: str) -> None:
    require(list(scores) == names, subject, f"scores {where}", f"got {list(scores)} for {names}", fix)


def _require_tensor(subject: Subject, name: str, scores: Tensor, weight: Tensor, memory: set[int]) -> None:
    shape = tuple(scores.shape)
    foreign = scores.untyped_storage().data_ptr() not in memory
    finite = scores.is_floating_point() and bool(torch.isfinite(scores).all())
    for holds, expected, found, fix in (
        (shape == tuple(weight.shape), f"shape {tuple(weight.shape)}", shape, "Return a number a weight."),
        (scores.is_floating_point(), "a floating type", scores.dtype, "Convert with .float()."),
        (finite, "finite numbers", "NaN or infinity", "Guard divisions, logarithms and overflow."),
        (not scores.requires_grad, "no graph", "a tensor that requires grad", "Use weight.detach()."),
        (foreign, "memory of its own", "that of a parameter, which the cut writes to", "Add .clone()."),
    ):
        require(holds, subject, f"{expected} in the scores of {name!r}", f"got {found}", fix)
