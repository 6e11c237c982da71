"""Constants fitted to labelled texts."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from fastadv.shares.fitting import fitted_constants

TRUE = np.array([1.0, 0.0, -1.0])


def labelled(texts: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Predictions that are right but for `TRUE`, and classes."""
    draw = np.random.default_rng(seed)
    logits = 2 * draw.normal(size=(texts, 3))
    right = softmax(logits + TRUE, axis=1)
    classes = np.array([draw.choice(3, p=p) for p in right])
    return softmax(logits, axis=1), classes


def test_the_constants_that_are_missing_are_found() -> None:
    found = fitted_constants(*labelled(4000, 0))
    np.testing.assert_allclose(found - found.mean(), TRUE, atol=0.12)


def test_few_texts_move_them_less() -> None:
    few = [np.abs(fitted_constants(*labelled(5, seed))).max() for seed in range(20)]
    many = [np.abs(fitted_constants(*labelled(500, seed))).max() for seed in range(20)]
    assert np.mean(few) < np.mean(many)


def test_one_class_alone_and_certainty_stay_finite() -> None:
    assert np.isfinite(fitted_constants(np.eye(3)[[0, 1]], [2, 2])).all()
    with pytest.raises(ValueError, match="found no labelled text to fit constants to"):
        fitted_constants(np.zeros((0, 3)), [])
