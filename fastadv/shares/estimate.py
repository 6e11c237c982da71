"""Class shares of a language without labels, from a model's predictions on its text.

The estimate asks which mixture of English classes would have given the mean prediction that is
seen: Lipton, Wang and Smola, "Detecting and Correcting for Label Shift with Black Box Predictors",
ICML 2018, with the soft confusion matrix and the shrinkage of Azizzadenesheli, Liu, Yang and
Anandkumar, "Regularized Learning for Domain Adaptation under Label Shifts", ICLR 2019.

That holds only where the model confuses classes abroad as it does at home. Where it is less sure of
the other language's texts than of English ones, it does not (the drop in confidence tells the drop
in accuracy: Guillory et al., "Predicting with Confidence on Unseen Distributions", ICCV 2021), and
the estimate gives way to the English shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from fastadv.shares.matching import checked_shares

Floats = NDArray[np.float64]

DROP_TRUSTED, DROP_DISTRUSTED = 0.02, 0.06
"""Drops in confidence up to which an estimate counts in full, and from which on not at all."""
SURE_LEAST, SURE_ENOUGH = 0.1, 0.3
"""Confidence on English dev, 0 for a guess and 1 for certainty, up to which an estimate does not
count, as the task is not learned, and from which on in full.
"""
RESAMPLES = 200
INTERVAL = (5.0, 95.0)
"""Percentiles of the bootstrap's interval."""
_SUM_WEIGHT = 100.0
"""How strongly the mixture is held to sum to 1, beside residuals of at most 1."""


@dataclass(frozen=True)
class Estimate:
    """Estimated class shares of one language.

    Attributes:
        shares: (G,) the estimate, shrunk towards English by what it is not trusted.
        unshrunk: (G,) the same before that.
        low: (G,) the lower end of the bootstrap's 90% interval of `unshrunk`.
        high: (G,) the upper end.
        trust: How much of `unshrunk` is in `shares`, between 0 and 1.
        confidence_drop: How much less sure the model is of this language than of English text with
            the estimated shares: the part that is lost of what is above a guess.
    """

    shares: Floats
    unshrunk: Floats
    low: Floats
    high: Floats
    trust: float
    confidence_drop: float


def estimate_shares(
    dev: NDArray[np.floating],
    classes: NDArray[np.integer],
    target: NDArray[np.floating],
    english: Sequence[float],
    seed: int = 0,
) -> Estimate:
    """Class shares of the language that `target` is in.

    Args:
        dev: (N, G), p(Y | x) of English examples that the model was not trained on.
        classes: (N,) their classes.
        target: (M, G), p(Y | x) of the language's texts.
        english: (G,) shares of the classes in English training data.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: There is no text, or English dev lacks a class.
    """
    rows, others = np.asarray(dev, np.float64), np.asarray(target, np.float64)
    prior = checked_shares(english, rows.shape[1])
    counts = np.bincount(classes, minlength=rows.shape[1])
    if not len(others) or not counts.all():
        raise ValueError(
            f"found {len(others)} texts to estimate class shares on and {counts.tolist()} English "
            "dev examples of the classes, expected some of each"
        )
    unshrunk = _mixture(rows, classes, others.mean(axis=0))
    at_home, abroad = _confidences(rows, classes, others, unshrunk)
    drop = 1 - abroad / max(at_home, 1e-12)
    sample = _bootstrap(rows, classes, others, seed)
    low, high = np.percentile(sample, INTERVAL, axis=0)
    alike = _ramp(drop, DROP_DISTRUSTED, DROP_TRUSTED)
    learned = _ramp(at_home, SURE_LEAST, SURE_ENOUGH)
    # The share of the distance to English that is not the spread of the estimate itself.
    spread = float(((sample - sample.mean(axis=0)) ** 2).sum(axis=1).mean())
    distance = float(((unshrunk - prior) ** 2).sum())
    trust = alike * learned * distance / max(distance + spread, 1e-12)
    shares = trust * unshrunk + (1 - trust) * prior
    return Estimate(shares, unshrunk, low, high, float(trust), float(drop))


def total_variation(first: Sequence[float] | Floats, second: Sequence[float] | Floats) -> float:
    """Half the sum of the absolute differences: the part of the texts that would have to change
    class for one to become the other.
    """
    return float(np.abs(np.asarray(first) - np.asarray(second)).sum() / 2)


def _mixture(rows: Floats, classes: NDArray[np.integer], seen: Floats) -> Floats:
    """q >= 0, sum 1, with the least |C q - seen|^2; column k of C is the mean of class k."""
    size = rows.shape[1]
    confusion = np.stack([rows[classes == k].mean(axis=0) for k in range(size)], axis=1)
    left = np.vstack([confusion, np.full((1, size), _SUM_WEIGHT)])
    found, _ = nnls(left, np.append(seen, _SUM_WEIGHT))
    result: Floats = found / found.sum()
    return result


def _ramp(value: float, nothing: float, all_: float) -> float:
    """0 up to `nothing`, 1 from `all_` on, or the other way round; straight in between."""
    return min(1.0, max(0.0, (value - nothing) / (all_ - nothing)))


def _confidences(
    rows: Floats, classes: NDArray[np.integer], others: Floats, shares: Floats
) -> tuple[float, float]:
    """Mean confidence on English with these shares, and on the others: 0 is a guess, 1 certain."""
    guess = 1 / rows.shape[1]
    sure = rows.max(axis=1)
    by_class = [sure[classes == k].mean() for k in range(rows.shape[1])]
    found = np.array([np.dot(shares, by_class), others.max(axis=1).mean()])
    at_home, abroad = (found - guess) / (1 - guess)
    return float(at_home), float(abroad)


def _bootstrap(rows: Floats, classes: NDArray[np.integer], others: Floats, seed: int) -> Floats:
    """(RESAMPLES, G): the mixture for texts drawn again with replacement, dev within a class."""
    draw = np.random.default_rng(seed)
    members = [np.flatnonzero(classes == k) for k in range(rows.shape[1])]
    found = []
    for _ in range(RESAMPLES):
        chosen = np.concatenate([m[draw.integers(len(m), size=len(m))] for m in members])
        seen = others[draw.integers(len(others), size=len(others))].mean(axis=0)
        found.append(_mixture(rows[chosen], classes[chosen], seen))
    return np.stack(found)
