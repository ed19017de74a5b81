"""How far what one engine gives is from what another one gives."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def largest_difference(found: NDArray[Any], expected: NDArray[Any], *, least: float = 1e-12) -> float:
    """The largest difference of two outputs, relative to the largest number expected.

    Two NaN do not differ, nor do two equal infinities. Dimensions of one do not count.

    Args:
        found: An output.
        expected: What it is compared with.
        least: Expected numbers are taken to be as large as this, if all of them are smaller.

    Returns:
        0 or more; infinite where only one of them is a number, or where they have not as many.
    """
    if found.size != expected.size:
        return float("inf")
    a, b = found.reshape(-1).astype(np.float64), expected.reshape(-1).astype(np.float64)
    with np.errstate(invalid="ignore"):
        apart = np.abs(a - b)
    apart[(a == b) | (np.isnan(a) & np.isnan(b))] = 0
    apart[np.isnan(apart)] = np.inf
    size = np.abs(b[np.isfinite(b)]).max(initial=0)
    return float(apart.max(initial=0) / max(size, least))
