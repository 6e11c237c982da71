"""Soft neighbourhood density of predictions on unlabelled text."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from fastadv.selection.probabilities import checked

TEMPERATURE = 0.05
"""The authors' own, in their experiments."""
_ROWS = 512
"""Rows of similarities held at a time."""


def soft_neighborhood_density(probabilities: ArrayLike, temperature: float = TEMPERATURE) -> float:
    """How many neighbours a text has on average, as the entropy of its similarity to the others.

    Saito, Kim, Teterwak, Sclaroff, Darrell and Saenko, "Tune it the Right Way: Unsupervised
    Validation of Domain Adaptation via Soft Neighborhood Density", ICCV 2021:
    predictions of length 1, their products over a temperature, each with itself left out, a
    softmax, and the mean entropy. A model that separates classes well puts a text among many that
    are predicted alike; so does one that predicts one class for all, which the authors warn of.

    Args:
        probabilities: (N, K), rows of p(Y | x); N at least 2. Time and not memory grows with N².
        temperature: Above 0.

    Returns:
        From 0 to ln(N - 1), in nats; comparable over models for the same texts.

    Raises:
        ValueError: `probabilities` are none (see `probabilities.checked`), N is 1, or the
            temperature is not above 0.
    """
    rows = checked(probabilities)
    if len(rows) < 2:
        raise ValueError("found one row of probabilities, expected at least two neighbours")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature!r}, expected a number above 0")
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    total = 0.0
    for start in range(0, len(units), _ROWS):
        similarity = units[start : start + _ROWS] @ units.T / temperature
        own = np.arange(len(similarity)), np.arange(start, start + len(similarity))
        similarity[own] = -np.inf
        similarity -= similarity.max(axis=1, keepdims=True)
        weights = np.exp(similarity)
        sums = weights.sum(axis=1)
        # H = ln Z - E[s]; s of the text itself is -inf and has weight 0.
        similarity[own] = 0
        total += float((np.log(sums) - (weights * similarity).sum(axis=1) / sums).sum())
    return total / len(units)
