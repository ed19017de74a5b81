"""Sparse checkpoints: one safetensors file that is as small as the network is sparse.

The format is specified in `docs/format.md`.
"""

from secateur.checkpoint.inspection import (
    Check,
    Inspection,
    TensorRow,
    Verification,
    inspect_checkpoint,
    verify_checkpoint,
)
from secateur.checkpoint.loading import SparseCheckpoint, load_sparse
from secateur.checkpoint.metadata import Metadata, SparseLayout
from secateur.checkpoint.saving import save_sparse

__all__ = [
    "Check",
    "Inspection",
    "Metadata",
    "SparseCheckpoint",
    "SparseLayout",
    "TensorRow",
    "Verification",
    "inspect_checkpoint",
    "load_sparse",
    "save_sparse",
    "verify_checkpoint",
]
