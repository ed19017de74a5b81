"""Distillation losses: how far a student's outputs are from its teacher's. Functions only."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.counts import check_fraction, check_number
from secateur.errors import DataError, InvalidArgument, ScoreError
from secateur.inputs import Inputs, call
from secateur.kinds import check_used
from secateur.naming import Loss

KDKind: TypeAlias = Literal["forward", "reverse", "ca-kld", "mse", "cosine"]
"""Built-in distances between student and teacher: three on logits, two on any matched outputs."""


@contextmanager
def data_faults(labels: Tensor) -> Generator[None]:
    """What a batch does wrong in a loss or a layer is told as the fault of the data.

    Args:
        labels: Those of the batch.

    Raises:
        DataError: if a label is not one of the network's classes, or a BatchNorm layer in training sees one
            value a channel.
    """
    try:
        yield
    except IndexError as error:
        if "Target" not in str(error):  # an embedding raises it too, of its inputs
            raise
        low, high = labels.aminmax()
        raise DataError(
            f"labels go from {low} to {high}; with C classes they must be 0 … C − 1. {error}"
        ) from error
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise DataError(
            f"BatchNorm cannot train on a batch of {len(labels)}: a layer sees one value a channel. "
            "Choose a batch size that leaves no single sample over, or drop the last batch (drop_last=True)."
        ) from error


def explained(task_loss: Loss) -> Loss:
    """`task_loss`, which says what is wrong with the labels that it cannot take."""

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        if task_loss is F.cross_entropy:
            _check_classes(outputs, labels)
        with data_faults(labels):
            return task_loss(outputs, labels)

    return loss


def _check_classes(outputs: Tensor, labels: Tensor) -> None:
    """Refuse what cross-entropy takes for something else, or not at all."""
    if outputs.ndim < 2 or outputs.shape[1] < 2:
        raise DataError(
            "cross-entropy needs outputs of shape (batch, classes, …) with 2 classes or more: "
            f"{_given(outputs, labels)}. For one output pass a task_loss, such as "
            "F.binary_cross_entropy_with_logits or F.mse_loss."
        )
    if labels.is_floating_point():
        if labels.shape != outputs.shape:
            raise DataError(
                "labels must be whole numbers, or a probability for each class: "
                f"{_given(outputs, labels)}. Convert them with .long(), or pass another task_loss."
            )
    elif labels.shape != (places := outputs.shape[:1] + outputs.shape[2:]):
        last = outputs.ndim > 2 and labels.shape == outputs.shape[:-1]
        fix = "Classes belong on dimension 1: move them there." if last else "Give each place one label."
        raise DataError(f"labels must have shape {tuple(places)}: {_given(outputs, labels)}. {fix}")


def _given(outputs: Tensor, labels: Tensor) -> str:
    return f"outputs of shape {tuple(outputs.shape)}, labels of shape {tuple(labels.shape)} ({labels.dtype})"


def check_outputs(student: Tensor, teacher: Tensor) -> None:
    """Refuse student and teacher outputs that cannot be compared element by element.

    Raises:
        ScoreError: if their shapes differ, with a hint when it is the number of classes.
    """
    if student.shape == teacher.shape:
        return
    shapes = f"student outputs have shape {tuple(student.shape)}, teacher outputs {tuple(teacher.shape)}"
    if student.ndim == teacher.ndim == 2 and student.shape[0] == teacher.shape[0]:
        raise ScoreError(
            f"{shapes}: the student knows {student.shape[1]} classes, the teacher {teacher.shape[1]}. "
            "Use a teacher trained on the same classes in the same order."
        )
    raise ScoreError(f"{shapes}; they must be equal. Pass a callable that matches them as the KD loss.")


def standardize_logits(logits: Tensor) -> Tensor:
    """Each sample's logits with mean 0 and standard deviation 1 over the classes.

    The per-sample z-score of https://arxiv.org/abs/2403.01427; the authors of arXiv 2511.16653 use it
    in recovery, not in scoring.

    Args:
        logits: Shape (batch, classes, …).
    """
    centred = logits - logits.mean(dim=1, keepdim=True)
    # std, not sqrt(mean(x²)): its gradient is finite where all logits of a sample are equal
    return centred / (logits.std(dim=1, keepdim=True, correction=0) + 1e-7)


def kd_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float,
    direction: Literal["forward", "reverse", "ca-kld"] = "forward",
    beta: float = 0.5,
    standardize: bool = False,
) -> Tensor:
    """Distillation loss between logits, averaged over the batch and scaled by T², in at least float32.

    With p = softmax(z/T): forward is ``T²·KL(p_teacher ‖ p_student)`` (Hinton 2015,
    https://arxiv.org/abs/1503.02531 §2; T² undoes the 1/T² in the gradient), reverse swaps the two
    distributions, and ca-kld is ``β·reverse + (1−β)·forward`` (CA-KLD of
    https://arxiv.org/abs/2402.10631, with the constant β of arXiv 2511.16653). No gradient flows to
    `teacher`.

    Args:
        student: Logits, shape (batch, classes) or (batch, classes, …).
        teacher: Logits of the frozen teacher, same shape and class order.
        temperature: T > 0, dimensionless; 1 is plain KL.
        direction: Which divergence.
        beta: Weight of the reverse term in ca-kld, in [0, 1].
        standardize: Standardise both logits per sample first, see `standardize_logits`.

    Returns:
        Scalar ≥ 0, in nats; 0 where the two distributions agree.

    Raises:
        InvalidArgument: if `temperature` is not finite and positive, `beta` is outside [0, 1], or the
            direction is unknown.
        ScoreError: if the shapes differ, or there are fewer than two classes.
    """
    check_number("temperature", temperature, above_zero=True)
    check_fraction("beta", beta)
    if direction not in ("forward", "reverse", "ca-kld"):
        raise InvalidArgument(f"direction must be forward, reverse or ca-kld, got {direction!r}.")
    check_outputs(student, teacher)
    if student.ndim < 2 or student.shape[1] < 2:
        raise ScoreError(
            f"logits must have shape (batch, classes, …) with 2 classes or more, got {tuple(student.shape)}. "
            "Outputs that are not logits need another distance: kd='mse', of the criterion or the recovery."
        )
    # Half precision has no room for sums over a batch of maps.
    student, teacher = (at_least_single(z) for z in (student, teacher.detach()))
    if standardize:
        student, teacher = standardize_logits(student), standardize_logits(teacher)
    log_s = F.log_softmax(student / temperature, dim=1)
    log_t = F.log_softmax(teacher / temperature, dim=1)
    n = student.numel() / student.shape[1]
    scale = temperature**2 / n
    if direction == "reverse":
        log_s, log_t = log_t, log_s
    divergence = scale * _divergence(log_s, log_t)
    if direction != "ca-kld":
        return divergence
    return beta * scale * _divergence(log_t, log_s) + (1 - beta) * divergence


def _divergence(log_q: Tensor, log_p: Tensor) -> Tensor:
    """KL(p ‖ q) summed, of terms ``p·(exp(d) − 1 − d)`` with d = log q − log p, which are all ≥ 0.

    Those of ``p·(log p − log q)`` nearly cancel where p and q are close, and leave hardly more than rounding.
    """
    p, d = log_p.exp(), log_q - log_p
    near = d.clamp(max=1.0)  # exp(d) would overflow beyond, and exp(log q) cannot
    return torch.where(d < 1, p * (near.expm1() - near), log_q.exp() - p - p * d).sum()


def at_least_single(logits: Tensor) -> Tensor:
    """In single precision, or double if they are."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def mse_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of matched outputs of any shape, such as embeddings.

    Raises:
        ScoreError: if the shapes differ.
    """
    check_outputs(student, teacher)
    return F.mse_loss(student, teacher.detach())


def cosine_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """``1 − cos(student, teacher)`` of each sample's flattened outputs, averaged over the batch.

    Raises:
        ScoreError: if the shapes differ, or a sample has one number alone.
    """
    check_outputs(student, teacher)
    if student.ndim < 2:
        raise ScoreError(
            f"the cosine is of the outputs of a sample, of shape (batch, …), got {tuple(student.shape)}."
        )
    return (1 - F.cosine_similarity(student.flatten(1), teacher.detach().flatten(1), dim=1)).mean()


class Distance(Protocol):
    """Options that say how far a student's outputs are from its teacher's: fields of scores and recipes."""

    @property
    def kd(self) -> KDKind | Loss:
        """A built-in distance, or any ``f(student_outputs, teacher_outputs)``."""
        ...

    @property
    def temperature(self) -> float:
        """T > 0 of the distances on logits."""
        ...

    @property
    def beta(self) -> float:
        """Weight of the reverse divergence in ca-kld, see `kd_loss`."""
        ...

    @property
    def standardize(self) -> bool:
        """Whether logits are standardised per sample first, see `kd_loss`."""
        ...


def distillation(options: Distance) -> Loss:
    """The loss ``f(student_outputs, teacher_outputs)`` that `options` say.

    Raises:
        InvalidArgument: if the kind is unknown, a number is out of range, or an option set that this kind
            of distance does not read.
    """
    kind = options.kd
    check_number("temperature", options.temperature, above_zero=True)
    check_fraction("beta", options.beta)
    if not callable(kind) and kind not in (*_ON_LOGITS, *_ON_OUTPUTS):
        raise InvalidArgument(
            f"kd must be forward, reverse, ca-kld, mse, cosine or a callable, got {kind!r}."
        )
    check_used(options, "beta", "kd", ("ca-kld",))
    for name in ("temperature", "standardize"):
        check_used(options, name, "kd", _ON_LOGITS)
    if callable(kind):
        return kind
    if kind == "mse" or kind == "cosine":
        return _ON_OUTPUTS[kind]
    return partial(
        kd_loss,
        temperature=options.temperature,
        direction=kind,
        beta=options.beta,
        standardize=options.standardize,
    )


_ON_LOGITS = ("forward", "reverse", "ca-kld")
_ON_OUTPUTS: Mapping[str, Loss] = {"mse": mse_loss, "cosine": cosine_loss}


def logits_of(outputs: object) -> Tensor:
    """The tensor that a model returned, or the ``logits`` of an output object as in `transformers`.

    Classes are on dimension 1, as in all of PyTorch's losses. An output object's logits of three dimensions
    are those of a language model, (batch, positions, classes), and are turned to (batch, classes, positions).

    Raises:
        ScoreError: if there is neither.
    """
    if isinstance(outputs, Tensor):
        return outputs
    logits = getattr(outputs, "logits", None)
    if isinstance(logits, Tensor):
        return logits.movedim(-1, 1) if logits.ndim == 3 else logits
    raise ScoreError(
        f"a model must return a tensor or an object with .logits, got {type(outputs).__name__}. "
        "Wrap it in a module that returns its logits."
    )


def logits_for(network: Callable[..., object], inputs: Inputs) -> Tensor:
    """The logits of `network` for `inputs`, see `logits_of`.

    Raises:
        ScoreError: if what it returns holds none.
    """
    return logits_of(call(network, inputs))


def check_scalar(name: str, loss: Tensor) -> None:
    """Refuse a loss that is not one number.

    Raises:
        ScoreError: naming the loss and its shape, or what stands in its place.
    """
    if not isinstance(loss, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]  # of a user's function
        raise ScoreError(
            f"the {name} loss must be a tensor of one number, got {type(loss).__name__}. Compute it in "
            "torch, without .item(), and return it."
        )
    if loss.numel() != 1:
        raise ScoreError(
            f"the {name} loss must be a scalar, got shape {tuple(loss.shape)}. Average it over the batch."
        )


def check_finite(name: str, loss: Tensor, batch: int) -> None:
    """Refuse a loss that is not a scalar, or is NaN or infinite.

    Args:
        name: What the loss is, for the message.
        loss: What should be a scalar.
        batch: Index of the batch, from 0.

    Raises:
        ScoreError: naming the loss and the batch.
    """
    check_scalar(name, loss)
    if not bool(torch.isfinite(loss)):
        raise ScoreError(
            f"the {name} loss of batch {batch} is {float(loss.detach())}. "
            "Check the inputs, the labels and the weights for NaN or infinity."
        )
