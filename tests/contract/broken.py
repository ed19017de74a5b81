"""Criteria that break the contract, each in one way, by the check that has to find it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.scores import AbstractCriterion, ScoreInputs
from secateur.scores.base import preserving
from secateur.testing import Subject

Scores = dict[str, Tensor]
Rule = Callable[[ScoreInputs], Any]


def magnitudes(inputs: ScoreInputs) -> Scores:
    return {name: weight.abs().float() for name, weight in inputs.weights.items()}


def each(change: Callable[[Tensor], Tensor]) -> Rule:
    """Magnitudes, each tensor changed."""
    return lambda inputs: {name: change(tensor) for name, tensor in magnitudes(inputs).items()}


def criterion(rule: Rule, name: str) -> type[AbstractCriterion]:
    """A frozen dataclass that is fine but for what `rule` does."""

    def call(self: AbstractCriterion, inputs: ScoreInputs) -> Any:
        return rule(inputs)

    return dataclass(frozen=True)(type(name, (AbstractCriterion,), {"__call__": call}))


# What it is


class Unrelated:
    def __call__(self, inputs: ScoreInputs) -> Scores:
        return magnitudes(inputs)


class NoDataclass(AbstractCriterion):
    def __call__(self, inputs: ScoreInputs) -> Scores:
        return magnitudes(inputs)


@dataclass
class NotFrozen(NoDataclass):
    power: int = 1


@dataclass(frozen=True)
class HoldsTensor(NoDataclass):
    scale: Tensor = field(default_factory=lambda: torch.ones(()))


@dataclass(frozen=True)
class HoldsList(NoDataclass):
    layers: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class EqualToNothing(NoDataclass):
    power: int = 1


@dataclass(frozen=True)
class NeedsOptions(NoDataclass):
    power: int


class OnlyInherits(criterion(magnitudes, "Fine")):  # type: ignore[misc]
    """A subclass without a decorator of its own: its new field would be no option."""

    power: int = 2


# What it returns


def without_the_last(inputs: ScoreInputs) -> Scores:
    return dict(list(magnitudes(inputs).items())[:-1])


def backwards(inputs: ScoreInputs) -> Scores:
    return dict(reversed(magnitudes(inputs).items()))


def with_nan(scores: Tensor) -> Tensor:
    scores.view(-1)[0] = float("nan")
    return scores


def with_a_graph(inputs: ScoreInputs) -> Scores:
    return {name: weight.abs() for name, weight in inputs.targets.items()}


def the_weights_themselves(inputs: ScoreInputs) -> Scores:
    return {name: weight.detach() for name, weight in inputs.targets.items()}


def all_parameters(inputs: ScoreInputs) -> Scores:
    return {name: p.detach().abs() for name, p in inputs.model.named_parameters() if p.ndim > 1}


def by_layer(inputs: ScoreInputs) -> Scores:
    ours = {id(weight) for weight in inputs.targets.values()}
    return {
        f"{name}.weight": module.weight.detach().abs()
        for name, module in inputs.model.named_modules()
        if id(getattr(module, "weight", None)) in ours
    }


def divides_by_weights(inputs: ScoreInputs) -> Scores:
    return {name: w.abs() * (w / inputs.targets[name].detach()) for name, w in inputs.weights.items()}


def by_the_parameters(inputs: ScoreInputs) -> Scores:
    return {name: weight.detach().abs().float() for name, weight in inputs.targets.items()}


def saliency_by_the_parameters(inputs: ScoreInputs) -> Scores:
    scores = {name: torch.zeros_like(weight).float() for name, weight in inputs.weights.items()}
    for x, y in inputs.stream_labelled(criterion(magnitudes, "Any")()):
        inputs.task_loss(inputs.model(x), y).backward()
        for name, weight in inputs.targets.items():
            scores[name] += (weight.detach() * weight.grad).abs().float()  # type: ignore[operator]
    return scores


def writes_to_the_originals(inputs: ScoreInputs) -> Scores:
    for name, weight in inputs.targets.items():
        inputs.weights[name].copy_(weight.detach())
    return magnitudes(inputs)


# What it leaves behind


def leaves_a_hook(inputs: ScoreInputs) -> Scores:
    next(iter(inputs.targets.values())).register_hook(lambda gradient: gradient)
    return magnitudes(inputs)


def leaves_a_module_hook(inputs: ScoreInputs) -> Scores:
    inputs.model.register_forward_hook(lambda *_: None)
    return magnitudes(inputs)


def mutates_a_weight(inputs: ScoreInputs) -> Scores:
    scores = magnitudes(inputs)
    next(iter(inputs.targets.values())).data[0] *= 2
    return scores


def registers_a_parameter(inputs: ScoreInputs) -> Scores:
    inputs.model.register_parameter("seen", nn.Parameter(torch.zeros(1)))
    return magnitudes(inputs)


def freezes(inputs: ScoreInputs) -> Scores:
    for parameter in inputs.model.parameters():
        parameter.requires_grad_(False)
    return magnitudes(inputs)


@dataclass(frozen=True)
class DriftingTeacher(AbstractCriterion):
    """Changes the teacher's buffers and random state: it is run without being preserved."""

    teacher: nn.Module

    def __call__(self, inputs: ScoreInputs) -> Scores:
        for x, _ in inputs.stream():
            self.teacher(x)
        return magnitudes(inputs)


def restores_weights_if_all_goes_well(inputs: ScoreInputs) -> Scores:
    originals = {name: weight.detach().clone() for name, weight in inputs.targets.items()}
    for weight in inputs.targets.values():
        weight.data.abs_()
    for x, _ in inputs.stream():
        inputs.model(x)
    for name, weight in inputs.targets.items():
        weight.data.copy_(originals[name])
    return magnitudes(inputs)


def removes_hooks_if_all_goes_well(inputs: ScoreInputs) -> Scores:
    handles = [weight.register_hook(lambda gradient: gradient) for weight in inputs.targets.values()]
    for x, y in inputs.stream_labelled(criterion(magnitudes, "Any")()):
        inputs.task_loss(inputs.model(x), y).backward()
    for handle in handles:
        handle.remove()
    return magnitudes(inputs)


def swallows_errors(inputs: ScoreInputs) -> Scores:
    scores = magnitudes(inputs)
    try:
        for x, _ in inputs.stream():
            inputs.model(x)
    except Exception:
        scores = magnitudes(inputs)
    return scores


@dataclass(frozen=True)
class Swallows(AbstractCriterion):
    """Catches whatever is raised in one place, and goes on with the next batch."""

    teacher: nn.Module
    where: str = "loss"

    def __call__(self, inputs: ScoreInputs) -> Scores:
        for x, y in inputs.stream_labelled(self):
            with preserving(self.teacher):
                self.guarded("teacher", self.teacher, x)
            outputs = self.guarded("forward", lambda x: inputs.model(x), x)
            if outputs is not None:
                loss = self.guarded("loss", lambda z, y=y: inputs.task_loss(z, y), outputs)
                if loss is not None:
                    weights = list(inputs.targets.values())
                    self.guarded("backward", lambda loss, w=weights: torch.autograd.grad(loss, w), loss)
        return magnitudes(inputs)

    def guarded(self, where: str, call: Callable[[Tensor], Any], argument: Tensor) -> Any:
        if self.where != where:
            return call(argument)
        try:
            return call(argument)
        except Exception:
            return None


# What it depends on

_calls = count(1)


def by_the_number_of_calls(inputs: ScoreInputs) -> Scores:
    return {name: tensor * next(_calls) for name, tensor in magnitudes(inputs).items()}


def unseeded(inputs: ScoreInputs) -> Scores:
    return {name: torch.rand(weight.shape) for name, weight in inputs.targets.items()}


@dataclass(frozen=True)
class Remembers(AbstractCriterion):
    """Keeps state between calls where a frozen value has none."""

    def __call__(self, inputs: ScoreInputs) -> Scores:
        n_calls = self.__dict__.get("n_calls", 0) + 1
        object.__setattr__(self, "n_calls", n_calls)
        return {name: tensor + n_calls for name, tensor in magnitudes(inputs).items()}


def takes_pairs_of_a_list(inputs: ScoreInputs) -> Scores:
    n_samples = sum(len(y) for _, y in inputs.stream_labelled(criterion(magnitudes, "Any")()))
    return {name: tensor * n_samples / len(inputs.batches) for name, tensor in magnitudes(inputs).items()}  # type: ignore[arg-type]


def goes_through_the_data_twice(inputs: ScoreInputs) -> Scores:
    n_labels = sum(len(y) for _, y in inputs.stream_labelled(criterion(magnitudes, "Any")()))
    n_samples = 1 + sum(len(batch[0]) for batch in inputs.batches or ())
    return {name: tensor * n_samples + n_labels for name, tensor in magnitudes(inputs).items()}


def in_order_of_memory(inputs: ScoreInputs) -> Scores:
    return {
        name: torch.as_strided(weight, (weight.numel(),), (1,)).abs().reshape(weight.shape)
        for name, weight in inputs.weights.items()
    }


def views(inputs: ScoreInputs) -> Scores:
    return {name: weight.view(-1).abs().view_as(weight) for name, weight in inputs.weights.items()}


def takes_labels_for_granted(inputs: ScoreInputs) -> Scores:
    scores = magnitudes(inputs)
    for x, y in inputs.stream():
        loss = F.cross_entropy(inputs.model(x), y)  # type: ignore[arg-type]
        for name, gradient in zip(scores, torch.autograd.grad(loss, [*inputs.targets.values()]), strict=True):
            scores[name] = scores[name] + gradient.abs()
    return scores


def asks_for_labels_in_other_words(inputs: ScoreInputs) -> Scores:
    for _, y in inputs.stream():
        if y is None:
            raise ValueError("labels, please")
    return magnitudes(inputs)


def is_content_with_no_data(inputs: ScoreInputs) -> Scores:
    pairs = list(inputs.batches or ())
    n_samples = sum(len(pair if isinstance(pair, Tensor) else pair[0]) for pair in pairs)
    return {name: tensor * (1 + n_samples) for name, tensor in magnitudes(inputs).items()}


def stumbles_over_no_data(inputs: ScoreInputs) -> Scores:
    for _ in inputs.batches:  # type: ignore[union-attr]
        pass
    return magnitudes(inputs)


def underflows(inputs: ScoreInputs) -> Scores:
    return {name: (1e-4 * weight) ** 2 for name, weight in inputs.weights.items()}


def insists_on_float32(inputs: ScoreInputs) -> Scores:
    return {name: weight.abs() @ torch.eye(weight.shape[-1]) for name, weight in inputs.weights.items()}


def ranks_half_precision_anew(inputs: ScoreInputs) -> Scores:
    return {
        name: weight.abs().float() if weight.dtype == torch.float32 else 1 / (1e-3 + weight.abs().float())
        for name, weight in inputs.weights.items()
    }


RULES: dict[str, list[Rule]] = {
    "scores_every_target": [
        each(lambda scores: scores.t() if scores.ndim == 2 else scores),
        each(lambda scores: scores.sum()),
        each(lambda scores: (1000 * scores).int()),
        each(with_nan),
        each(lambda scores: 1 / (scores - scores)),
        each(torch.ones_like),
        without_the_last,
        backwards,
        with_a_graph,
        the_weights_themselves,
        lambda inputs: None,
        lambda inputs: {**magnitudes(inputs), "bias": torch.ones(3)},
    ],
    "scores_nothing_else": [all_parameters],
    "scores_a_shared_weight_once": [by_layer],
    "scores_a_masked_network": [
        divides_by_weights,
        by_the_parameters,
        saliency_by_the_parameters,
        writes_to_the_originals,
    ],
    "higher_means_keep": [each(lambda scores: -scores), each(lambda scores: 1 / (1 + scores))],
    "leaves_the_student_as_it_was": [
        leaves_a_hook,
        leaves_a_module_hook,
        mutates_a_weight,
        registers_a_parameter,
        freezes,
    ],
    "leaves_nothing_after_an_exception": [
        restores_weights_if_all_goes_well,
        removes_hooks_if_all_goes_well,
        swallows_errors,
    ],
    "is_deterministic": [by_the_number_of_calls, unseeded],
    "takes_any_container": [takes_pairs_of_a_list, goes_through_the_data_twice],
    "takes_any_memory_layout": [in_order_of_memory, views],
    "takes_unlabelled_data_or_says_so": [takes_labels_for_granted, asks_for_labels_in_other_words],
    "asks_for_the_data_it_needs": [is_content_with_no_data, stumbles_over_no_data],
    "takes_other_precisions_or_says_so": [underflows, insists_on_float32, ranks_half_precision_anew],
}

CLASSES: dict[str, list[Any]] = {
    "is_a_frozen_value": [
        Unrelated,
        NoDataclass,
        NotFrozen,
        HoldsTensor,
        HoldsList,
        EqualToNothing,
        NeedsOptions,
        OnlyInherits,
    ],
    "leaves_the_teacher_as_it_was": [DriftingTeacher],
    "is_deterministic": [Remembers],
}


def broken() -> list[tuple[str, Subject]]:
    """``(check that has to find it, criterion)``."""
    found: list[tuple[str, Subject]] = []
    for check, rules in RULES.items():
        for place, rule in enumerate(rules):
            name = rule.__name__ if rule.__name__ != "<lambda>" else f"{check}{place}"
            found.append((check, criterion(rule, name)))
    return found + [(check, kind) for check, kinds in CLASSES.items() for kind in kinds]
