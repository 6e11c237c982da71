"""Predictions matched to class shares: one constant a class, added to its logit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

ROUNDS = 1000
TOLERANCE = 1e-4
"""In the mean prediction of a class; a hundredth of a per cent is less than one text of 10,000."""
LEAST = 1e-6
"""A class of share 0 keeps this much, so that its constant is finite."""
LARGEST = 30.0
"""Of a constant. Predictions of 0 and 1 cannot be matched by any, which would grow for ever."""


def matching_constants(probabilities: NDArray[np.floating], shares: Sequence[float]) -> Floats:
    """Constants that make the mean prediction over unlabelled texts equal given class shares.

    For a model whose predictions are right but for the shares of the classes that it learned them
    with, this is the correction of Saerens, Latinne and Decaestecker, "Adjusting the Outputs of a
    Classifier to New a Priori Probabilities", Neural Computation 2002, for shares that are known.

    Args:
        probabilities: (N, G), p(Y | x) of N texts of one language.
        shares: (G,) shares of the classes, which sum to 1.

    Returns:
        (G,) float64, as good as with mean 0: softmax(log p + constants), in the mean over the
        texts, is within `TOLERANCE` of the shares, unless that takes more than `ROUNDS` rounds or
        a constant larger than `LARGEST`.

    Raises:
        ValueError: There is no text, or the shares are not one number of at least 0 a class.
    """
    rows = np.asarray(probabilities, np.float64)
    wanted = checked_shares(shares, rows.shape[1])
    if not len(rows):
        raise ValueError("found no text to match predictions on, expected some")
    wanted = np.maximum(wanted, LEAST)
    wanted /= wanted.sum()
    constants = np.zeros(len(wanted))
    for _ in range(ROUNDS):
        mean = with_constants(rows, constants).mean(axis=0)
        if np.abs(mean - wanted).max() < TOLERANCE:
            break
        constants += np.log(wanted) - np.log(np.maximum(mean, 1e-300))
        constants = np.clip(constants - constants.mean(), -LARGEST, LARGEST)
    return constants


def with_constants(probabilities: NDArray[np.floating], constants: Floats) -> Floats:
    """softmax(log p + constants) for p (N, K) or (K,) and constants (K,), float64."""
    # Factors of at most 1: a constant of 800 must not overflow.
    raised = np.asarray(probabilities, np.float64) * np.exp(constants - constants.max())
    total = raised.sum(axis=-1, keepdims=True)
    # A row of NaN, a word that the model never saw, stays one.
    return raised / np.maximum(total, 1e-300)


def checked_shares(shares: Sequence[float], classes: int) -> Floats:
    """(G,) float64 that sums to 1.

    Raises:
        ValueError: Not one finite number of at least 0 a class, or a sum further than 1% from 1.
    """
    found = np.asarray(shares, np.float64)
    if found.shape != (classes,) or not np.isfinite(found).all() or (found < 0).any():
        raise ValueError(f"found the class shares {list(shares)}, expected {classes} numbers >= 0")
    if abs(found.sum() - 1) > 0.01:
        raise ValueError(f"found class shares that sum to {found.sum():g}, expected 1")
    result: Floats = found / found.sum()
    return result
