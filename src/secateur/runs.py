"""Run folders: one run, one folder, written so that a killed training loses at most an epoch."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from secateur.errors import CheckpointError, RunError, SecateurError
from secateur.files import atomic_write, is_temporary, locked, read_json, write_json
from secateur.train import Epoch, TrainState

_PARTS = ("model", "momentum", "selected")
_LOCK = ".lock"


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps its files.

    ::

        config.yaml   result.json   student.safetensors   report.html   log.jsonl
        teacher.safetensors, dense.safetensors     networks that were trained here
        checkpoint/                                training in progress, while running

    Attributes:
        path: The folder.
    """

    path: Path

    @classmethod
    @contextmanager
    def claimed(
        cls, path: str | Path, *, run_id: str, config: str, resume: bool = False
    ) -> Generator[RunFolder]:
        """Hold a folder for a run while the body works, or with `resume` go on in the one that holds it.

        Nobody else can claim it meanwhile; a run that is killed lets go of it.

        Args:
            path: The folder; made if it is not there.
            run_id: What tells this run from others.
            config: The run's configuration as YAML, kept as ``config.yaml``.
            resume: Accept a folder that holds the same run already.

        Raises:
            RunError: if the folder cannot be written, is in use, or holds something else or another run.
        """
        folder = cls(Path(path))
        was_there = os.path.exists(folder.path)  # False, not an error, where it may not be looked at
        try:
            with folder._held(f"# run {run_id}", config, resume=resume):
                yield folder
        except SecateurError:  # over a wrong option, say
            if not was_there:
                folder._remove_if_not_begun()
            raise

    @contextmanager
    def _held(self, title: str, config: str, *, resume: bool) -> Generator[None]:
        with contextlib.ExitStack() as stack:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                free = stack.enter_context(locked(self.path / _LOCK))
            except OSError as error:
                raise self._unusable(error) from error
            if not free:
                raise RunError(
                    f"the run folder {str(self.path)!r} is in use by a run that is still going on. "
                    "Wait until it ends, or choose another --out."
                )
            self._take(title, config, resume=resume)
            yield

    def _remove_if_not_begun(self) -> None:
        """Leave nothing behind of a run that wrote nothing but its configuration."""
        with contextlib.suppress(OSError):
            if {path.name for path in self.path.iterdir()} <= {"config.yaml"}:
                shutil.rmtree(self.path)

    def _take(self, title: str, config: str, *, resume: bool) -> None:
        """Make the folder that of the run `title`, or see that it is."""
        try:
            for path in [p for p in self.path.iterdir() if is_temporary(p.name)]:
                path.unlink(missing_ok=True)
            used = sorted(p.name for p in self.path.iterdir() if p.name != _LOCK)
            held = self._title() if "config.yaml" in used else ""
        except OSError as error:
            raise self._unusable(error) from error
        if used == ["config.yaml"] and held.startswith("# run "):
            used = []  # a run that stopped before it began, over a wrong option, say
        if not used:
            self.write("config.yaml", f"{title}\n{config}")
        elif not resume:
            raise RunError(
                f"the run folder {str(self.path)!r} is already used (it holds {', '.join(used[:4])}). "
                "Choose another --out, or --resume to go on with the run in it."
            )
        elif "config.yaml" not in used:
            raise RunError(f"{str(self.path)!r} holds no config.yaml, so there is no run to resume.")
        elif held != title:
            raise RunError(
                f"{str(self.path)!r} holds {held.lstrip('# ')}, these options make {title.lstrip('# ')}. "
                f"Resume with --config {self.path / 'config.yaml'}, or choose another --out."
            )

    def _unusable(self, error: OSError) -> RunError:
        return RunError(f"cannot use {str(self.path)!r} as a run folder: {error}. Choose another --out.")

    def _title(self) -> str:
        """First line of the configuration, which names the run."""
        return (self.path / "config.yaml").read_text(errors="replace").partition("\n")[0]

    def found(self, name: str) -> dict[str, Any] | None:
        """What a finished run wrote by `finish`, or None."""
        path = self.path / name
        return read_json(path) if path.is_file() else None

    def log(self, event: str, **values: object) -> None:
        """Append a line to ``log.jsonl``.

        Raises:
            RunError: if it cannot be written, for example because the disk is full.
        """
        path = self.path / "log.jsonl"
        with _writing(path), path.open("a") as file:
            file.write(json.dumps({"event": event, **values}, allow_nan=False) + "\n")

    def write(self, name: str, content: str | bytes) -> Path:
        """Write a file of the run atomically."""
        atomic_write(self.path / name, content)
        return self.path / name

    def finish(self, name: str, content: dict[str, Any]) -> None:
        """Write what the run found as JSON, and drop what was only for resuming."""
        write_json(self.path / name, content)
        shutil.rmtree(self.path / "checkpoint", ignore_errors=True)

    def save_training(self, stage: str, state: TrainState, curve: list[Epoch]) -> None:
        """Keep the state of a training in progress.

        Raises:
            RunError: if it cannot be written, for example because the disk is full.
        """
        tensors: dict[str, Tensor] = {}
        for part in _PARTS:
            tensors |= {f"{part}/{name}": t.contiguous() for name, t in getattr(state, part).items()}
        about = {
            "epochs_done": state.epochs_done,
            "selected_epoch": state.selected_epoch,
            "best_accuracy": state.best_accuracy,
            "curve": [asdict(epoch) for epoch in curve],
        }
        path = self._training(stage)
        with _writing(path):
            path.parent.mkdir(exist_ok=True)
        # The selected epoch may be the last one: the same tensors under two names, which the format refuses.
        tensors = {name: t.clone() for name, t in tensors.items()}
        atomic_write(path, save(tensors, metadata={"training": json.dumps(about)}))

    def load_training(self, stage: str) -> tuple[TrainState, list[Epoch]]:
        """Where a training stopped; a fresh state if it never started.

        Raises:
            CheckpointError: if the file is damaged.
        """
        path = self._training(stage)
        if not path.is_file():
            return TrainState(), []
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {})["training"])
                parts: dict[str, dict[str, Tensor]] = {part: {} for part in _PARTS}
                for key in file.keys():  # noqa: SIM118 - not a mapping
                    part, name = key.split("/", 1)
                    parts[part][name] = file.get_tensor(key)
            curve = [Epoch(**entry) for entry in about.pop("curve")]
            state = TrainState(**about)
        except (SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{str(path)!r} is damaged ({error}); delete it to train this stage anew."
            ) from error
        state.model, state.momentum, state.selected = (parts[part] for part in _PARTS)
        return state, curve

    def _training(self, stage: str) -> Path:
        return self.path / "checkpoint" / f"{stage}.safetensors"


@contextmanager
def _writing(path: Path) -> Generator[None]:
    """Say which file of the run could not be written."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"cannot write {str(path)!r}: {error.strerror or error}. "
            "Free some space or check the permissions, then go on with --resume."
        ) from error
