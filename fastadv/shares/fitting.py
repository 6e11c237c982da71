"""Constants of the classes fitted to a few labelled texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax

Floats = NDArray[np.float64]

SPREAD = 1.0
"""The standard deviation that is expected of a constant, in units of a logit: odds change by e."""
_SMALLEST = 1e-30


def fitted_constants(
    probabilities: NDArray[np.floating], classes: Sequence[int] | NDArray[np.integer]
) -> Floats:
    """The constants, added to the logits, under which labelled texts are likeliest.

    Maximum a posteriori under a normal prior of spread `SPREAD` around 0: logistic regression of
    the biases alone, as in the "bias-only" calibration of Alexandari, Kundaje and Shrikumar,
    "Maximum Likelihood with Bias-Corrected Calibration", ICML 2020. It uses what the model says of
    each text, and so leaves less error than a count of their classes.

    Args:
        probabilities: (N, G), p(Y | x) of labelled texts.
        classes: (N,) their classes.

    Returns:
        (G,) float64.

    Raises:
        ValueError: There is no text.
    """
    logits = np.log(np.maximum(np.asarray(probabilities, np.float64), _SMALLEST))
    gold = np.asarray(classes, np.int64)
    if not len(gold):
        raise ValueError("found no labelled text to fit constants to, expected some")
    counts = np.bincount(gold, minlength=logits.shape[1])

    def loss(constants: Floats) -> tuple[float, Floats]:
        logs = log_softmax(logits + constants, axis=1)
        value = -logs[np.arange(len(gold)), gold].sum() + (constants**2).sum() / (2 * SPREAD**2)
        slope = np.exp(logs).sum(axis=0) - counts + constants / SPREAD**2
        return float(value), slope

    found: Floats = minimize(loss, np.zeros(logits.shape[1]), jac=True, method="L-BFGS-B").x
    return found
