"""Size of a pruned ResNet-20 in each of the ways that docs/format.md compares; global magnitude, no training.

python checkpoint_size.py --weights FOLDER_OF_resnet20-cifar10.safetensors
"""

from __future__ import annotations

import gzip
import lzma
import tempfile
from pathlib import Path

import torch
from common import parser, write_result
from safetensors.torch import save
from torch import nn

import secateur as sc

SPARSITIES = (0.8, 0.9, 0.95)


def sizes(model: nn.Module, masks: sc.Masks, folder: Path) -> dict[str, int]:
    """Bytes of a pruned model by way of storing."""
    dense = save(model.state_dict())
    other = sum(t.nbytes for name, t in model.state_dict().items() if name not in masks)
    shapes = [mask.shape for mask in masks.values()]
    row_pointers = sum(4 * (shape[0] + 1) for shape in shapes)
    row_bitmaps = sum(shape.numel() // shape[-1] * (-(-shape[-1] // 8) + 8) for shape in shapes)
    flat_bitmaps = sum(-(-shape.numel() // 8) for shape in shapes)
    sc.save_sparse(model, folder / "exact", masks=masks)
    sc.save_sparse(model, folder / "narrow", masks=masks, value_dtype=torch.bfloat16)
    return {
        "dense safetensors": len(dense),
        "bitmask a row": other + 4 * masks.n_keep + row_bitmaps,
        "CSR, 32-bit columns": other + 8 * masks.n_keep + row_pointers,
        "CSR, 16-bit columns": other + 6 * masks.n_keep + row_pointers,
        "flat bitmask": other + 4 * masks.n_keep + flat_bitmaps,
        "gzip -9": len(gzip.compress(dense, 9, mtime=0)),
        "xz -9": len(lzma.compress(dense, preset=9)),
        "this format": (folder / "exact").stat().st_size,
        "this format, bf16 values": (folder / "narrow").stat().st_size,
    }


def main() -> None:
    """Measure every way at every sparsity."""
    arguments = parser(__doc__)
    arguments.add_argument("--weights", type=Path, required=True)
    options = arguments.parse_args()
    found: dict[str, dict[str, int]] = {}
    for sparsity in SPARSITIES:
        model = sc.build_model("resnet20", num_classes=10, in_channels=3)
        sc.load_weights(model, options.weights / "resnet20-cifar10.safetensors")
        masks = sc.cut(model, None, sc.Magnitude(), sparsity=sparsity)
        with tempfile.TemporaryDirectory() as folder:
            found[str(sparsity)] = sizes(model, masks, Path(folder))
    ours = found["0.9"]
    write_result(
        "checkpoint_size",
        {
            "model": "resnet20",
            "size_bytes": found,
            "times_smaller_at_90": ours["dense safetensors"] / ours["this format"],
        },
    )


if __name__ == "__main__":
    main()
