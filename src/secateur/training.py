"""Trainings of a run: what `fit` does, with a progress bar, a log and a state on disk."""

from __future__ import annotations

from dataclasses import asdict
from itertools import islice

from torch import nn

from secateur.data import Data
from secateur.masks import Masks
from secateur.naming import Batches, count_batches
from secateur.progress import Watcher
from secateur.recovery import Recovery
from secateur.runs import RunFolder
from secateur.steps import Execution
from secateur.train import Epoch, TrainState, fit


def train_stage(
    model: nn.Module,
    data: Data,
    recipe: Recovery,
    name: str,
    *,
    masks: Masks | None = None,
    teacher: nn.Module | None = None,
    seed: int,
    execution: Execution = "auto",
    folder: RunFolder | None = None,
    watcher: Watcher,
) -> tuple[TrainState, list[Epoch]]:
    """`fit` with a progress bar, a log line an epoch, and a state on disk to resume from.

    Returns:
        The final state, and one entry an epoch.
    """
    state, curve = folder.load_training(name) if folder else (TrainState(), [])
    n_steps = count_batches(data.train) * (recipe.epochs - state.epochs_done)
    with watcher.stage(f"train: {name}", n_steps) as step:
        epochs = fit(
            model,
            data.train,
            recipe,
            masks=masks,
            teacher=teacher,
            validation=data.val,
            state=state,
            seed=seed,
            execution=execution,
            on_step=step,
        )
        for epoch in epochs:
            curve.append(epoch)
            if folder:
                folder.save_training(name, state, curve)
                folder.log("epoch", stage=name, **asdict(epoch))
    return state, curve


def augmented_batches(data: Data) -> Batches:
    """Augmented training batches for BatchNorm, as many as there are calibration batches."""
    return islice(data.train, count_batches(data.calibration))


def recovery_name(recipe: Recovery) -> str:
    """The key under which a recovery's figures stand."""
    return "recovered_kd" if recipe.kd_weight > 0 else "recovered"
