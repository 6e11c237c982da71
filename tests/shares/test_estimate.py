"""Class shares without labels: right where they can be known, English where they cannot."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from fastadv.shares.estimate import estimate_shares, total_variation

ENGLISH = [0.4, 0.3, 0.2, 0.1]
MEANS = 2.5 * np.eye(4)


def world(
    shares: list[float], texts: int, seed: int, blur: float = 0.0, sure: float = 2.5
) -> tuple[np.ndarray, np.ndarray]:
    """Predictions on texts with these class shares, and their classes; a blur hides what they are
    about.
    """
    draw = np.random.default_rng(seed)
    gold = draw.choice(4, size=texts, p=shares)
    points = (1 - blur) * MEANS[gold] + draw.normal(size=(texts, 4))
    return softmax(sure * points + np.log(ENGLISH), axis=1), gold


@pytest.mark.parametrize("true", [ENGLISH, [0.1, 0.2, 0.3, 0.4], [0.02, 0.02, 0.48, 0.48]])
def test_shares_are_found_where_texts_are_understood(true: list[float]) -> None:
    dev, classes = world(ENGLISH, 800, 0)
    target, _ = world(true, 500, 1)
    found = estimate_shares(dev, classes, target, ENGLISH)
    assert total_variation(found.shares, true) < 0.06
    assert abs(found.shares.sum() - 1) < 1e-9 and (found.shares >= 0).all()
    # Of twelve ends of 90% intervals one or two may miss.
    misses = (found.low > np.array(true)) | (found.high < np.array(true))
    assert misses.sum() <= 1
    if true != ENGLISH:
        assert found.trust > 0.9
        # The mean prediction alone is further away.
        assert total_variation(target.mean(axis=0), true) > total_variation(found.shares, true)


def test_where_texts_are_not_understood_shares_stay_english() -> None:
    dev, classes = world(ENGLISH, 800, 0)
    target, _ = world([0.1, 0.2, 0.3, 0.4], 500, 1, blur=0.7)
    found = estimate_shares(dev, classes, target, ENGLISH)
    assert found.confidence_drop > 0.1 and found.trust == 0
    np.testing.assert_allclose(found.shares, ENGLISH)


def test_before_the_task_is_learned_shares_stay_english() -> None:
    """Hardly surer than a guess, on English as abroad: no drop, and no knowledge either."""
    dev, classes = world(ENGLISH, 800, 0)
    flat = softmax(0.02 * np.log(dev), axis=1)
    target = softmax(0.02 * np.log(world([0.1, 0.2, 0.3, 0.4], 500, 1)[0]), axis=1)
    found = estimate_shares(flat, classes, target, ENGLISH)
    assert found.confidence_drop < 0.02 and found.trust == 0
    np.testing.assert_allclose(found.shares, ENGLISH)


def test_few_texts_are_trusted_less_than_many() -> None:
    dev, classes = world(ENGLISH, 800, 0)
    true = [0.35, 0.3, 0.22, 0.13]
    few, many = (
        np.mean(
            [
                estimate_shares(dev, classes, world(true, texts, seed)[0], ENGLISH).trust
                for seed in range(5)
            ]
        )
        for texts in (25, 4000)
    )
    assert few < many
    wide, narrow = (
        estimate_shares(dev, classes, world(true, texts, 3)[0], ENGLISH) for texts in (25, 4000)
    )
    assert (wide.high - wide.low).mean() > 2 * (narrow.high - narrow.low).mean()


def test_the_same_seed_gives_the_same_estimate() -> None:
    dev, classes = world(ENGLISH, 100, 0)
    target, _ = world([0.1, 0.2, 0.3, 0.4], 100, 1)
    one, two, other = (estimate_shares(dev, classes, target, ENGLISH, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.shares, two.shares)
    np.testing.assert_array_equal(one.low, two.low)
    assert (one.low != other.low).any()


def test_what_cannot_be_estimated_is_refused() -> None:
    dev, classes = world(ENGLISH, 50, 0)
    with pytest.raises(ValueError, match="found 0 texts to estimate class shares on"):
        estimate_shares(dev, classes, dev[:0], ENGLISH)
    kept = classes != 3
    with pytest.raises(ValueError, match=r"English dev examples of the classes, expected some"):
        estimate_shares(dev[kept], classes[kept], dev, ENGLISH)


def test_total_variation() -> None:
    assert total_variation([1.0, 0.0], [0.0, 1.0]) == 1.0
    assert total_variation([0.5, 0.5], [0.4, 0.6]) == pytest.approx(0.1)
