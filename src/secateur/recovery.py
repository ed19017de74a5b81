"""How a network is trained after a cut: the recipe, and what it comes down to on a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from secateur.counts import check_fraction, check_number, check_whole
from secateur.errors import InvalidArgument
from secateur.losses import Distance, KDKind, distillation
from secateur.schedules import cosine_with_warmup


@dataclass(frozen=True)
class Recovery:
    """How a network is trained after the cut (or, with ``kd_weight=0``, from scratch).

    SGD with Nesterov momentum, linear warm-up and a cosine to zero from the *original* peak rate:
    rewinding the learning rate beats fine-tuning at a low one (https://arxiv.org/abs/2003.02389).
    The loss is ``(1 − kd_weight)·task + kd_weight·KD``.
    """

    epochs: int = 40
    """Passes over the training split; 0 skips training."""
    kd_weight: float = 0.7
    """Weight of the teacher's loss in [0, 1]; 0 trains on labels alone and needs no teacher."""
    temperature: float = 4.0
    """Temperature T > 0 of the teacher's loss on logits."""
    kd: KDKind = "forward"
    """The teacher's loss: forward, reverse or ca-kld on logits (`kd_loss`), or mse or cosine on others."""
    beta: float = 0.5
    """Weight of the reverse divergence in ca-kld, in [0, 1]."""
    standardize: bool = False
    """Standardise each sample's logits before the softmax, as the authors of arXiv 2511.16653 do."""
    lr: float = 0.1
    """Peak learning rate."""
    momentum: float = 0.9
    """Nesterov momentum in [0, 1)."""
    weight_decay: float = 5e-4
    """L2 penalty on all parameters."""
    warmup: float = 0.1
    """Fraction of the steps over which the learning rate rises, in [0, 1)."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the forward and backward pass; auto takes bf16 where the hardware has it, but fp32 for
    outputs that are no logits (mse and cosine)."""
    channels_last: bool = True
    """Lay images out channels-last, which convolutions prefer, where the networks can take it."""
    teacher_views: int = 0
    """Augmented views of the data to cycle through, so that the teacher's logits are computed once
    a view and then remembered; 0 = a new view and a teacher pass every epoch."""

    def __post_init__(self) -> None:
        check_fraction("kd_weight", self.kd_weight)
        distillation(self)
        check_fraction("momentum", self.momentum, below_one=True)
        check_fraction("warmup", self.warmup, below_one=True)
        for name, value in (("lr", self.lr), ("weight_decay", self.weight_decay)):
            check_number(name, value)
        for name, count in (("epochs", self.epochs), ("teacher_views", self.teacher_views)):
            check_whole(name, count, least=0)
        if self.precision not in ("auto", "fp32", "bf16"):
            raise InvalidArgument(f"precision must be auto, fp32 or bf16, got {self.precision!r}.")


def resolve_precision(precision: str, device: torch.device) -> Literal["fp32", "bf16"]:
    """bf16 or fp32: what ``auto`` means on `device`, the others unchanged."""
    if precision == "bf16" or (precision == "auto" and _has_fast_bf16(device)):
        return "bf16"
    return "fp32"


class _Recipe(Distance, Protocol):
    """A recipe that says how far student and teacher are apart, and how precisely both compute."""

    @property
    def precision(self) -> str: ...


def autocast_for(recipe: _Recipe, device: torch.device) -> torch.autocast:
    """The context of a recipe's forward passes, which does nothing for fp32.

    Of logits the largest counts, and differences of a few; other outputs may be large and differ little,
    which the 8 bits of bf16 cannot hold. So for these auto is fp32.
    """
    exact = recipe.precision == "auto" and recipe.kd in ("mse", "cosine")
    bf16 = not exact and resolve_precision(recipe.precision, device) == "bf16"
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


def _has_fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else ""
    return "AVX512" in capabilities and torch.cpu._is_avx512_bf16_supported()  # pyright: ignore[reportPrivateUsage]


def learning_rate(recipe: Recovery, step: int, steps_per_epoch: int) -> float:
    """Learning rate of a step, taken at its middle so that neither the first nor the last is 0."""
    progress = (step + 0.5) / (steps_per_epoch * recipe.epochs)
    return recipe.lr * cosine_with_warmup(progress, warmup=recipe.warmup)
