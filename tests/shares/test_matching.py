"""Constants that match predictions to class shares."""

from __future__ import annotations

import numpy as np
import pytest

from fastadv.shares.matching import matching_constants, with_constants


def softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


def predictions(rows: int = 400, classes: int = 4, seed: int = 0, scale: float = 3.0) -> np.ndarray:
    return softmax(scale * np.random.default_rng(seed).normal(size=(rows, classes)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shares", [[0.25] * 4, [0.7, 0.1, 0.1, 0.1], [0.01, 0.01, 0.49, 0.49]])
def test_the_mean_prediction_becomes_the_shares(shares: list[float], dtype: type) -> None:
    rows = predictions().astype(dtype)
    constants = matching_constants(rows, shares)
    assert constants.dtype == np.float64 and abs(constants.mean()) < 1e-12
    np.testing.assert_allclose(with_constants(rows, constants).mean(axis=0), shares, atol=1e-4)


def test_constants_are_added_to_logits() -> None:
    logits, constants = np.random.default_rng(1).normal(size=(7, 3)), np.array([0.3, -2.0, 1.7])
    expected = softmax(logits + constants)
    np.testing.assert_allclose(with_constants(softmax(logits), constants), expected, rtol=1e-12)
    np.testing.assert_allclose(with_constants(softmax(logits[0]), constants), expected[0])


def test_the_shares_of_right_predictions_are_recovered() -> None:
    """Where the model is right but for the shares it learned, matched predictions are Bayes's."""
    draw = np.random.default_rng(2)
    means, trained, true = np.array([[0.0, 0], [2, 0], [0, 2]]), [0.6, 0.3, 0.1], [0.2, 0.2, 0.6]
    gold = draw.choice(3, size=6000, p=true)
    points = means[gold] + draw.normal(size=(6000, 2))
    likelihoods = -((points[:, None] - means) ** 2).sum(axis=2) / 2
    model, best = softmax(likelihoods + np.log(trained)), softmax(likelihoods + np.log(true))
    matched = with_constants(model, matching_constants(model, true))
    assert np.abs(matched - best).mean() < 0.01 < np.abs(model - best).mean()
    right = [float((p.argmax(axis=1) == gold).mean()) for p in (model, matched, best)]
    assert right[0] + 0.05 < right[1] and abs(right[1] - right[2]) < 0.005


def test_a_class_without_share_is_not_predicted() -> None:
    rows = predictions()
    matched = with_constants(rows, matching_constants(rows, [0.5, 0.5, 0.0, 0.0]))
    assert np.isfinite(matched).all() and not np.isin(matched.argmax(axis=1), (2, 3)).any()


def test_certain_predictions_keep_their_class() -> None:
    """No constant turns a probability of 0 into another; it ends all the same."""
    constants = matching_constants(np.eye(3)[[0, 0, 1, 2]], [0.2, 0.4, 0.4])
    assert np.isfinite(constants).all()
    matched = with_constants(np.eye(3), constants)
    np.testing.assert_allclose(matched, np.eye(3))


def test_a_word_that_was_not_seen_stays_unseen() -> None:
    rows = np.array([[0.5, 0.5], [np.nan, np.nan]])
    found = with_constants(rows, np.array([1.0, -1.0]))
    assert np.isnan(found[1]).all() and not np.isnan(found[0]).any()


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ([0.5, 0.5, 0.5], "found class shares that sum to 1.5, expected 1"),
        ([0.5, 0.5], "expected 3 numbers >= 0"),
        ([1.5, -0.5, 0.0], "expected 3 numbers >= 0"),
        ([float("nan"), 0.5, 0.5], "expected 3 numbers >= 0"),
    ],
)
def test_what_are_no_shares_is_refused(shares: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        matching_constants(predictions(classes=3), shares)


def test_no_text_is_refused() -> None:
    with pytest.raises(ValueError, match="found no text to match predictions on"):
        matching_constants(np.zeros((0, 2)), [0.5, 0.5])
