"""From operators of torch to operations of a plan: one function for each operator.

A function takes the arguments of the operator under the names of its schema (`self` is `x`), with
activations as `Activation`, weights and other constants as tensors, and returns what the operator
returns. `LOWERINGS` holds them all.
"""

from secateur.runtime.lowering import (
    composed,
    layers,
    logic,
    maths,
    norms,
    places,
    pooling,
    resampling,
    views,
    writes,
)
from secateur.runtime.lowering.base import (
    BATCHES,
    LOWERINGS,
    Activation,
    Lowering,
    Sized,
    Unsupported,
    kept_as,
)

__all__ = [
    "BATCHES",
    "LOWERINGS",
    "Activation",
    "Lowering",
    "Sized",
    "Unsupported",
    "composed",
    "kept_as",
    "layers",
    "logic",
    "maths",
    "norms",
    "places",
    "pooling",
    "resampling",
    "views",
    "writes",
]
