"""Recovery from calibration inputs alone: a few masked distillation steps, without labels or training set."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

import torch
from torch import Tensor, nn

from secateur.augment import AUGMENTS, Augment
from secateur.counts import check_fraction, check_number, check_whole
from secateur.enforce import keep_masks
from secateur.errors import InvalidArgument, TrainingError
from secateur.inputs import Inputs, filled, tensors_of
from secateur.layout import arranged, image_layout
from secateur.losses import KDKind, distillation, logits_for
from secateur.masks import Masks
from secateur.modules import batch_statistics, consulted, modes_kept, random_state_kept, twin
from secateur.naming import Named
from secateur.recovery import autocast_for
from secateur.schedules import cosine_with_warmup

_NO_NUMBERS = "The teacher's outputs hold NaN or infinity: check its weights."
_WARMUP = 0.1
_CHUNK = 256


class DivergedError(TrainingError):
    """Steps at such a rate end at a loss that is no number."""


@dataclass(frozen=True)
class CalibrationRecovery:
    """Masked distillation steps on the calibration inputs, after each stage of a cut.

    For users without a training set: the teacher's outputs on a few hundred or thousand unlabelled inputs
    are the only target, by default ``T²·KL(softmax(z_T/T) ‖ softmax(z_S/T))``. SGD with momentum, its rate
    rising over a tenth of the steps and falling to 0 by half a cosine, anew after each stage. BatchNorm runs
    in training mode by default: a cut moves the statistics of the activations, and with the old ones held
    fixed such steps get less far, or diverge (measured in ``docs/curvature.md``). For outputs that are not
    logits, such as those of a regression, set ``kd="mse"``: a softmax takes them to be the same with any
    offset.

    Dropout is off: the noise that it makes costs more than it saves where a teacher says what to learn
    (likewise measured). With ``kd="mse"`` rates are divided by the variance of the teacher's outputs, so that
    their unit does not matter.

    Batch statistics are noisy, and a step cannot tell that from the harm that a cut has done. So a cautious
    recipe's rate is ``lr · h/(h + ν)``, with h the teacher's loss after the cut, in eval mode, and ν how far
    the dense network in the mode of the steps is from its own answers, by the same loss (`noise_of`). A cut
    that did little harm is repaired by small steps, and if h is greater after the steps than before, they are
    undone. Without BatchNorm ν is 0. If h grows by more than ν, or to what is no number, the rate is too high
    for the network: the steps of the stage are taken again at a quarter of it, up to eleven times, and the
    next stage begins one quarter higher.

    Attributes:
        steps: After each stage but the last, ≥ 0.
        final_steps: After the last stage, ≥ 0. Most of the steps belong here: the stages before only have to
            choose well, and what their steps repair the next cut breaks again.
        batch_size: Inputs a step, ≥ 2, drawn in passes without replacement; all where there are fewer. The
            same inputs in more and smaller batches get further for the same arithmetic.
        lr: Peak learning rate after a cut that did much harm, > 0.
        momentum: In [0, 1).
        temperature: T > 0 of the distances on logits.
        kd: forward, reverse or ca-kld, on logits; mse or cosine, on outputs of any other meaning.
        beta: Weight of the reverse divergence in ca-kld, in [0, 1].
        standardize: Standardise each sample's logits before the softmax.
        batchnorm: train: batch statistics in the steps, and their running average after, which moves by a
            tenth a batch or more; fixed: as it was.
        augment: Changes each batch before student and teacher see it: none; flip-shift (`FlipShift`);
            mix (`mix`); or a function of your own.
        cautious: Whether steps are held back where a cut did little harm or they do harm, as above.
        precision: Of the passes; auto takes bf16 where the hardware has it, but fp32 for mse and cosine.
        seed: Of the order and the augmentation.

    Raises:
        InvalidArgument: for a number out of range or an unknown name.
    """

    steps: int = 120
    final_steps: int = 2400
    batch_size: int = 32
    lr: float = 0.01
    momentum: float = 0.9
    temperature: float = 8.0
    kd: KDKind = "forward"
    beta: float = 0.5
    standardize: bool = False
    batchnorm: Literal["train", "fixed"] = "train"
    augment: Literal["none", "flip-shift", "mix"] | Augment = "none"
    cautious: bool = True
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        check_fraction("momentum", self.momentum, below_one=True)
        distillation(self)
        check_number("lr", self.lr, above_zero=True)
        for name, number, least in (
            ("steps", self.steps, 0),
            ("final_steps", self.final_steps, 0),
            ("batch_size", self.batch_size, 2),
        ):
            check_whole(name, number, least=least)
        for name, choice, allowed in (
            ("batchnorm", self.batchnorm, ("train", "fixed")),
            ("precision", self.precision, ("auto", "fp32", "bf16")),
        ):
            if choice not in allowed:
                raise InvalidArgument(f"{name} must be {' or '.join(allowed)}, got {choice!r}.")
        if not (callable(self.augment) or self.augment in AUGMENTS):
            raise InvalidArgument(
                f"augment must be {', '.join(AUGMENTS)} or a function, got {self.augment!r}."
            )

    @property
    def look(self) -> Augment | None:
        """What `augment` stands for; None leaves the inputs as they are."""
        return self.augment if callable(self.augment) else AUGMENTS[self.augment]

    def steps_after(self, stage: int, stages: int) -> int:
        """How many steps follow stage `stage` of `stages`, from 1."""
        return self.steps if stage < stages else self.final_steps

    def total_steps(self, stages: int) -> int:
        """The whole budget of a cut in `stages`."""
        return (stages - 1) * self.steps + self.final_steps


def answers_of(teacher: nn.Module, inputs: Inputs, recipe: CalibrationRecovery | None = None) -> Tensor:
    """The teacher's outputs for all `inputs`, shape (N, …), float32; computed as in the steps of `recipe`."""
    layout = image_layout(inputs, teacher)
    answers: list[Tensor] = []
    fp32 = torch.autocast(inputs.device.type, enabled=False)
    precision = fp32 if recipe is None else autocast_for(recipe, inputs.device)
    with consulted(teacher), torch.no_grad(), precision:
        for x in inputs.split(_CHUNK):
            answers.append(logits_for(teacher, arranged(x, layout)).float())
    return torch.cat(answers)


def distil_on_inputs(
    student: nn.Module,
    inputs: Inputs,
    teacher: nn.Module | Tensor,
    masks: Masks,
    recipe: CalibrationRecovery,
    *,
    steps: int,
    stage: int = 1,
    share: float = 1.0,
    on_step: Callable[[], None] = lambda: None,
) -> Named | None:
    """Train `student` in place for `steps` steps towards the teacher's outputs; modes are left as they were.

    Args:
        student: The network under `masks`.
        inputs: All calibration inputs, N of them, on the student's device.
        teacher: Frozen network over the same classes, another object than `student`; or, for a recipe
            without `augment`, what `answers_of` it gave, so that no step asks it again.
        masks: What stays.
        recipe: How.
        steps: How many, ≥ 0.
        stage: Of the cut: each draws its own batches.
        share: Of the recipe's learning rate, ≥ 0.
        on_step: Called after each step.

    Returns:
        The mean over the steps of the squared gradient of each weight under `masks`, float32, 0 where it is
        gone: the curvature that `TeacherFisher` needs, which the steps leave behind. None without steps.

    Raises:
        InvalidArgument: if answers are given for inputs that the recipe changes.
        TrainingError: if there are fewer than 2 inputs, or a loss is not finite.
        ScoreError: if the outputs of student and teacher cannot be compared.
    """
    if isinstance(teacher, Tensor) and recipe.look is not None:
        raise InvalidArgument(
            "augment changes the inputs that the teacher answered; pass the teacher itself."
        )
    if not steps:
        return None
    if len(inputs) < 2:
        raise TrainingError(
            f"distillation steps need at least 2 inputs, got {len(inputs)}. Pass more batches."
        )
    lessons = _Lessons(student, teacher, inputs, recipe, stage)
    parameters = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=recipe.lr, momentum=recipe.momentum)
    with ExitStack() as stack:
        stack.enter_context(_drawn(recipe, inputs.device, stage))
        stack.enter_context(lessons.modes())
        stack.enter_context(keep_masks(student, optimizer, masks))
        masked = {n: p for n, p in masks.match(student).items() if p.requires_grad}
        squares = {n: torch.zeros_like(p, dtype=torch.float32) for n, p in masked.items()}
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = share * recipe.lr * cosine_with_warmup((step + 0.5) / steps, warmup=_WARMUP)
            loss = lessons.loss(step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            _add_squares(squares, masked, 1 / steps)
            optimizer.step()
            on_step()
        for parameter in parameters:
            parameter.grad = None
    return squares


class _Lessons:
    """The batches of one stage, and how far `student` is from what it should answer."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | Tensor,
        inputs: Inputs,
        recipe: CalibrationRecovery,
        stage: int,
    ) -> None:
        self._student, self._teacher, self._inputs = student, teacher, inputs
        self._recipe, self._stage = recipe, stage
        networks = (student,) if isinstance(teacher, Tensor) else (student, teacher)
        self._layout = image_layout(inputs, *networks)
        self._distance = distillation(recipe)
        order = torch.Generator().manual_seed(recipe.seed * 1_000_003 + stage)
        self._looks = torch.Generator().manual_seed(recipe.seed * 1_000_003 - stage)
        self._batches = _Batches(len(inputs), recipe.batch_size, order)

    @contextmanager
    def modes(self) -> Generator[None]:
        """Student and teacher in the modes of a lesson inside; as they were after."""
        with ExitStack() as stack:
            if self._recipe.batchnorm == "train":
                stack.enter_context(batch_statistics(self._student))
            else:
                stack.enter_context(modes_kept(self._student))
                self._student.eval()
            if isinstance(self._teacher, nn.Module):
                stack.enter_context(consulted(self._teacher))
            yield

    def loss(self, step: int) -> Tensor:
        """That of the next batch; `step` is named if it is not finite.

        Raises:
            TrainingError: if it is not.
        """
        recipe, device = self._recipe, self._inputs.device
        chosen = self._batches.next().to(device)
        x, look = self._inputs[chosen], recipe.look
        x = arranged(x if look is None else _another_look(look, x, self._looks), self._layout)
        with autocast_for(recipe, device):
            taught = self._taught(chosen, x)
            logits = logits_for(self._student, x)
        loss = self._distance(logits.float(), taught.float())
        if not bool(torch.isfinite(loss)):
            numbers = bool(torch.isfinite(taught).all())
            advice = f"Lower lr ({recipe.lr:g}) or cut in more stages." if numbers else _NO_NUMBERS
            kind = DivergedError if numbers else TrainingError
            raise kind(
                f"the distillation loss of step {step + 1} in stage {self._stage} is {float(loss.detach())}. "
                f"{advice}"
            )
        return loss

    def _taught(self, chosen: Tensor, x: Inputs) -> Tensor:
        if isinstance(self._teacher, Tensor):
            return self._teacher[chosen]
        with torch.no_grad():
            return logits_for(self._teacher, x)


def noise_of(network: nn.Module, inputs: Inputs, recipe: CalibrationRecovery) -> float:
    """How far `network` in the mode of the steps is from its own answers: the loss where nothing is to learn.

    Args:
        network: Comes back as it was.
        inputs: On the network's device; in batches as large as those of the steps.
        recipe: Batch size, temperature, and whether BatchNorm is in training mode at all.
    """
    if recipe.batchnorm == "fixed" or len(inputs) < 2:
        return 0.0
    own = twin(network)  # its running statistics move
    answers = answers_of(own, inputs, recipe)
    size = min(recipe.batch_size, len(inputs))
    distance = distillation(recipe)
    losses: list[float] = []
    with ExitStack() as stack:
        stack.enter_context(_drawn(recipe, inputs.device, 0))
        stack.enter_context(torch.no_grad())
        stack.enter_context(autocast_for(recipe, inputs.device))
        stack.enter_context(batch_statistics(own))
        for first in range(0, len(inputs) - size + 1, size):
            x, answered = inputs[first : first + size], answers[first : first + size]
            losses.append(float(distance(logits_for(own, x).float(), answered)))
    return fmean(losses)


def _another_look(look: Augment, inputs: Inputs, generator: torch.Generator) -> Inputs:
    tensors = tensors_of(inputs)
    if len(tensors) != 1:
        raise InvalidArgument(
            f"augment changes inputs that are one tensor, got {len(tensors)} tensors. Set augment='none'."
        )
    found: Any = look(tensors[0], generator)  # a function of the user's may give anything
    if not isinstance(found, Tensor) or found.shape != tensors[0].shape:
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise InvalidArgument(
            f"augment must return a tensor of the shape of its inputs, {tuple(tensors[0].shape)}, got {got}."
        )
    return filled(inputs, [found])


@contextmanager
def _drawn(recipe: CalibrationRecovery, device: torch.device, stage: int) -> Generator[None]:
    """What the networks themselves draw, such as dropout, follows from the recipe's seed inside."""
    with random_state_kept(device):
        torch.manual_seed(recipe.seed * 1_000_003 + stage)
        yield


def _add_squares(squares: dict[str, Tensor], weights: Mapping[str, nn.Parameter], share: float) -> None:
    """Add `share` of each squared gradient; a weight that the loss did not reach has none."""
    for name, weight in weights.items():
        if weight.grad is not None:
            gradient = weight.grad.float()
            squares[name].addcmul_(gradient, gradient, value=share)


class _Batches:
    """Places of a batch's inputs; each pass takes every input at most once, in its own order."""

    def __init__(self, n: int, size: int, generator: torch.Generator) -> None:
        self._n, self._size, self._generator = n, min(size, n), generator
        self._left = torch.empty(0, dtype=torch.int64)

    def next(self) -> Tensor:
        if len(self._left) < self._size:
            self._left = torch.randperm(self._n, generator=self._generator)
        found, self._left = self._left[: self._size], self._left[self._size :]
        return found
