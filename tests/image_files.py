"""Tiny data sets on disk, in each of the forms that secateur reads."""

import gzip
import io
import json

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

from secateur.data import DataOptions, load_data

SIDE = 28


def numbered(number, channels=0, side=SIDE):
    """An image that says its number in every pixel, so that it can be told which images went where."""
    shape = (side, side, channels) if channels else (side, side)
    return np.full(shape, number, np.uint8)


def numbers_in(loader):
    """The numbers of the images in a loader that neither augments nor changes them."""
    return [round(float(image.mean()) * 255) for inputs, _ in loader for image in inputs]


def png(pixels):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def write_table(path, numbers, *, image="image", label="label", labels=None, names=None, side=SIDE, more=()):
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [n if isinstance(n, bytes) else png(numbered(n, side=side)) for n in numbers]
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    values = labels if labels is not None else [i % 10 for i in range(len(numbers))]
    columns = {
        image: pa.array([{"bytes": c, "path": None} for c in cells], struct),
        label: pa.array(values, pa.int64()),
        **{name: pa.array([0] * len(numbers), pa.int64()) for name in more},
    }
    table = pa.table(columns)
    if names is not None:
        features = {image: {"_type": "Image"}, label: {"_type": "ClassLabel", "names": names}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, path)


def write_folder(root, split, images, *, suffix=".png"):
    for name, pictures in images.items():
        (root / split / name).mkdir(parents=True)
        for i, pixels in enumerate(pictures):
            Image.fromarray(pixels).save(root / split / name / f"{i}{suffix}")


def write_idx(path, array, *, cut=0):
    header = bytes((0, 0, 8, array.ndim)) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    data = header + array.tobytes()
    data = data[: len(data) - cut]
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def load(name, folder, *, seed=0, progress=None, **options):
    folder = None if folder is None else str(folder)
    return load_data(DataOptions(data=name, data_dir=folder, **options), seed=seed, progress=progress)


def load_plain(name, folder, **options):
    return load(name, folder, augment=False, mean=(0.0,), std=(1.0,), **options)
