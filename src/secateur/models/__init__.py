"""Models by name: built in, a user's own factory, or timm's."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any, Protocol

from torch import nn

from secateur.errors import MissingExtra, ModelError
from secateur.factories import call_factory
from secateur.models.cnn import separable_cnn, small_cnn, wide_cnn
from secateur.models.resnet import resnet18, resnet20, resnet32, resnet34, resnet44, resnet50, resnet56
from secateur.models.vgg import vgg16_bn
from secateur.models.vit import small_vit
from secateur.models.weights import load_weights
from secateur.models.widths import widest_within

__all__ = ["MODELS", "ModelFactory", "build_model", "load_weights", "widest_within"]


class ModelFactory(Protocol):
    """What a built-in name stands for: a model from images (B, C, H, W), H and W ≥ 8, to logits."""

    def __call__(self, *, num_classes: int = ..., in_channels: int = ..., width: float = ...) -> nn.Module:
        """The untrained model; torch's global generator decides its weights."""
        ...


MODELS: Mapping[str, ModelFactory] = {
    "small-cnn": small_cnn,
    "wide-cnn": wide_cnn,
    "separable-cnn": separable_cnn,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet44": resnet44,
    "resnet56": resnet56,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "vgg16-bn": vgg16_bn,
    "small-vit": small_vit,
}
"""Built-in models by name."""


def build_model(spec: str, *, num_classes: int, in_channels: int, width: float = 1.0) -> nn.Module:
    """An untrained model by name. Seed torch before the call to fix its weights.

    Args:
        spec: A name in `MODELS`, ``timm:NAME``, or ``pkg.mod:factory``; a factory is called with
            those of `num_classes`, `in_channels` and `width` that it accepts.
        num_classes: Outputs, ≥ 1.
        in_channels: Channels of the images, ≥ 1.
        width: What the numbers of channels are multiplied by, > 0; not for ``timm:``.

    Raises:
        ModelError: if there is no such model, or a factory returns something else.
        MissingExtra: if ``timm:`` is asked for and timm is not installed.
    """
    if num_classes < 1 or in_channels < 1:
        raise ModelError(
            f"num_classes and in_channels must be at least 1, got {num_classes} and {in_channels}."
        )
    if spec in MODELS:
        return MODELS[spec](num_classes=num_classes, in_channels=in_channels, width=width)
    if spec.startswith("timm:"):
        if width != 1.0:
            raise ModelError(f"{spec!r} comes in one width only; give a factory with a `width` argument.")
        return _build_timm(spec, num_classes=num_classes, in_channels=in_channels)
    if ":" not in spec:
        raise ModelError(
            f"unknown model {spec!r}.{_did_you_mean(spec.lower(), list(MODELS))} "
            f"Built in: {', '.join(MODELS)}. Or give 'timm:NAME' or 'pkg.mod:factory'."
        )
    offered: dict[str, object] = {"num_classes": num_classes, "in_channels": in_channels}
    if width != 1.0:
        offered["width"] = width
    model = call_factory(spec, offered, kind="model")
    if not isinstance(model, nn.Module):
        what = type(model).__name__
        raise ModelError(f"model factory {spec!r} returned an object of type {what}, not a torch.nn.Module.")
    return model


def _build_timm(spec: str, *, num_classes: int, in_channels: int) -> nn.Module:
    try:
        timm: Any = importlib.import_module("timm")
    except (ImportError, RuntimeError) as cause:  # RuntimeError: a torchvision built for another torch
        raise MissingExtra(
            f"model {spec!r} needs timm, which cannot be imported ({cause}). Run: pip install timm"
        ) from cause
    name = spec.removeprefix("timm:")
    known: list[str] = timm.list_models()
    if name.partition(".")[0] not in known:
        raise ModelError(f"timm has no model {name!r}.{_did_you_mean(name, known)}")
    return timm.create_model(name, num_classes=num_classes, in_chans=in_channels)


def _did_you_mean(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3)
    return f" Did you mean {' or '.join(close)}?" if close else ""
