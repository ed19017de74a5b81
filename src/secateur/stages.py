"""The cut: score and allocate, once or in stages that each score anew what the one before left."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from glob import escape
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.allocate import AbstractPattern, AbstractScope, Unstructured, allocate
from secateur.counts import check_whole, n_prune
from secateur.errors import EmptiedLayerWarning, InvalidArgument, LeftDenseWarning
from secateur.masks import Masks
from secateur.naming import Batches, Loss, Named, check_repeatable
from secateur.schedules import geometric_sparsities
from secateur.scores import AbstractCriterion, score
from secateur.targets import MAKE_PARAMETERS, computed_weights, dense_majority, select_targets


@dataclass(frozen=True)
class Stage:
    """What one stage of a cut did.

    Attributes:
        sparsity: Fraction that was to be gone after it, in [0, 1).
        scores: What it ranked the weights by, as the criterion gave them.
        masks: What it kept.
        n_returned: Weights that were gone before it and that it took back.
        score_s: Seconds spent scoring.
        allocate_s: Seconds spent choosing what stays, and solving for its values.
        predicted: Change of the teacher's loss by cut and solve, as the criterion expected it; None where it
            does not solve, see `secateur.scores.SolvingScores`.
        loss: Measured teacher's loss on the calibration inputs before the stage, after its cut (and solve),
            and after its recovery, or with BatchNorm re-estimated in its place; None in a cut that moves
            no weights.
        n_steps: Distillation steps after the cut, with those that were undone to go slower.
        recovery_s: Seconds spent on them.
    """

    sparsity: float
    scores: Named
    masks: Masks
    n_returned: int
    score_s: float
    allocate_s: float
    predicted: float | None = None
    loss: tuple[float, float, float] | None = None
    n_steps: int = 0
    recovery_s: float = 0.0

    def about_loss(self) -> str:
        """Predicted and measured change of the teacher's loss in words; empty where it was not measured."""
        if self.loss is None:
            return ""
        before, cut, recovered = self.loss
        expected = "" if self.predicted is None else f" ({self.predicted:+.3g} predicted)"
        steps = ""
        if self.n_steps:
            after = "undone" if recovered == cut else f"{recovered:.3g} after"
            steps = f", {after} {self.n_steps} steps"
        return f"loss {before:.3g}, cut {cut - before:+.3g}{expected} = {cut:.3g}{steps}"


def staged_masks(
    model: nn.Module,
    batches: Batches | None,
    criterion: AbstractCriterion,
    *,
    sparsity: float | None = None,
    scope: AbstractScope | None = None,
    pattern: AbstractPattern = Unstructured(),  # noqa: B008 - a frozen value
    stages: int = 1,
    regrow: bool = False,
    task_loss: Loss = F.cross_entropy,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    gone: Masks | None = None,
    on_batch: Callable[[], None] = lambda: None,
    on_stage: Callable[[Stage], None] = lambda stage: None,
) -> Masks:
    """The masks of a cut in `stages` partial cuts, with no training in between; nothing is applied.

    Each stage scores the network as the one before left it, over the same data, and cuts it to the next
    density of a geometric schedule (`geometric_sparsities`). A weight that is gone stays gone: with
    `Snip` this is Iter-SNIP, with `SynFlow` and 100 stages the method of its paper. With `regrow` every
    stage chooses among all weights, whose scores are made with their original values and the gradients
    of the masked network: with `Snip` this is FORCE (https://arxiv.org/abs/2006.09081).

    The model comes back bit for bit, also after an exception.

    Args:
        model: A trained network.
        batches: Calibration batches, gone through once a stage; None for a criterion that needs none.
        criterion: What to score by.
        sparsity: Fraction of the prunable weights to remove in the end, in [0, 1); `NM` sets it.
        scope: Where weights compete; `Global()` by default.
        pattern: Where zeros may stand, see `secateur.allocate`. The stages before the last of `NM` leave n
            or more weights in each group.
        stages: How many times to score and cut, ≥ 1.
        regrow: Let a later stage take back what an earlier one removed; needs 2 stages.
        task_loss: ``f(outputs, labels)``, a scalar averaged over the batch.
        include: Shell patterns of weights to prune.
        exclude: Shell patterns of weights to leave dense.
        gone: Masks of an earlier cut, which the model still obeys: what they removed goes first.
        on_batch: Called after each calibration batch of each stage.
        on_stage: Called after each stage.

    Returns:
        The masks of the last stage.

    Raises:
        InvalidArgument: if a number is out of range, or the pattern does not fit; with several stages
            also for batches that can be gone through once only, for a teacher that shares weights with the
            model, and for a scope that cannot meet the sparsity of a stage or would take weights back
            without `regrow`.
        SecateurError: as `score` and `allocate` raise.

    Warns:
        EmptiedLayerWarning: if a tensor keeps nothing in the end.
        LeftDenseWarning: if the pattern does not fit a tensor.
    """
    sparsity, scope = pattern.sparsity_for(sparsity), pattern.scope_for(scope)
    check_stages(stages, regrow=regrow)
    targets, exclude = fitting_targets(model, pattern, include, exclude)
    if stages > 1:
        check_calibration(batches, stages)
        check_apart(criterion, targets)
    if gone is not None:
        _check_gone(gone, targets, sparsity)
    schedule = geometric_sparsities(sparsity, stages)
    masks: Masks | None = gone
    with _Weights(targets) as weights:
        for number, asked in enumerate(schedule, start=1):
            if masks is not None:
                weights.mask(masks)
            started = time.perf_counter()
            scores = score(
                model,
                None if batches is None else _counted(batches, on_batch),
                criterion,
                task_loss=task_loss,
                include=include,
                exclude=exclude,
                weights=weights.originals,
            )
            scored = time.perf_counter()
            ranking = scores if masks is None or regrow else gone_last(scores, masks)
            before, masks = masks, choose_masks(ranking, scope, schedule, number)
            n_returned = 0 if before is None else count_returned(before, masks, scope, regrow=regrow)
            chosen = time.perf_counter()
            on_stage(Stage(asked, scores, masks, n_returned, scored - started, chosen - scored))
    assert masks is not None, "there is at least one stage"
    return masks


@dataclass
class StageLog:
    """What the stages of a cut brought up; `add` is what `staged_masks` calls after each.

    Attributes:
        sparsity: Fraction to be gone in the end.
        scope: Where weights compete.
        rows: One entry a stage: its sparsity, how many weights are gone, how many returned; the predicted
            change of the teacher's loss and the measured loss; the distillation steps and their seconds.
        scores: Those of the last stage.
        one_cut: What the scores of the first stage alone would keep at `sparsity`: the cut without stages.
        seconds: Spent on ``score``, on ``allocate``, and on ``calibration``, None without such steps.
    """

    sparsity: float
    scope: AbstractScope
    rows: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    scores: Named = field(default_factory=dict[str, Tensor])
    one_cut: Masks | None = None
    seconds: dict[str, float | None] = field(
        default_factory=lambda: {"score": 0.0, "allocate": 0.0, "calibration": None}
    )

    def add(self, stage: Stage) -> None:
        """Take in the next stage."""
        if stage.sparsity == self.sparsity:
            self.one_cut = self.one_cut or stage.masks
        elif not self.rows:
            with mask_warnings_ignored():
                self.one_cut = allocate(stage.scores, sparsity=self.sparsity, scope=self.scope)
        n_prune, n_returned = stage.masks.n_prune, stage.n_returned
        self.rows.append(
            {
                "sparsity": stage.sparsity,
                "n_prune": n_prune,
                "n_returned": n_returned,
                "predicted": _known(stage.predicted),
                "loss": stage.loss
                and dict(zip(("before", "cut", "recovered"), map(_known, stage.loss), strict=True)),
                "n_steps": stage.n_steps,
                "recovery_s": stage.recovery_s,
            }
        )
        self.scores = stage.scores
        spent = {"score": stage.score_s, "allocate": stage.allocate_s}
        if stage.n_steps:
            spent["calibration"] = stage.recovery_s
        for what, seconds in spent.items():
            self.seconds[what] = (self.seconds[what] or 0.0) + seconds


def _known(number: float | None) -> float | None:
    """None also for what JSON has no word for."""
    return number if number is not None and math.isfinite(number) else None


def fitting_targets(
    model: nn.Module, pattern: AbstractPattern, include: Sequence[str], exclude: Sequence[str]
) -> tuple[dict[str, nn.Parameter], list[str]]:
    """What is pruned: the targets that `pattern` fits, and an `exclude` that leaves out the others too.

    Raises:
        TargetError: as `select_targets` does.
        InvalidArgument: if the pattern fits none of them.

    Warns:
        LeftDenseWarning: naming those that it does not fit, layers whose weight is no parameter, and what
            else is left dense where that is most of the weights.
    """
    targets = select_targets(model, include=include, exclude=exclude)
    if made := computed_weights(model):
        warnings.warn(
            f"the weights of {', '.join(made)} are no parameters and stay dense. {MAKE_PARAMETERS}",
            LeftDenseWarning,
            stacklevel=3,
        )
    if tuple(include) == ("*",) and (left := dense_majority(model, targets)):
        names = ", ".join(left[:3]) + (", …" if len(left) > 3 else "")
        warnings.warn(
            f"most of the weights stay dense: {names} are of no kind that is pruned by default. To prune "
            f"them too, name them: include=('*', {left[0]!r}); or include by name what is to be pruned.",
            LeftDenseWarning,
            stacklevel=3,
        )
    fitting = pattern.fitting(targets, model)
    return dict(fitting), [*exclude, *(escape(name) for name in targets if name not in fitting)]


def check_stages(stages: int, *, regrow: bool) -> None:
    """Refuse stages that are no whole number from 1, and `regrow` where there is no later one to regrow in.

    Raises:
        InvalidArgument: naming the number.
    """
    check_whole("stages", stages, least=1)
    if regrow and stages == 1:
        raise InvalidArgument(
            "regrow needs at least 2 stages: in one cut no weight is gone that could return."
        )


@contextmanager
def mask_warnings_ignored() -> Generator[None]:
    """No warning of emptied or dense layers inside: for masks that are only compared, or not the last."""
    with warnings.catch_warnings():
        for kind in (EmptiedLayerWarning, LeftDenseWarning):
            warnings.simplefilter("ignore", kind)
        yield


class _Weights:
    """Weights that are masked for a while, and have their original values again on leaving.

    Attributes:
        originals: Copies of their values, made when they are first masked; None until then.
    """

    def __init__(self, targets: dict[str, nn.Parameter]) -> None:
        self._targets = targets
        self.originals: dict[str, Tensor] | None = None

    def mask(self, masks: Masks) -> None:
        """Give each weight its original value where `masks` keeps it, and 0 elsewhere."""
        if self.originals is None:
            self.originals = {name: weight.detach().clone() for name, weight in self._targets.items()}
        with torch.no_grad():
            for name, weight in self._targets.items():
                weight.copy_(self.originals[name]).masked_fill_(~masks[name], 0.0)

    def __enter__(self) -> _Weights:
        return self

    def __exit__(self, *_: object) -> None:
        with torch.no_grad():
            for name, value in (self.originals or {}).items():
                self._targets[name].copy_(value)


def _counted(batches: Batches, on_batch: Callable[[], None]) -> Iterator[Any]:
    for batch in batches:
        yield batch
        on_batch()


def choose_masks(scores: Named, scope: AbstractScope, schedule: Sequence[float], number: int) -> Masks:
    """The masks of stage `number`; only of the last one it matters whether they empty a tensor."""
    last = number == len(schedule)
    try:
        with nullcontext() if last else mask_warnings_ignored():
            return allocate(scores, sparsity=schedule[number - 1], scope=scope)
    except InvalidArgument as error:
        if len(schedule) == 1:
            raise
        raise InvalidArgument(f"stage {number} of {len(schedule)}: {error}") from error


def gone_last(scores: Named, masks: Masks) -> Named:
    """The same ranking with all weights that are gone below all that are left, so that they go first."""
    lowest = torch.finfo(torch.float32).min
    above = torch.nextafter(torch.tensor(lowest), torch.tensor(0.0))
    ranking: dict[str, Tensor] = {}
    for name, mask in masks.items():
        values = scores[name].float()
        values = torch.where(values == lowest, above.to(values.device), values)
        ranking[name] = values.masked_fill(~mask, lowest)
    return ranking


def count_returned(before: Masks, masks: Masks, scope: AbstractScope, *, regrow: bool) -> int:
    """How many weights that were gone are there again.

    Raises:
        InvalidArgument: if that must not be, because the scope is not monotone.
    """
    n_returned = sum(int((mask & ~before[name]).sum()) for name, mask in masks.items())
    if n_returned and not regrow:
        raise InvalidArgument(
            f"{type(scope).__name__} keeps more of a tensor at a higher sparsity: a later stage would take "
            f"{n_returned} weights back. Pass regrow=True to allow that, or cut in one stage."
        )
    return n_returned


def check_calibration(batches: Batches | None, times: int) -> None:
    """Refuse calibration batches that can be gone through once only.

    Raises:
        InvalidArgument: saying how often they are needed.
    """
    check_repeatable(batches, f"this cut goes through the calibration batches {times} times")


def _check_gone(gone: Masks, targets: dict[str, nn.Parameter], sparsity: float) -> None:
    """Refuse masks of an earlier cut that are of other weights, or removed more than is to be gone now."""
    if set(gone) != set(targets):
        odd = sorted(set(gone) ^ set(targets))
        raise InvalidArgument(
            f"gone must have the masks of the weights that are cut now: {', '.join(odd)} stand on one side "
            "only. Give both cuts the same include and exclude."
        )
    asked = n_prune(sum(weight.numel() for weight in targets.values()), sparsity)
    if gone.n_prune > asked:
        raise InvalidArgument(
            f"sparsity must be at least the {gone.sparsity:g} of the weights that are gone, got {sparsity:g}."
        )


def check_apart(criterion: AbstractCriterion, targets: dict[str, nn.Parameter]) -> None:
    """Refuse a teacher that would be masked with the student."""
    ours = {id(weight) for weight in targets.values()}
    for teacher in networks_of(criterion):
        if any(id(parameter) in ours for parameter in teacher.parameters()):
            raise InvalidArgument(
                "the teacher shares weights with the student, and a cut in stages would prune both. "
                "Pass copy.deepcopy(student) as teacher."
            )


def networks_of(criterion: AbstractCriterion) -> Iterator[nn.Module]:
    """The networks that a criterion holds, and those of a criterion inside it."""
    for value in vars(criterion).values():
        if isinstance(value, nn.Module):
            yield value
        elif isinstance(value, AbstractCriterion):
            yield from networks_of(value)
