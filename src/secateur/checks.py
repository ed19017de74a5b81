"""What `prune` refuses before any work: networks, teachers and data that do not go together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from secateur.allocate import AbstractPattern
from secateur.calibration import CalibrationRecovery
from secateur.data import Data
from secateur.errors import DataError, InvalidArgument, SecateurError, first_line
from secateur.evaluate import check_first
from secateur.inputs import Inputs, tensors_of
from secateur.kinds import check_kind
from secateur.losses import logits_for
from secateur.modules import device_of, modes_kept, share_weights
from secateur.naming import Batches, check_repeatable, length_of, split_batches
from secateur.progress import Watcher
from secateur.recovery import Recovery
from secateur.runs import RunFolder
from secateur.scores import AbstractCriterion
from secateur.training import recovery_name

_OPTIONAL: Mapping[str, tuple[type, str]] = {
    "teacher": (nn.Module, "a trained torch.nn.Module"),
    "criterion": (AbstractCriterion, "Magnitude()"),
    "calibration_recovery": (CalibrationRecovery, "CalibrationRecovery()"),
    "folder": (RunFolder, "what `with RunFolder.claimed(path, run_id=…, config=…)` gives"),
    "watcher": (Watcher, "Watcher()"),
}
"""What may be None, by the name of the argument: its kind, and an example."""


def check_kinds(student: object, data: object, pattern: object, **optional: object) -> None:
    """Refuse a name, a class or another object where one of ours is wanted.

    Args:
        student: What is to be a network.
        data: What is to be data, or the name of a data set.
        pattern: What is to be a pattern.
        optional: Other arguments by name, which may be None.

    Raises:
        InvalidArgument: naming the argument.
    """
    check_kind("student", student, nn.Module, "a trained torch.nn.Module")
    if not isinstance(data, str):
        check_kind("data", data, Data, "Data(...) of your own loaders, or the name of a data set")
    check_kind("pattern", pattern, AbstractPattern, "NM(2, 4)")
    for name, value in optional.items():
        if value is not None:
            check_kind(name, value, *_OPTIONAL[name])


def recipes_of(recovery: Recovery | Sequence[Recovery] | None) -> list[Recovery]:
    """The recoveries that train at all, of one or several or none.

    Raises:
        InvalidArgument: if something else is among them.
    """
    if recovery is None:
        return []
    several = isinstance(recovery, Sequence) and not isinstance(recovery, str)
    recipes = cast("Sequence[Recovery]", recovery if several else [recovery])
    for recipe in recipes:
        check_kind("recovery", recipe, Recovery, "Recovery(epochs=20), or a list of them")
    return [recipe for recipe in recipes if recipe.epochs > 0]


def check_fits(network: nn.Module, data: Data, role: str) -> None:
    """Refuse a network that does not take the data's inputs, or whose logits do not cover their classes.

    Raises:
        DataError: with the shape of the inputs and what the network said, or both numbers of classes.
    """
    inputs, _ = next(split_batches(data.calibration, device_of(network)))
    with modes_kept(network), torch.no_grad():
        logits = _first_logits(network.eval(), inputs[:2], data, role)
    if logits.ndim != 2 or logits.shape[1] != data.n_classes:
        raise DataError(
            f"the {role} returns outputs of shape {tuple(logits.shape)} for 2 inputs, "
            f"{data.name!r} has {data.n_classes} classes. They must be (2, {data.n_classes})."
        )


def _first_logits(network: nn.Module, inputs: Inputs, data: Data, role: str) -> Tensor:
    try:
        return logits_for(network, inputs)
    except (SecateurError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the code of a user's own network may raise anything
        shapes = " and ".join(str(tuple(tensor.shape)) for tensor in tensors_of(inputs))
        raise DataError(
            f"the {role} ({type(network).__name__}) failed on inputs of shape {shapes} from {data.name!r} "
            f"with {type(error).__name__}: {first_line(error).rstrip('.')}. "
            "Choose a network that takes them, or data of another shape (image_size)."
        ) from error


def check_splits(data: Data, splits: Sequence[Literal["val", "test", "calibration"]]) -> None:
    """Refuse splits that can be gone through once only.

    Raises:
        InvalidArgument: naming the split.
    """
    for split in splits:
        batches: Batches = getattr(data, split)
        check_repeatable(batches, f"the {split} batches of {data.name!r} are gone through more than once")


def check_evaluable(student: nn.Module, data: Data, splits: Sequence[Literal["val", "test"]]) -> None:
    """Refuse splits whose first batch cannot be evaluated: without samples, or without labels of its classes.

    Raises:
        DataError: naming the split, and what is wrong.
    """
    for split in splits:
        batches = data.val if split == "val" else data.test
        try:
            check_first(student, batches)
        except DataError as error:
            raise DataError(f"the {split} batches of {data.name!r} cannot be used: {error}") from error


def check_teachers(
    student: nn.Module, teacher: nn.Module | None, recipes: Sequence[Recovery], calibration_teacher: str
) -> None:
    """Refuse recoveries that lack their teacher, and a teacher that would be pruned with the student.

    Args:
        student: What is to be pruned.
        teacher: The network that teaches, if there is one.
        recipes: Recoveries, at most one with a teacher and one without.
        calibration_teacher: Who teaches on the calibration inputs: student or teacher.

    Raises:
        InvalidArgument: saying what to pass.
    """
    names = [recovery_name(recipe) for recipe in recipes]
    if len(set(names)) != len(names):
        raise InvalidArgument("recovery takes at most one recipe with a teacher and one without.")
    if teacher is None and "recovered_kd" in names:
        raise InvalidArgument("recovery with kd_weight > 0 needs a teacher; pass one or set kd_weight=0.")
    if calibration_teacher not in ("student", "teacher"):
        raise InvalidArgument(f"calibration_teacher must be student or teacher, got {calibration_teacher!r}.")
    if teacher is None and calibration_teacher == "teacher":
        raise InvalidArgument("calibration_teacher='teacher' needs a teacher; pass one, or choose 'student'.")
    if teacher is not None and share_weights(teacher, student):
        raise InvalidArgument(
            "the teacher is, or shares weights with, the student that is to be pruned. "
            "Pass copy.deepcopy(student) as teacher."
        )


def resolve_batchnorm(batchnorm: str, data: Data | str, *, moved: bool) -> str:
    """Which data BatchNorm is re-estimated on: augmented, plain or off.

    Args:
        batchnorm: What was asked for; auto is off where `moved`, else augmented, or plain without
            training batches.
        data: The data.
        moved: Whether the cut moves the weights that it keeps, and so ends with statistics of its own.

    Raises:
        InvalidArgument: naming what is allowed, if it is unknown or there are no data for it.
    """
    if batchnorm not in ("auto", "augmented", "plain", "off"):
        raise InvalidArgument(f"batchnorm must be auto, augmented, plain or off, got {batchnorm!r}.")
    train = None if isinstance(data, str) else data.train  # what goes by name has training images
    no_training = train is not None and length_of(train) == 0
    if batchnorm == "auto":
        return "off" if moved else "plain" if no_training else "augmented"
    if batchnorm == "augmented" and no_training:
        raise InvalidArgument(
            "batchnorm='augmented' needs training batches, and the data have none. "
            "Pass 'plain', which takes the calibration inputs, or 'off'."
        )
    return batchnorm
