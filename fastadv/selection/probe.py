"""A fresh linear probe: how far languages can be told apart by someone who is not the adversary."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

RIDGE = 1e-2
"""Ridge over the mean variance of a feature: small, and enough where features outnumber texts."""


def probe_accuracy(others: ArrayLike, english: ArrayLike, ridge: float = RIDGE) -> float:
    """Accuracy of a linear classifier of languages, trained afresh on one half of the embeddings.

    A discriminator at chance may have been beaten, or may only lag behind an encoder that it could
    tell apart with other weights. What a classifier makes of the embeddings that was trained after
    them says which. (2 acc - 1 is half the proxy A-distance of Ben-David, Blitzer, Crammer and
    Pereira, "Analysis of Representations for Domain Adaptation", NeurIPS 2006.)

    Least squares on targets of ±1, which is Fisher's discriminant; even indices train and odd
    indices test, then the other way round; each side counts as much as the other.

    Args:
        others: (N, H) embeddings h̄ of texts that are not English, N at least 2.
        english: (M, H) those of English ones, M at least 2.
        ridge: Added to the diagonal of the covariance, as a share of its mean.

    Returns:
        About 0.5 where no language shows, 1 where it always does.

    Raises:
        ValueError: Shapes do not fit, a side has fewer than 2 texts, or a number is not finite.
    """
    sides = np.asarray(others, np.float64), np.asarray(english, np.float64)
    shapes = [side.shape for side in sides]
    fits = all(side.ndim == 2 and len(side) >= 2 for side in sides)
    if not fits or shapes[0][1] != shapes[1][1]:
        raise ValueError(
            f"found embeddings of shapes {shapes[0]} and {shapes[1]}, expected (N, H) and (M, H) "
            "with N and M at least 2"
        )
    if not all(np.isfinite(side).all() for side in sides):
        raise ValueError("found embeddings with NaN or infinity, expected finite numbers")
    right = []
    for train, test in ((0, 1), (1, 0)):
        weight, bias = _fit(sides[0][train::2], sides[1][train::2], ridge)
        right += [
            float((sides[0][test::2] @ weight + bias <= 0).mean()),
            float((sides[1][test::2] @ weight + bias > 0).mean()),
        ]
    return sum(right) / len(right)


def _fit(
    others: NDArray[np.float64], english: NDArray[np.float64], ridge: float
) -> tuple[NDArray[np.float64], float]:
    """Weight (H,) and bias of the border half way between the two means."""
    means = others.mean(axis=0), english.mean(axis=0)
    # Each side's own covariance with equal weight, so that no side outvotes the other.
    scatter = sum(
        (side - mean).T @ (side - mean) / len(side)
        for side, mean in zip((others, english), means, strict=True)
    )
    size = others.shape[1]
    shift = ridge * np.trace(scatter) / size + np.finfo(np.float64).tiny
    weight = np.linalg.solve(scatter + shift * np.eye(size), means[1] - means[0])
    return weight, -float(weight @ (means[0] + means[1])) / 2
