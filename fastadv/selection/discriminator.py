"""The language discriminator on text that it was not trained on."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class DiscriminatorScores(NamedTuple):
    """Accuracy, and L_D as the paper sums it over the two sides (Algorithm 1, line 11)."""

    accuracy: float
    loss: float


def discriminator_scores(
    others: ArrayLike, english: ArrayLike, relaxation: float = 0.0
) -> DiscriminatorScores:
    """How well logits w_D · h̄ + b_D tell English from the rest.

    Each side counts as much as the other, however many texts it has; so a discriminator that has
    one answer for all is right on half. Where it only guesses, L_D is 2 ln 2 = 1.386, and with
    relaxation β at its least ln((2 + β)² / (1 + β)).

    Args:
        others: (N,) logits of p(E = 1 | x) of texts that are not English.
        english: (M,) those of English ones.
        relaxation: With which the discriminator was trained (`FinetuneConfig.relaxation`).

    Raises:
        ValueError: A side is empty, or a logit is NaN.
    """
    sides = np.asarray(others, np.float64).ravel(), np.asarray(english, np.float64).ravel()
    for name, logits in zip(("other", "English"), sides, strict=True):
        if not logits.size or np.isnan(logits).any():
            raise ValueError(
                f"found {logits.size} logits of {name} texts, {int(np.isnan(logits).sum())} of "
                "them NaN, expected at least one, and numbers"
            )
    # As in the trainer: English where the logit is above 0.
    right = float((sides[0] <= 0).mean()), float((sides[1] > 0).mean())
    log_odds = sides
    if relaxation:
        # Of p = σ(z) / (2 + β): (1 - p) / p = 1 + β + (2 + β) e^-z.
        least, most = math.log1p(relaxation), math.log(2 + relaxation)
        log_odds = -np.logaddexp(least, most - sides[0]), -np.logaddexp(least, most - sides[1])
    loss = np.logaddexp(0, log_odds[0]).mean() + np.logaddexp(0, -log_odds[1]).mean()
    return DiscriminatorScores(sum(right) / 2, float(loss))
