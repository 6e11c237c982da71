"""Batch nuclear norm of predictions on unlabelled text."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from fastadv.selection.probabilities import checked


def batch_nuclear_norm(probabilities: ArrayLike) -> float:
    """The sum of the singular values of the matrix of predictions, over its greatest value.

    Large where predictions are sure (its Frobenius norm) and of many classes (its rank): Cui,
    Wang, Zhuo, Li, Huang and Tian, "Towards Discriminability and Diversity: Batch Nuclear-norm
    Maximization under Label Insufficient Situations", CVPR 2020. For N rows and
    K columns the norm is sqrt(N min(N, K)) at most, which it is divided by so that sets of
    different sizes compare.

    Args:
        probabilities: (N, K), rows of p(Y | x).

    Returns:
        Above 0, 1 at most.

    Raises:
        ValueError: `probabilities` are none (see `probabilities.checked`).
    """
    rows = checked(probabilities)
    # Of the smaller of the two Gram matrices: N may be tens of thousands of words.
    gram = rows.T @ rows if len(rows) > rows.shape[1] else rows @ rows.T
    squares = np.linalg.eigvalsh(gram)
    norm = np.sqrt(np.clip(squares, 0, None)).sum()
    return float(norm / np.sqrt(len(rows) * min(rows.shape)))
