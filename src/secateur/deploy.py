"""From a finished run to a plan, and what the plan is worth on the test split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from secateur.checkpoint import load_sparse
from secateur.config import RunConfig, load_config
from secateur.data import load_data
from secateur.errors import CheckpointError, RunError
from secateur.files import read_json
from secateur.inputs import Inputs, call
from secateur.losses import logits_of
from secateur.models import build_model
from secateur.modules import without_shape
from secateur.naming import Batches, split_batches
from secateur.runtime import Engine, Plan
from secateur.runtime import compile as compile_model
from secateur.runtime.bench import Network

_STUDENT = "student.safetensors"


@dataclass(frozen=True)
class Deployed:
    """A run made ready to be run.

    Attributes:
        plan: Its student as a plan.
        student: Its student in torch, in eval mode.
    """

    plan: Plan
    student: nn.Module


@dataclass(frozen=True)
class Agreement:
    """What torch and the engine say about the same samples.

    Attributes:
        n_samples: How many there were.
        accuracy_torch: Fraction that torch gets right.
        accuracy_engine: Fraction that the engine gets right.
        differing: Places of the samples to which they give different classes, with both rows of logits.
        worst: Largest difference of a logit, relative to the largest logit.
    """

    n_samples: int
    accuracy_torch: float
    accuracy_engine: float
    differing: list[dict[str, Any]]
    worst: float


def compile_run(
    folder: Path,
    *,
    precision: Literal["fp32", "bf16", "fp16"],
    fallback: Literal["torch"] | None,
    batches: Iterable[int],
    threads: int | None,
    data_dir: str | None = None,
) -> Deployed:
    """The pruned student of a run as a plan, compiled with random inputs of the shape of its data.

    A student of several inputs is compiled with those of its test split.

    Args:
        folder: Of a finished run.
        precision: See `secateur.runtime.compile`, as for all below.
        fallback: As there.
        batches: As there.
        threads: As there.
        data_dir: See `test_batches`.

    Raises:
        RunError: if the folder is not that of a finished run.
        SecateurError: one of its kinds, if the student cannot be built, filled or compiled.
    """
    student, shape = load_student(folder)
    sizes = sorted(set(batches))
    size = max(sizes, default=1)
    if shape:
        example: Inputs = torch.randn(size, *shape, generator=torch.Generator().manual_seed(0))
    else:
        example, _ = next(split_batches(test_batches(folder, data_dir), torch.device("cpu")))
        example = example[torch.arange(size) % len(example)]
    plan = compile_model(
        student, example, precision=precision, fallback=fallback, batches=sizes, threads=threads
    )
    return Deployed(plan, student)


def load_student(folder: Path) -> tuple[nn.Module, tuple[int, ...]]:
    """The pruned student of a run in eval mode, and the shape of one input; empty where there are several.

    Raises:
        RunError: if the folder is not that of a finished run, or does not name its student.
        CheckpointError: if its checkpoint is missing or damaged.
    """
    if not (folder / "result.json").is_file():
        raise RunError(f"{str(folder)!r} holds no result.json; is it the folder of a finished run?")
    result = read_json(folder / "result.json")
    try:
        data, spec = result["data"], result["models"]["student"]["name"]
        shape, n_classes = tuple(map(int, data["input_shape"])), int(data["n_classes"])
    except (KeyError, TypeError) as error:
        raise RunError(
            f"{str(folder / 'result.json')!r} does not say what its student is. Compile it in Python: "
            "secateur.runtime.compile(model, example)."
        ) from error
    student = build_model(spec, num_classes=n_classes, in_channels=shape[0] if shape else 1).eval()
    if shape and without_shape(student) is not None:
        with torch.no_grad():
            student(torch.zeros(1, *shape))
    checkpoint = folder / _STUDENT
    if not checkpoint.is_file():
        raise CheckpointError(f"there is no checkpoint {str(checkpoint)!r}; was the run stopped?")
    load_sparse(checkpoint, into=student)
    return student, shape


def network_of_run(folder: Path) -> Network:
    """The student of a run for the benchmark of the engine.

    Its name is that of the folder and the first digits of its checkpoint's digest, for other runs may lie in
    folders of that name, and another student in this one tomorrow.

    Args:
        folder: Of a finished run.

    Raises:
        RunError: if there is no finished run, or its student takes several inputs.
    """
    student, shape = load_student(folder)
    if not shape:
        raise RunError(
            f"the student of {str(folder)!r} takes several inputs, which this benchmark cannot make."
        )
    sparsity = read_json(folder / "result.json")["sparsity"]["asked"]
    digest = hashlib.sha256((folder / _STUDENT).read_bytes()).hexdigest()[:6]
    name = f"run-{folder.resolve().name}-{digest}"
    return Network(name, sparsity, "pruned", lambda batch: (student, torch.zeros(batch, *shape)))


def test_batches(folder: Path, data_dir: str | None) -> Batches:
    """The test split of the data of a run.

    Args:
        folder: Of the run.
        data_dir: Where the data lie now; None for where they lay then.

    Raises:
        SecateurError: one of its kinds, if the data cannot be read.
    """
    setup = load_config(str(folder / "config.yaml"), RunConfig).setup
    options = setup.dataset
    if data_dir is not None:
        options = replace(options, data_dir=data_dir)
    return load_data(options, seed=setup.seed).test


def _place_of_logits(answer: object) -> int:
    """Which of the tensors that a model returned are its logits; a plan gives them all, in the same order."""
    logits = answer if isinstance(answer, Tensor) else getattr(answer, "logits", None)
    return next(i for i, tensor in enumerate(tree_leaves(answer)) if tensor is logits)


def compare(deployed: Deployed, engine: Engine, batches: Batches) -> Agreement:
    """Run labelled batches through torch and through the engine.

    Args:
        deployed: The student in torch.
        engine: Made from its plan.
        batches: Of ``(inputs, labels)``.
    """
    expected, found, labels = [], [], []
    with torch.no_grad():
        for x, y in split_batches(batches, torch.device("cpu")):
            answer = call(deployed.student, x)
            expected.append(logits_of(answer).numpy())
            outputs = call(engine, x)
            found.append(outputs[_place_of_logits(answer)] if isinstance(outputs, tuple) else outputs)
            labels.append(np.asarray(y))
    a, b, truth = (np.concatenate(rows) for rows in (expected, found, labels))
    differing = np.flatnonzero(a.argmax(1) != b.argmax(1))
    return Agreement(
        n_samples=len(truth),
        accuracy_torch=float((a.argmax(1) == truth).mean()),
        accuracy_engine=float((b.argmax(1) == truth).mean()),
        differing=[{"sample": int(i), "torch": a[i].tolist(), "engine": b[i].tolist()} for i in differing],
        worst=float(np.abs(a - b).max() / np.abs(a).max()),
    )
