"""Data sets by name, folder or factory, as batches that depend on nothing but seed and epoch."""

from __future__ import annotations

from secateur.data.catalog import CATALOG, DatasetSpec
from secateur.data.images import ImageSplit
from secateur.data.load import load_data
from secateur.data.loader import Augmentation, ImageLoader
from secateur.data.options import Data, DataOptions
from secateur.data.records import Progress

__all__ = [
    "CATALOG",
    "Augmentation",
    "Data",
    "DataOptions",
    "DatasetSpec",
    "ImageLoader",
    "ImageSplit",
    "Progress",
    "load_data",
]
