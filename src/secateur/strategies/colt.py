"""Cyclic overlapping lottery tickets: what networks for different classes both keep."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from secateur.counts import check_fraction, check_whole, n_keep
from secateur.errors import DataError, InvalidArgument, TrainingError
from secateur.losses import logits_for, logits_of
from secateur.masks import Masks
from secateur.modules import device_of, twin
from secateur.naming import IndexedLoader, split_batches
from secateur.scores.base import preserving
from secateur.strategies.base import AbstractStrategy, Problem, Round
from secateur.strategies.parts import place_in
from secateur.targets import select_targets


@runtime_checkable
class ClassLoader(IndexedLoader, Protocol):
    """An `IndexedLoader` that can be narrowed to some classes; an `ImageLoader` can."""

    @property
    def n_classes(self) -> int:
        """Number of classes: the largest label plus 1."""
        ...

    def of_classes(self, classes: Sequence[int]) -> IndexedLoader:
        """Only the samples of `classes`, labelled 0, 1, … in that order; batches as large as before."""
        ...


@dataclass(frozen=True)
class Colt(AbstractStrategy):
    """Cyclic overlapping lottery tickets (https://arxiv.org/abs/2212.12770).

    The classes are split in order into as many groups as there are partners, and every round trains one
    partner a group: a copy of the student as it was given, under the masks so far, on the images and the
    logits of its classes alone. Each partner prunes a fraction of what is left by global magnitude, and
    what all of them keep is the next mask. The ticket, the weights as they were given under the last
    mask, is then trained on all classes.

    The last round removes just as many weights as are too many: the partners' smallest in turn, one of
    each, until the count is right. How many rounds there will be depends on how far the partners agree.
    The budget is shared out for the most there can be; what is left over goes to the ticket.

    Attributes:
        partners: Number P of partners, ≥ 2; there must be two classes for each.
        fraction: Part of the weights left that each partner prunes in a round, in (0, 1).
        final: Fraction of the budget that the ticket's training gets at least, in [0, 1).

    Raises:
        InvalidArgument: if a number is out of range.
    """

    partners: int = 2
    fraction: float = 0.15
    final: float = 0.5

    def __post_init__(self) -> None:
        check_fraction("fraction", self.fraction, below_one=True)
        check_fraction("final", self.final, below_one=True)
        if self.fraction == 0:
            raise InvalidArgument("fraction must be above 0, got 0.")
        check_whole("partners", self.partners, least=2)

    def most_rounds(self, sparsity: float) -> int:
        """Number of rounds if all partners always agree: each leaves ``1 − fraction`` then."""
        return math.ceil(math.log1p(-sparsity) / math.log1p(-self.fraction))

    def least_parts(self, sparsity: float) -> int:
        """One for each partner in each round, and the ticket's share."""
        aside = self.partners * self.most_rounds(sparsity)
        return max(math.ceil(aside / (1 - self.final)), aside + 1)

    def rounds_for(self, problem: Problem) -> Iterator[Round]:
        """One round: the partners are trained aside.

        Raises:
            TrainingError: if the training data cannot be narrowed to classes.
            DataError: if there are too few classes, or the student has fewer outputs.
        """
        targets = select_targets(problem.student, include=problem.include, exclude=problem.exclude)
        masks = Masks({name: torch.ones_like(w, dtype=torch.bool) for name, w in targets.items()})
        n_left = n_keep(masks.numel, problem.sparsity)
        most = self.most_rounds(problem.sparsity)
        each = place_in(problem.parts, (1 - self.final) / (self.partners * most)) if most else 0
        partners = self._partners(problem, targets) if most else []
        spent = 0
        while masks.n_keep > n_left:
            orders = [partner.pruning_order(problem, masks, parts=each) for partner in partners]
            spent += each * len(partners)
            last = spent == each * len(partners) * most
            masks = overlap(masks, orders, fraction=self.fraction, least=n_left, last=last)
        yield Round(masks, problem.parts - spent, schedule=problem.parts - spent)

    def _partners(self, problem: Problem, targets: dict[str, nn.Parameter]) -> list[_Partner]:
        loader = problem.train
        if not isinstance(loader, ClassLoader):
            raise TrainingError(
                "Colt trains on some classes at a time, for which the training loader must have n_classes "
                f"and of_classes, as an ImageLoader has; got {type(loader).__name__}."
            )
        n_classes, n_outputs = loader.n_classes, _count_outputs(problem)
        if n_classes < 2 * self.partners or n_outputs < n_classes:
            raise DataError(
                f"{self.partners} partners need at least {2 * self.partners} classes and as many outputs, "
                f"got {n_classes} classes and {n_outputs} outputs."
            )
        places = [n_classes * place // self.partners for place in range(self.partners + 1)]
        name, last = list(targets.items())[-1]
        head = name if last.ndim == 2 and len(last) == n_outputs else None
        return [
            _Partner(range(first, until), loader.of_classes(range(first, until)), head, n_classes)
            for first, until in pairwise(places)
        ]


@dataclass(frozen=True)
class _Partner:
    """What is trained on one group of classes.

    Attributes:
        classes: The group.
        train: Their images.
        head: Name of the weight whose rows are the logits; None if it is not pruned.
        n_classes: Number of all classes.
    """

    classes: range
    train: IndexedLoader
    head: str | None
    n_classes: int

    def pruning_order(self, problem: Problem, masks: Masks, *, parts: int) -> Tensor:
        """Train from the start; where each weight stands when the smallest go first.

        Returns:
            int64, over all weights under `masks` flattened one after the other; weights that are gone, or
            that only feed the logits of other groups, stand at the largest number there is.
        """
        network = twin(problem.student)  # which has not been trained yet: it is as it was given
        network.register_forward_hook(self._own_logits)
        problem.train_aside(network, self.train, masks=masks, parts=parts)
        sizes: list[Tensor] = []
        ranked: list[Tensor] = []
        for name, weight in masks.match(network).items():
            mine = masks[name].clone()
            if name == self.head:
                foreign = [c for c in range(self.n_classes) if c not in self.classes]
                mine[foreign] = False
            sizes.append(weight.detach().abs().flatten())
            ranked.append(mine.flatten())
        magnitudes, mine = torch.cat(sizes), torch.cat(ranked).nonzero().squeeze(1)
        order = torch.full(magnitudes.shape, torch.iinfo(torch.int64).max, device=magnitudes.device)
        order[mine[magnitudes[mine].argsort(stable=True)]] = torch.arange(len(mine), device=order.device)
        return order

    def _own_logits(self, module: nn.Module, args: object, output: object) -> Tensor:
        return logits_of(output)[:, self.classes.start : self.classes.stop]


def overlap(masks: Masks, orders: Sequence[Tensor], *, fraction: float, least: int, last: bool) -> Masks:
    """What all partners keep after each has pruned a fraction of its weights, but never fewer than `least`.

    Args:
        masks: What stays so far.
        orders: For each partner, where each weight stands when the smallest go first, over all tensors
            flattened one after the other; the largest int64 for weights that it does not rank.
        fraction: Part of the weights it ranks that each partner prunes, rounded up.
        least: How many weights must stay.
        last: Prune until just these are left, whatever `fraction` says.
    """
    never = torch.iinfo(torch.int64).max
    turns = torch.full_like(orders[0], never)  # when a weight goes if partners prune one after the other
    gone = torch.zeros_like(orders[0], dtype=torch.bool)
    for place, order in enumerate(orders):
        ranked = order != never
        gone |= order < math.ceil(int(ranked.sum()) * fraction)
        turns = torch.where(ranked, torch.minimum(turns, order * len(orders) + place), turns)
    too_many = masks.n_keep - least
    if last or int(gone.sum()) > too_many:
        gone = torch.zeros_like(gone)
        gone[turns.argsort()[:too_many]] = True
    pieces = gone.split([mask.numel() for mask in masks.values()])
    return Masks(
        {
            name: masks[name] & ~piece.view(masks[name].shape)
            for name, piece in zip(masks, pieces, strict=True)
        }
    )


def _count_outputs(problem: Problem) -> int:
    """Number of logits of the student."""
    inputs, _ = next(split_batches(problem.calibration, device_of(problem.student)))
    with preserving(problem.student), torch.no_grad():
        return logits_for(problem.student, inputs[:2]).shape[1]
