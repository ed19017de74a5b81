"""What is known about the data sets that have a name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from secateur.data.loader import Augmentation

# Public CIFAR checkpoints and nearly all networks pretrained on ImageNet expect these two, and
# training from scratch does not care, so they serve every RGB data set.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class DatasetSpec:
    """What is known about a data set before it is read. None means: look at the files.

    Attributes:
        hub_id: Name on the Hugging Face hub.
        image_column: Column of the images in its tables.
        label_column: Column of the labels in its tables.
        n_classes: Number of classes.
        channels: 1 (grey) or 3 (RGB).
        size: Height and width in pixels.
        mean: Of the pixels in [0, 1], by channel.
        std: Likewise.
        augmentation: For training.
        classes: Names of the classes in the order of their labels; empty if not known.
    """

    hub_id: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    n_classes: int | None = None
    channels: int | None = None
    size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    augmentation: Augmentation | None = None
    classes: tuple[str, ...] = ()


CATALOG: Mapping[str, DatasetSpec] = {
    "digits": DatasetSpec(
        n_classes=10,
        channels=1,
        size=8,
        mean=(0.5,),
        std=(0.5,),
        # Moving 8-pixel digits by one pixel raised the validation loss in every setting tried.
        augmentation=Augmentation(crop_padding=0, flip=False),
        classes=tuple("0123456789"),
    ),
    "cifar10": DatasetSpec(
        hub_id="uoft-cs/cifar10",
        image_column="img",
        label_column="label",
        n_classes=10,
        channels=3,
        size=32,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        augmentation=Augmentation(crop_padding=4, flip=True),
        classes=(
            "airplane",
            "automobile",
            "bird",
            "cat",
            "deer",
            "dog",
            "frog",
            "horse",
            "ship",
            "truck",
        ),
    ),
    "cifar100": DatasetSpec(
        hub_id="uoft-cs/cifar100",
        image_column="img",
        label_column="fine_label",
        n_classes=100,
        channels=3,
        size=32,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        augmentation=Augmentation(crop_padding=4, flip=True),
    ),
    "tiny-imagenet": DatasetSpec(
        hub_id="zh-plus/tiny-imagenet",
        image_column="image",
        label_column="label",
        n_classes=200,
        channels=3,
        size=64,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        augmentation=Augmentation(crop_padding=8, flip=True),
    ),
    "fashion-mnist": DatasetSpec(
        hub_id="zalando-datasets/fashion_mnist",
        image_column="image",
        label_column="label",
        n_classes=10,
        channels=1,
        size=28,
        mean=(0.2860,),
        std=(0.3530,),
        augmentation=Augmentation(crop_padding=2, flip=True),
        classes=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
    ),
}
"""Data sets by name."""
