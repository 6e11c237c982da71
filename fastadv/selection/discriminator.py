"""The language discriminator on text that it was not trained on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class DiscriminatorScores(NamedTuple):
    """Accuracy, and L_D as the paper sums it over the two sides (Algorithm 1, line 11)."""

    accuracy: float
    loss: float


def discriminator_scores(others: ArrayLike, english: ArrayLike) -> DiscriminatorScores:
    """How well logits w_D · h̄ + b_D tell English from the rest.

    Each side counts as much as the other, however many texts it has; so a discriminator that has
    one answer for all is right on half. Where it only guesses, L_D is 2 ln 2 = 1.386.

    Args:
        others: (N,) logits of p(E = 1 | x) of texts that are not English.
        english: (M,) those of English ones.

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
    loss = np.logaddexp(0, sides[0]).mean() + np.logaddexp(0, -sides[1]).mean()
    return DiscriminatorScores(sum(right) / 2, float(loss))
