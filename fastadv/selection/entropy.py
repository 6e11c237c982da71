"""Entropy of predictions on unlabelled text, and the mutual information of text and prediction."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from fastadv.selection.probabilities import Matrix, checked


def mean_entropy(probabilities: ArrayLike) -> float:
    """How unsure a model is: the mean over N texts or words of H(p(Y | x)), in nats.

    Low entropy as a sign of a border between classes that avoids dense regions: Grandvalet and
    Bengio, "Semi-supervised Learning by Entropy Minimization", NeurIPS 2004. As a
    criterion for a step it is blind to a model that calls everything by one name.

    Args:
        probabilities: (N, K), rows of p(Y | x).

    Returns:
        From 0 to ln K.

    Raises:
        ValueError: `probabilities` are none (see `probabilities.checked`).
    """
    return float(_entropies(checked(probabilities)).mean())


def mutual_information(probabilities: ArrayLike) -> float:
    """Information maximisation: H(mean of p(Y | x)) - mean of H(p(Y | x)), in nats.

    Large where each prediction is sure and all classes are predicted: Krause, Perona and Gomes,
    "Discriminative Clustering by Regularized Information Maximization", NeurIPS 2010;
    over a target domain Shi and Sha, "Information-Theoretical Learning of Discriminative Clusters
    for Unsupervised Domain Adaptation", ICML 2012.

    Args:
        probabilities: (N, K), rows of p(Y | x).

    Returns:
        From 0 to ln K.

    Raises:
        ValueError: `probabilities` are none (see `probabilities.checked`).
    """
    rows = checked(probabilities)
    marginal = rows.mean(axis=0, keepdims=True)
    return float(_entropies(marginal)[0] - _entropies(rows).mean())


def _entropies(rows: Matrix) -> Matrix:
    """(N,): -sum of p ln p, where 0 ln 0 is 0."""
    logs = np.log(rows, out=np.zeros_like(rows), where=rows > 0)
    result: Matrix = -(rows * logs).sum(axis=1)
    return result
