"""The data and networks of a suite, loaded or trained once a seed and shared by all its cells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from secateur.arena.suite import Method, Suite
from secateur.config import Setup
from secateur.counts import n_prune
from secateur.data import Data, ImageLoader, ImageSplit
from secateur.errors import DataError, ModelError
from secateur.evaluate import evaluate
from secateur.launch import Prepared, prepare
from secateur.models import build_model, widest_within
from secateur.modules import device_of, twin
from secateur.naming import IndexedLoader
from secateur.progress import Watcher
from secateur.recovery import Recovery
from secateur.result import describe_network
from secateur.runs import RunFolder
from secateur.targets import select_targets
from secateur.teacher_cache import TeacherLogits
from secateur.training import train_stage

_CACHE_BYTES = 2**31
"""Most memory that remembered teacher logits may take."""


def training_images(data: Data, option: str) -> ImageLoader:
    """The training images, where a method's `option` needs them apart from labels and augmentation.

    Raises:
        DataError: if they cannot be had so.
    """
    if not isinstance(data.train, ImageLoader):
        raise DataError(
            f"{option} needs training data in an ImageLoader, got {type(data.train).__name__}. "
            f"Leave methods with {option} out."
        )
    return data.train


@dataclass
class Networks:
    """Data and networks for one seed.

    Attributes:
        suite: Where they come from.
        seed: Of splits, of what was trained here, and of fresh weights.
        folder: Where networks that were trained here are kept.
        ready: Data, trained student and teacher.
        watcher: Who is told of progress.
        accuracy: Of the trained ``teacher`` and the ``dense`` student on the test split.
    """

    suite: Suite
    seed: int
    folder: RunFolder
    ready: Prepared
    watcher: Watcher
    accuracy: dict[str, float] = field(default_factory=dict[str, float])
    _others: dict[str, nn.Module] = field(default_factory=dict[str, nn.Module])
    _logits: TeacherLogits | None = None

    @classmethod
    def prepare(cls, suite: Suite, seed: int, folder: RunFolder, device: str, watcher: Watcher) -> Networks:
        """Load or train everything that all cells of `seed` share.

        Raises:
            SecateurError: one of its kinds.
        """
        setup = Setup(
            dataset=suite.dataset,
            student=suite.student,
            student_weights=suite.student_weights,
            teacher=suite.teacher,
            teacher_weights=suite.teacher_weights,
            pretrain=suite.pretrain,
            include=suite.include,
            exclude=suite.exclude,
            seed=seed,
            device=device,
        )
        ready = prepare(setup, folder, watcher, wants_teacher=True)
        networks = cls(suite, seed, folder, ready, watcher)
        networks.accuracy["dense"] = evaluate(ready.student, ready.data.test).accuracy
        networks.accuracy["teacher"] = evaluate(networks.teacher, ready.data.test).accuracy
        return networks

    @property
    def data(self) -> Data:
        """The data, split by this seed."""
        return self.ready.data

    @property
    def device(self) -> torch.device:
        """Where the networks live."""
        return device_of(self.ready.student)

    @property
    def teacher(self) -> nn.Module:
        """The trained teacher."""
        assert self.ready.teacher is not None  # prepare was asked for one
        return self.ready.teacher

    def student(self, method: Method, sparsity: float) -> nn.Module:
        """A network of its own for one cell: what `method` starts from."""
        if method.start == "trained":
            return twin(self.ready.student)
        if method.start == "init":
            return self._fresh("student", self.suite.student)
        n_parameters = sum(p.numel() for p in self.ready.student.parameters())
        targets = select_targets(self.ready.student, include=self.suite.include, exclude=self.suite.exclude)
        prunable = sum(w.numel() for w in targets.values())
        n_allowed = n_parameters - n_prune(prunable, sparsity)
        small = widest_within(lambda width: self._fresh("small", self.suite.student, width), n_allowed)
        n_small = sum(p.numel() for p in small.parameters())
        if not 0.5 * n_allowed <= n_small <= n_allowed:
            raise ModelError(
                f"the widest {self.suite.student!r} of at most {n_allowed} parameters has {n_small}. "
                "Its factory needs a `width` argument that multiplies the numbers of channels."
            )
        return small

    def score_teacher(self, kind: str) -> nn.Module:
        """The teacher that a score listens to, see `Method.teacher`."""
        if kind == "trained":
            return self.teacher
        if kind not in self._others:
            make: dict[str, Callable[[], nn.Module]] = {
                "student": lambda: twin(self.ready.student),
                "untrained": lambda: self._fresh("untrained", self.suite.teacher),
                "random-labels": self._taught_at_random,
            }
            self._others[kind] = make[kind]().eval().requires_grad_(False)
        return self._others[kind]

    def teacher_logits(self, recipe: Recovery) -> nn.Module | TeacherLogits:
        """The teacher for recovery; its logits are remembered by all cells where memory allows it."""
        train = self.data.train
        if not isinstance(train, IndexedLoader):
            return self.teacher
        if 4 * train.n_samples * self.data.n_classes * recipe.epochs > _CACHE_BYTES:
            return self.teacher
        if self._logits is None:
            self._logits = TeacherLogits(self.teacher, train)
        return self._logits

    def about(self) -> dict[str, Any]:
        """Names and sizes of both networks."""
        return {
            "student": {**describe_network(self.ready.student), "name": self.suite.student},
            "teacher": {**describe_network(self.teacher), "name": self.suite.teacher},
        }

    def _fresh(self, purpose: str, spec: str, width: float = 1.0) -> nn.Module:
        """A network with weights drawn by this seed, other ones for each purpose."""
        with torch.random.fork_rng(devices=[]):
            # By the length of the purpose, which no two share; a better rule would draw other weights than
            # those that finished cells started from.
            torch.manual_seed(1000 * self.seed + len(purpose))
            network = build_model(
                spec,
                num_classes=self.data.n_classes,
                in_channels=self.data.in_channels,
                width=width,
            )
        return network.to(self.device)

    def _taught_at_random(self) -> nn.Module:
        """A network like the teacher, trained on labels that say nothing."""
        train = training_images(self.data, "teacher: random-labels")
        generator = torch.Generator().manual_seed(self.seed)
        labels = torch.randint(0, self.data.n_classes, (train.n_samples,), generator=generator)
        split = ImageSplit(train.split.images, labels.to(train.split.labels.device))
        data = replace(self.data, train=replace(train, split=split))
        network = self._fresh("random-labels", self.suite.teacher)
        recipe = replace(self.suite.pretrain, kd_weight=0.0, epochs=self.suite.random_label_epochs)
        train_stage(
            network, data, recipe, "random-labels", seed=self.seed, folder=self.folder, watcher=self.watcher
        )
        return network
