"""Scores from meta-gradients: what masking a weight does to the loss after a few steps of training."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from secateur.counts import check_number, check_whole
from secateur.errors import InvalidArgument, ScoreError
from secateur.inputs import Inputs
from secateur.losses import check_finite, kd_loss
from secateur.naming import Loss, Named
from secateur.scores.base import AbstractCriterion, ScoreInputs
from secateur.scores.functional import Functional, gradients_of, hessian_product
from secateur.scores.gradient import zero_scores

Batch: TypeAlias = tuple[Inputs, Tensor]

Objective: TypeAlias = Callable[[int, Named], Tensor]
"""``objective(k, parameters)``: the loss that step k of training minimises, at `parameters`."""


def meta_gradient(objective: Objective, start: Named, *, steps: int, lr: float) -> dict[str, Tensor]:
    """``dL_M(θ_M)/dθ_0`` through M steps of plain gradient descent, ``θ_{k+1} = θ_k − lr·∇L_k(θ_k)``.

    Exact, and equal to differentiating through all the steps at once, but with the graph of one step alive
    at a time: with ``a_M = ∇L_M(θ_M)``, going back, ``a_k = a_{k+1} − lr·H_k·a_{k+1}``, where H_k are the
    second derivatives of L_k at θ_k.

    Args:
        objective: L_k; called twice with the same arguments for each k below M.
        start: θ_0, leaves that require gradients.
        steps: M.
        lr: Learning rate of the steps.
    """
    path = [dict(start)]
    for k in range(steps):
        slopes = gradients_of(objective(k, path[k]), path[k])
        path.append({name: (p.detach() - lr * slopes[name]).requires_grad_() for name, p in path[k].items()})
    adjoint = gradients_of(objective(steps, path[steps]), path[steps])
    for k in reversed(range(steps)):
        bent = hessian_product(objective(k, path[k]), path[k], adjoint)
        adjoint = {name: a - lr * bent[name] for name, a in adjoint.items()}
    return adjoint


@dataclass(frozen=True)
class AbstractMeta(AbstractCriterion):
    """``S_w = |Σ over groups of batches of dL(θ_M)/dm_w|`` at m = 1, with ``θ_0 = m·w``.

    Each M + 1 consecutive batches are a group: M steps of training, each on a batch of its own, and a last
    batch for the loss after them. A last group that is too short goes round. The mask enters once,
    at the start, so ``dL/dm = w·dL/dθ_0``. All trainable parameters take part in the steps.

    Attributes:
        steps: M ≥ 1, steps of plain SGD.
        inner_lr: Their learning rate, above 0.
    """

    steps: int = 3
    inner_lr: float = 0.01

    def __post_init__(self) -> None:
        check_whole("steps", self.steps, least=1)
        check_number("inner_lr", self.inner_lr, above_zero=True)

    def __call__(self, inputs: ScoreInputs) -> Named:
        """Scores from labelled batches.

        Raises:
            ScoreError: if a batch has no labels, or a loss is not finite, as when the steps diverge.
        """
        network = Functional.of(inputs.model)
        sums = zero_scores(inputs.weights)
        size = self.steps + 1
        for number, group in enumerate(_groups(inputs.stream_labelled(self), size)):
            objective = self._objective(network, inputs.task_loss, group)
            checked = partial(self._checked, objective, number * size)
            found = meta_gradient(checked, network.parameters, steps=self.steps, lr=self.inner_lr)
            for name, total in sums.items():
                total.add_(found[name])
        return {name: total.mul_(inputs.weights[name]).abs_() for name, total in sums.items()}

    @abc.abstractmethod
    def _objective(self, network: Functional, task_loss: Loss, group: Sequence[Batch]) -> Objective:
        """The loss of each step on its batch of `group`."""

    def _checked(self, objective: Objective, first: int, k: int, parameters: Named) -> Tensor:
        """A loss that is finite; `first` is the number in the loader of the group's first batch."""
        loss = objective(k, parameters)
        if k > 0 and not bool(torch.isfinite(loss).all()):
            raise ScoreError(
                f"{type(self).__name__}: the loss after {k} of its steps is {float(loss.detach())}. "
                f"They diverge; lower inner_lr={self.inner_lr:g}."
            )
        check_finite("task", loss, first + k)
        return loss


def _groups(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    while group := list(islice(batches, size)):
        yield list(islice(cycle(group), size))


@dataclass(frozen=True)
class ProsPr(AbstractMeta):
    """``S_w = |dL(θ_M)/dm_w|``: the effect of masking w on the task loss **after** M steps of training.

    https://arxiv.org/abs/2202.08132. The meta-gradient is exact (`meta_gradient`), not the
    first-order variant. As in the authors' code, the mask multiplies the initial weights and is not applied
    again in the steps, which have no momentum.

    Deviations: eval mode, where the authors have BatchNorm use its batch's statistics; a rate of 0.01, not
    0.1, which is for fresh networks in training mode; with more data than M + 1 batches the
    meta-gradients of all groups are summed, then made absolute.
    """

    def _objective(self, network: Functional, task_loss: Loss, group: Sequence[Batch]) -> Objective:
        def objective(k: int, parameters: Named) -> Tensor:
            x, y = group[k]
            return task_loss(network(parameters, x), y)

        return objective


@dataclass(frozen=True)
class Epsd(AbstractMeta):
    """``S_w = |dL_SD(θ_M)/dm_w|``: as `ProsPr`, with a self-distillation loss in the steps and after them.

    EPSD (https://arxiv.org/abs/2402.00084), which prunes by it and then trains by the same loss; here is
    the first of the two. ``L_SD = L_task + distillation_weight·T²·KL(q ‖ softmax(z/T))``, no gradient
    through q:

    - ``cs-kd``: q is the prediction for **another sample of the same class** in the batch
      (https://arxiv.org/abs/2003.13964): each sample is taught by the next one of its class, going
      round; one that is alone in its class has the task loss only.
    - ``dlb``: the KL term is over the **previous step's batch**, and q what the network predicted for it
      then (https://arxiv.org/abs/2203.16172); the first step has the task loss only.

    Deviations from what is known of the paper: those of `ProsPr`; scores are not divided by their sum,
    which changes no ranking. M, the learning rate and the weight of the terms are not known from it.

    Attributes:
        distillation: cs-kd or dlb.
        temperature: T > 0 of the KL term.
        distillation_weight: Weight of the KL term, at least 0; 0 is `ProsPr`.

    Raises:
        InvalidArgument: for another name, or a number out of range.
    """

    distillation: Literal["cs-kd", "dlb"] = "cs-kd"
    temperature: float = 4.0
    distillation_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distillation not in ("cs-kd", "dlb"):
            raise InvalidArgument(f"distillation must be cs-kd or dlb, got {self.distillation!r}.")
        check_number("temperature", self.temperature, above_zero=True)
        check_number("distillation_weight", self.distillation_weight)

    def _objective(self, network: Functional, task_loss: Loss, group: Sequence[Batch]) -> Objective:
        kind = _SameClass if self.distillation == "cs-kd" else _LastBatch
        return kind(network, task_loss, group, self.temperature, self.distillation_weight)


@dataclass
class _SelfDistilled:
    """What both self-distillation losses need."""

    network: Functional
    task_loss: Loss
    group: Sequence[Batch]
    temperature: float
    weight: float


class _SameClass(_SelfDistilled):
    """CS-KD."""

    def __call__(self, k: int, parameters: Named) -> Tensor:
        x, y = self.group[k]
        outputs = self.network(parameters, x)
        partners = class_partners(y)
        taught = partners != torch.arange(len(y), device=y.device)
        loss = self.task_loss(outputs, y)
        if not bool(taught.any()):
            return loss
        # The distance to one's own answer is 0, and so is its gradient, but not its curvature.
        distance = kd_loss(outputs[taught], outputs.detach()[partners][taught], temperature=self.temperature)
        return loss + self.weight * distance * (int(taught.sum()) / len(y))


@dataclass
class _LastBatch(_SelfDistilled):
    """DLB. What step k predicted is kept for step k + 1."""

    predicted: dict[int, Tensor] = field(default_factory=dict[int, Tensor])

    def __call__(self, k: int, parameters: Named) -> Tensor:
        x, y = self.group[k]
        outputs = self.network(parameters, x)
        self.predicted[k] = outputs.detach()
        loss = self.task_loss(outputs, y)
        if k == 0:
            return loss
        again = self.network(parameters, self.group[k - 1][0])
        return loss + self.weight * kd_loss(again, self.predicted[k - 1], temperature=self.temperature)


def class_partners(labels: Tensor) -> Tensor:
    """For each sample the index of the next one with the same label, going round; its own if there is none.

    Args:
        labels: Shape (batch,), whole numbers.

    Raises:
        ScoreError: for labels of another shape or type.
    """
    if labels.ndim != 1 or labels.is_floating_point():
        raise ScoreError(
            f"cs-kd needs one class a sample, got labels of shape {tuple(labels.shape)} and {labels.dtype}. "
            "Choose distillation='dlb', which needs none."
        )
    order = labels.argsort(stable=True)
    ordered = labels[order]
    n = len(labels)
    following = torch.arange(1, n + 1, device=labels.device) % n
    first = torch.searchsorted(ordered, ordered)
    partner = torch.where(ordered[following] == ordered, following, first)
    return torch.empty_like(order).scatter_(0, order, order[partner])
