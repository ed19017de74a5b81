"""How many images a second the training loop takes: ways to run a step, one choice changed at a time.

ResNet-20 with 90 % zeros on random pictures of CIFAR-10's size, taught by ResNet-56, on whatever device there
is. Then what an epoch consists of beside its steps, and several trainings at once, each a process of its own.

    python train_loop.py                          # everything, on CUDA if there is any
    python train_loop.py --images 1280 --only eager,compile --processes 1,2      # a quick look on a CPU
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from common import write_result

import secateur as sc
from secateur.data import Augmentation, ImageLoader, ImageSplit
from secateur.evaluate import evaluate
from secateur.naming import IndexedBatch
from secateur.recovery import resolve_precision
from secateur.teacher_cache import TeacherLogits
from secateur.train import Epoch, fit

SUITE = {"cells": 225, "epochs": 20, "images": 45_000}
"""The suite that is to fit in half an hour, in trainings, epochs and images an epoch."""


@dataclass(frozen=True)
class Variant:
    """One way to train."""

    execution: str = "eager"
    batch_size: int = 128
    precision: str = "auto"
    channels_last: bool = True
    teacher: str = "remembered"
    """none, remembered (its logits), or asked in every step."""
    masked: bool = True
    images_on: str = "device"
    """device, or host: made there and carried over."""


def variants(device: torch.device) -> dict[str, Variant]:
    """Each way to run a step, and the default of the device with one thing changed."""
    ways = ("eager", "graph", "compile") if device.type == "cuda" else ("eager", "compile")
    usual = Variant(execution="graph" if "graph" in ways else "eager")
    changes: dict[str, dict[str, Any]] = {
        "batch 512": {"batch_size": 512},
        "contiguous": {"channels_last": False},
        "fp32": {"precision": "fp32"},
        "no teacher": {"teacher": "none"},
        "teacher asked": {"teacher": "asked"},
        "unmasked": {"masked": False},
    }
    if device.type == "cuda":
        changes["images on the host"] = {"images_on": "host"}
    found = {way: replace(usual, execution=way) for way in ways}
    found |= {f"{usual.execution} + {name}": replace(usual, **change) for name, change in changes.items()}
    found["compile + batch 512"] = Variant(execution="compile", batch_size=512)
    return found


@dataclass
class Bench:
    """Networks and pictures on one device."""

    device: torch.device
    n_images: int

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        pixels = torch.randint(0, 256, (self.n_images, 3, 32, 32), dtype=torch.uint8)
        self.split = ImageSplit(pixels, torch.randint(10, (self.n_images,)))
        self.teacher = sc.build_model("resnet56", num_classes=10, in_channels=3).to(self.device).eval()

    def loader(self, variant: Variant) -> ImageLoader:
        """Augmented batches, as in training on CIFAR-10."""
        made = ImageLoader(
            self.split,
            batch_size=variant.batch_size,
            mean=(0.5, 0.5, 0.5),
            std=(0.25, 0.25, 0.25),
            augmentation=Augmentation(4, flip=True),
            shuffle=True,
        )
        return made.to(self.device) if variant.images_on == "device" else made

    def training(self, variant: Variant, n_epochs: int) -> Iterator[Epoch]:
        """A training that has not begun."""
        torch.manual_seed(1)
        student = sc.build_model("resnet20", num_classes=10, in_channels=3).to(self.device)
        masks = sc.cut(student, None, sc.Magnitude(), sparsity=0.9) if variant.masked else None
        recipe = sc.Recovery(
            epochs=n_epochs,
            lr=0.01,
            kd_weight=0.0 if variant.teacher == "none" else 0.7,
            precision=variant.precision,  # type: ignore[arg-type]
            channels_last=variant.channels_last,
            teacher_views=1 if variant.teacher == "remembered" else 0,
        )
        way: Any = variant.execution
        return fit(student, self.loader(variant), recipe, masks=masks, teacher=self.teacher, execution=way)

    def measure(self, variant: Variant, n_epochs: int) -> dict[str, Any]:
        """Images a second after the first epoch, which is told apart: it warms up, compiles and records."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", sc.SecateurWarning)
            seconds = [epoch.seconds for epoch in self.training(variant, n_epochs + 1)]
        typical = statistics.median(seconds[1:])
        return {
            "images_per_s": self.n_images / typical,
            "step_s": typical / -(-self.n_images // variant.batch_size),
            "first_epoch_s": seconds[0],
            "epochs_s": seconds[1:],
            "warnings": [str(w.message) for w in caught if issubclass(w.category, sc.SecateurWarning)],
        }

    def parts(self, n_rounds: int) -> dict[str, float]:
        """Images a second of what stands beside the steps: making batches, the teacher's pass, evaluation."""
        loader = self.loader(Variant())
        student = sc.build_model("resnet20", num_classes=10, in_channels=3).to(self.device)
        autocast = torch.autocast(
            self.device.type, torch.bfloat16, enabled=resolve_precision("auto", self.device) == "bf16"
        )

        def batches() -> list[IndexedBatch]:
            return list(loader.epoch(0))

        def teacher() -> None:
            first = next(loader.epoch(0))
            with autocast:
                TeacherLogits(self.teacher, loader)(first)

        def evaluation() -> None:
            with autocast:
                evaluate(student, loader)

        return {
            work.__name__: self.n_images / self._seconds(work, n_rounds)
            for work in (batches, teacher, evaluation)
        }

    def _seconds(self, work: Callable[[], object], n_rounds: int) -> float:
        """Median of several runs, after one that does not count."""
        times = []
        for _ in range(n_rounds + 1):
            started = time.perf_counter()
            work()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            times.append(time.perf_counter() - started)
        return statistics.median(times[1:])


def work(bench: Bench, variant: Variant, n_epochs: int) -> None:
    """One of several processes: get ready, wait for the word, train, say how long it took."""
    epochs = bench.training(variant, n_epochs + 1)
    next(epochs)
    print("ready", flush=True)
    sys.stdin.readline()
    started = time.perf_counter()
    for _ in epochs:
        pass
    print(time.perf_counter() - started, flush=True)


def at_once(n: int, options: argparse.Namespace, variant: Variant) -> dict[str, Any]:
    """`n` processes that train at the same time; images a second of all together."""
    threads = max(1, len(os.sched_getaffinity(0)) // n)
    command = [sys.executable, __file__, "--worker", json.dumps(asdict(variant)), "--threads", str(threads)]
    command += ["--device", options.device, "--images", str(options.images), "--epochs", str(options.epochs)]
    environment = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_NUM_THREADS": str(threads)}
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(n)
    ]
    lines: list[str] = []
    try:
        for round_ in ("ready", "seconds"):
            lines = [worker.stdout.readline().strip() for worker in workers if worker.stdout]
            if not all(lines):
                return {"processes": n, "images_per_s": None, "failed_before": round_}
            if round_ == "ready":
                for worker in workers:
                    print("go", file=worker.stdin, flush=True)
    finally:
        for worker in workers:
            worker.terminate()
            worker.wait()
    slowest = max(map(float, lines))
    return {"processes": n, "images_per_s": n * options.epochs * options.images / slowest, "threads": threads}


def main() -> None:
    """Measure what was asked for, and write it down after each part."""
    options = arguments()
    device = torch.device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    bench = Bench(device, options.images)
    if options.worker:
        work(bench, Variant(**json.loads(options.worker)), options.epochs)
        return
    chosen = {
        name: variant
        for name, variant in variants(device).items()
        if not options.only or name in options.only.split(",")
    }
    content: dict[str, Any] = {
        "model": "resnet20",
        "teacher": "resnet56",
        "images": options.images,
        "epochs": options.epochs,
        "mps": "CUDA_MPS_PIPE_DIRECTORY" in os.environ,
        "variants": [],
        "processes": [],
    }
    for name, variant in chosen.items():
        print(f"{name} …", file=sys.stderr)
        content["variants"].append(
            {"name": name, **asdict(variant), **bench.measure(variant, options.epochs)}
        )
    content["parts_images_per_s"] = bench.parts(options.epochs)
    del bench
    if device.type == "cuda":
        torch.cuda.empty_cache()
    for n in map(int, filter(None, options.processes.split(","))):
        for way in options.execution.split(","):
            print(f"{n} processes, {way} …", file=sys.stderr)
            found = at_once(n, options, Variant(execution=way))
            content["processes"].append({"execution": way, **found})
    rows = [*content["variants"], *content["processes"]]
    fastest = max((row["images_per_s"] or 0 for row in rows if row.get("batch_size", 128) == 128), default=0)
    n_images = SUITE["cells"] * SUITE["epochs"] * SUITE["images"]
    content["suite"] = {**SUITE, "minutes_of_steps": n_images / fastest / 60 if fastest else None}
    write_result(f"train_loop_{device.type}", content, device=options.device)


def arguments() -> argparse.Namespace:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cuda = torch.cuda.is_available()
    made.add_argument("--device", default="cuda" if cuda else "cpu", help="cpu, cuda or cuda:N")
    made.add_argument("--images", type=int, default=12_800 if cuda else 2_560, help="pictures an epoch")
    made.add_argument("--epochs", type=int, default=4, help="timed epochs; the median counts")
    made.add_argument("--only", default="", help="names of variants, comma-separated; default all")
    made.add_argument("--processes", default="1,2,4,8" if cuda else "1,2", help="numbers; empty for none")
    made.add_argument("--execution", default="graph,compile" if cuda else "eager", help="of the processes")
    made.add_argument("--threads", type=int, default=0, help="of this process; default PyTorch's")
    made.add_argument("--worker", default="", help=argparse.SUPPRESS)
    return made.parse_args()


if __name__ == "__main__":
    main()
