"""What every criterion over predictions expects of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Matrix = NDArray[np.float64]

_TOLERANCE = 1e-3
"""By how much a row may miss a sum of 1: float32 over some hundred classes misses by less."""


def checked(probabilities: ArrayLike) -> Matrix:
    """As (N, K) float64.

    Raises:
        ValueError: Not two-dimensional, empty, or a row that is no distribution.
    """
    rows = np.asarray(probabilities, np.float64)
    if rows.ndim != 2 or not rows.size:
        raise ValueError(
            f"found probabilities of shape {rows.shape}, expected (N, K) with N and K at least 1"
        )
    # Written so that NaN, which no comparison holds for, is caught as well.
    good = (rows >= 0).all(axis=1) & (abs(rows.sum(axis=1) - 1) <= _TOLERANCE)
    if not good.all():
        number = int(good.argmin())
        raise ValueError(
            f"row {number} of the probabilities: found {rows[number].tolist()}, expected numbers "
            "of at least 0 that sum to 1"
        )
    return rows
