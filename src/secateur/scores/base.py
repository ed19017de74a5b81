"""What a criterion is: a frozen value that turns a model and calibration data into scores."""

from __future__ import annotations

import abc
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.errors import DataError, ScoreError
from secateur.inputs import Inputs
from secateur.layout import laid_out
from secateur.losses import logits_for
from secateur.modules import modes_kept, plain_attention, remembered
from secateur.naming import GIVE_LABELS, Batches, Loss, Named, split_batches


@dataclass(frozen=True)
class ScoreInputs:
    """What a criterion may look at.

    Attributes:
        model: The student, in eval mode.
        targets: The weights to score, by state-dict name.
        batches: Calibration batches, or None.
        task_loss: ``f(outputs, labels)``, a scalar averaged over the batch.
        weights: The values by which a score that depends on the weights multiplies, detached: those of
            `targets`, or in a cut in stages the original, unmasked ones, so that a weight that an earlier
            stage removed can earn its place back.
        squared_gradients: Mean squared gradient of the teacher's loss over the distillation steps that the
            student has just had, by name; None where it has had none.
    """

    model: nn.Module
    targets: dict[str, nn.Parameter]
    batches: Batches | None
    task_loss: Loss
    weights: Named
    squared_gradients: Named | None = None

    @property
    def device(self) -> torch.device:
        """Where the student lives."""
        return next(iter(self.targets.values())).device

    def stream(self, *others: nn.Module) -> Iterator[tuple[Inputs, Tensor | None]]:
        """``(inputs, labels or None)`` of each batch, on the student's device; images channels-last.

        Args:
            others: Further networks that will run on the inputs, which decide on their layout too.

        Raises:
            ScoreError: if there are no batches.
            DataError: if the loader is empty or yields something unusable. Batches without a sample are
                passed over.
        """
        if self.batches is None:
            raise ScoreError(
                "this criterion needs calibration batches; pass an iterable of (inputs, labels)."
            )
        empty = True
        for x, labels in laid_out(split_batches(self.batches, self.device), self.model, *others):
            if len(x):
                empty = False
                yield x, labels
        if empty:
            raise DataError("the calibration batches hold no sample; check that the data set is not empty.")

    def logits(self, x: Inputs) -> Tensor:
        """The student's logits for inputs from `stream`, however many tensors it takes; see `logits_of`."""
        return logits_for(self.model, x)

    def stream_labelled(self, criterion: AbstractCriterion) -> Iterator[tuple[Inputs, Tensor]]:
        """As `stream`, for a criterion that cannot work without labels.

        Raises:
            ScoreError: naming the criterion and the batch that has none.
        """
        for index, (inputs, labels) in enumerate(self.stream()):
            if labels is None:
                raise ScoreError(
                    f"{type(criterion).__name__} needs labels, batch {index} has none. {GIVE_LABELS}."
                )
            yield inputs, labels


class AbstractCriterion(abc.ABC):
    """A rule that gives every weight a score; higher = keep.

    Subclasses are frozen dataclasses whose fields are the hyper-parameters.
    """

    @abc.abstractmethod
    def __call__(self, inputs: ScoreInputs) -> Named:
        """Scores by parameter name: finite, floating, shaped like the weights, higher = keep."""


@dataclass(frozen=True)
class Solution:
    """What the kept weights should become.

    Attributes:
        weights: New values by name, float32, exactly 0 where the masks prune.
        predicted: Expected change of the teacher's loss from the weights that were scored to these; None
            where the criterion does not know.
    """

    weights: dict[str, Tensor]
    predicted: float | None


class SolvingScores(Mapping[str, Tensor], abc.ABC):
    """Scores of a criterion that can also say what the weights that stay should become.

    `secateur.cut` asks for that in each of its stages if the criterion has a field `update_weights` that is
    true; `score` and `staged_masks` only rank.

    Args:
        scores: The scores by name.
    """

    def __init__(self, scores: Named) -> None:
        self._scores = scores

    def __getitem__(self, name: str) -> Tensor:
        return self._scores[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._scores)

    def __len__(self) -> int:
        return len(self._scores)

    @abc.abstractmethod
    def solve(self, masks: Named) -> Solution:
        """New values of the weights under `masks`, which were made from these scores."""


@contextmanager
def preserving(model: nn.Module) -> Generator[None]:
    """Put `model` in eval mode, and give back modes, buffers, gradients and random state bit for bit.

    Also after an exception. Parameters are never written by scoring, so they are not copied. Transformer
    layers run as they do in training.
    """
    grads = {p: p.grad for p in model.parameters()}
    # By module, places without a tensor included: a forward pass may fill them.
    buffers = [(held, dict(held)) for held in (module._buffers for module in model.modules())]  # pyright: ignore[reportPrivateUsage]
    # An interrupt in torch.func may leave what stood in for them.
    parameters = [(held, dict(held)) for held in (module._parameters for module in model.modules())]  # pyright: ignore[reportPrivateUsage]
    # weight_norm and its like keep what they computed in an attribute
    attributes = [(vars(module), dict(_tensors_in(module))) for module in model.modules()]
    put_back = remembered(model.buffers())
    cuda = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=cuda), modes_kept(model), plain_attention():
        try:
            for parameter in grads:
                parameter.grad = None
            model.eval()
            yield
        finally:
            for parameter, grad in grads.items():
                parameter.grad = grad
            for held, before in buffers:
                held.clear()
                held.update(before)
            for held, own in parameters:
                held.update(own)
            for held, tensors in attributes:
                held.update(tensors)
            put_back()


def _tensors_in(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors that are plain attributes of a module."""
    return ((name, value) for name, value in vars(module).items() if isinstance(value, Tensor))


@contextmanager
def gradients_to(targets: dict[str, nn.Parameter], sink: Callable[[str, Tensor], None]) -> Generator[None]:
    """Hand each target's gradient to ``sink(name, gradient)`` as backward reaches it, then free it.

    So one layer's gradient is alive at a time, never the whole model's. The sink must not write to it.
    """

    def hook_for(name: str) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            gradient = parameter.grad
            if gradient is not None:
                parameter.grad = None
                sink(name, gradient)

        return hook

    with ExitStack() as stack:
        for name, parameter in targets.items():
            handle = parameter.register_post_accumulate_grad_hook(hook_for(name))
            stack.callback(handle.remove)
        yield
