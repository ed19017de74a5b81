"""What `prune` refuses before any work: networks, teachers and data that do not go together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from secateur.allocate import AbstractPattern
from secateur.calibration import CalibrationRecovery
from secateur.data import Data
from secateur.errors import DataError, InvalidArgument
from secateur.evaluate import evaluate
from secateur.kinds import check_kind
from secateur.losses import logits_for
from secateur.modules import device_of, modes_kept, share_weights
from secateur.naming import length_of, split_batches
from secateur.recovery import Recovery
from secateur.scores import AbstractCriterion
from secateur.training import recovery_name


def check_kinds(data: object, criterion: object, pattern: object, calibration_recovery: object) -> None:
    """Refuse a name, a class or another object where one of ours is wanted.

    Raises:
        InvalidArgument: naming the argument.
    """
    if not isinstance(data, str):
        check_kind("data", data, Data, "Data(...) of your own loaders, or the name of a data set")
    if criterion is not None:
        check_kind("criterion", criterion, AbstractCriterion, "Magnitude()")
    check_kind("pattern", pattern, AbstractPattern, "NM(2, 4)")
    if calibration_recovery is not None:
        check_kind("calibration_recovery", calibration_recovery, CalibrationRecovery, "CalibrationRecovery()")


def check_fits(network: nn.Module, data: Data, role: str) -> None:
    """Refuse a network whose logits do not cover the data's classes.

    Raises:
        DataError: naming both numbers of classes.
    """
    inputs, _ = next(split_batches(data.calibration, device_of(network)))
    with modes_kept(network), torch.no_grad():
        logits = logits_for(network.eval(), inputs[:2])
    if logits.ndim != 2 or logits.shape[1] != data.n_classes:
        raise DataError(
            f"the {role} returns outputs of shape {tuple(logits.shape)} for 2 inputs, "
            f"{data.name!r} has {data.n_classes} classes. They must be (2, {data.n_classes})."
        )


def check_evaluable(student: nn.Module, data: Data, splits: Sequence[Literal["val", "test"]]) -> None:
    """Refuse splits whose first batch cannot be evaluated: without samples, or without labels of its classes.

    Raises:
        DataError: naming the split, and what is wrong.
    """
    for split in splits:
        batches = data.val if split == "val" else data.test
        first = next(iter(batches), None)
        try:
            evaluate(student, [] if first is None else [first])
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
