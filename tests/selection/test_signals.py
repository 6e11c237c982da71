"""Each signal on cases whose value is known, and against a second way to compute it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastadv.selection import (
    batch_nuclear_norm,
    discriminator_scores,
    mean_entropy,
    mutual_information,
    probe_accuracy,
    soft_neighborhood_density,
)

OVER_PREDICTIONS = [
    mean_entropy,
    mutual_information,
    batch_nuclear_norm,
    soft_neighborhood_density,
]


def distributions(count: int, classes: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.full(classes, 0.5), size=count)


def one_hot(*classes: int, of: int) -> np.ndarray:
    return np.eye(of)[list(classes)]


def test_entropy_of_sure_and_of_unsure_predictions() -> None:
    assert mean_entropy(one_hot(0, 1, of=3)) == 0.0
    assert mean_entropy(np.full((5, 3), 1 / 3)) == pytest.approx(math.log(3))
    rows = distributions(40, 4)
    expected = torch.distributions.Categorical(torch.tensor(rows)).entropy().mean()
    assert mean_entropy(rows) == pytest.approx(float(expected), rel=1e-12)


def test_information_wants_sure_predictions_of_all_classes() -> None:
    assert mutual_information(one_hot(0, 1, 2, of=3)) == pytest.approx(math.log(3))
    # What entropy takes for the best of all: one class for everything.
    assert mutual_information(one_hot(1, 1, 1, of=3)) == 0.0
    assert mutual_information(np.full((5, 3), 1 / 3)) == pytest.approx(0.0, abs=1e-15)


def test_information_is_that_of_the_joint_distribution() -> None:
    rows = distributions(30, 5)
    joint = rows / len(rows)
    independent = joint.sum(axis=0) / len(rows)
    expected = (joint * np.log(joint / independent)).sum()
    assert mutual_information(rows) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("shape", [(50, 4), (3, 6), (1, 1), (4, 4)])
def test_nuclear_norm_is_the_sum_of_singular_values(shape: tuple[int, int]) -> None:
    rows = distributions(*shape)
    greatest = math.sqrt(shape[0] * min(shape))
    expected = np.linalg.svd(rows, compute_uv=False).sum() / greatest
    # Squared singular values lose half the digits of small ones.
    assert batch_nuclear_norm(rows) == pytest.approx(expected, rel=1e-7)


def test_nuclear_norm_is_one_at_most() -> None:
    assert batch_nuclear_norm(one_hot(0, 1, 2, 0, 1, 2, of=3)) == pytest.approx(1.0)
    assert batch_nuclear_norm(one_hot(1, 1, 1, 1, of=3)) == pytest.approx(1 / math.sqrt(3))


def test_neighborhood_density_against_all_similarities_at_once() -> None:
    # More rows than are held at a time.
    rows = torch.tensor(distributions(1100, 4))
    units = torch.nn.functional.normalize(rows)
    similarity = (units @ units.T) / 0.05
    similarity.fill_diagonal_(-torch.inf)
    expected = torch.distributions.Categorical(logits=similarity).entropy().mean()
    assert soft_neighborhood_density(rows.numpy()) == pytest.approx(float(expected), rel=1e-9)


def test_neighborhood_density_counts_neighbours() -> None:
    # Of 6 texts in two classes each has 2 neighbours; temperatures are far below distances.
    rows = one_hot(0, 0, 0, 1, 1, 1, of=2)
    assert soft_neighborhood_density(rows) == pytest.approx(math.log(2), abs=1e-6)
    assert soft_neighborhood_density(one_hot(0, 0, 0, 0, of=2)) == pytest.approx(math.log(3))


@pytest.mark.parametrize("signal", OVER_PREDICTIONS)
def test_order_of_texts_and_classes_does_not_matter(signal) -> None:
    rows = distributions(60, 4)
    rng = np.random.default_rng(1)
    mixed = rows[rng.permutation(60)][:, rng.permutation(4)]
    assert signal(mixed) == pytest.approx(signal(rows), rel=1e-9)


@pytest.mark.parametrize("signal", OVER_PREDICTIONS)
@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((0, 3)),
        np.ones(3) / 3,
        np.array([[0.5, 0.5], [0.9, 0.5]]),
        np.array([[0.5, 0.5], [1.5, -0.5]]),
        np.array([[0.5, 0.5], [np.nan, 0.5]]),
    ],
)
def test_what_is_no_distribution_is_refused(signal, wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected"):
        signal(wrong)


def test_a_single_text_has_no_neighbours() -> None:
    with pytest.raises(ValueError, match="neighbours"):
        soft_neighborhood_density(np.ones((1, 2)) / 2)
    with pytest.raises(ValueError, match="temperature"):
        soft_neighborhood_density(distributions(3, 2), temperature=0.0)


def test_discriminator_that_guesses() -> None:
    accuracy, loss = discriminator_scores(np.zeros(7), np.zeros(3))
    assert accuracy == 0.5
    assert loss == pytest.approx(2 * math.log(2))


def test_discriminator_scores_are_those_of_the_reference() -> None:
    rng = np.random.default_rng(0)
    others, english = rng.normal(-1, 2, 40), rng.normal(1, 2, 10)
    found = discriminator_scores(others, english)
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    expected = sum(
        bce(torch.tensor(side), torch.full((len(side),), target, dtype=torch.float64))
        for side, target in ((others, 0.0), (english, 1.0))
    )
    assert found.loss == pytest.approx(float(expected), rel=1e-12)
    # Of 40 and of 10 texts: each side counts half.
    assert found.accuracy == ((others <= 0).mean() + (english > 0).mean()) / 2


def test_relaxed_discriminator_scores() -> None:
    """L_D of p = sigmoid(z) / (2 + relaxation), and the same accuracy."""
    rng = np.random.default_rng(0)
    others, english = rng.normal(-1, 2, 40), rng.normal(1, 2, 10)
    found = discriminator_scores(others, english, relaxation=0.5)
    p_others, p_english = (1 / (1 + np.exp(-z)) / 2.5 for z in (others, english))
    assert found.loss == pytest.approx(-np.log(1 - p_others).mean() - np.log(p_english).mean())
    assert found.accuracy == discriminator_scores(others, english).accuracy
    # At the bound, of 0.4, it only guesses.
    guessing = discriminator_scores(np.full(3, 50.0), np.full(4, 50.0), relaxation=0.5)
    assert guessing.loss == pytest.approx(math.log(2.5**2 / 1.5))
    assert guessing.accuracy == 0.5


def test_discriminator_scores_refuse_an_empty_side_and_nan() -> None:
    with pytest.raises(ValueError, match="0 logits of English"):
        discriminator_scores(np.ones(3), np.ones(0))
    with pytest.raises(ValueError, match="NaN"):
        discriminator_scores(np.array([np.nan]), np.ones(1))


def test_probe_finds_what_is_there_and_only_that() -> None:
    rng = np.random.default_rng(0)
    others, english = rng.normal(size=(200, 8)), rng.normal(size=(300, 8))
    # No difference: about half, within 4 standard errors of 500 draws.
    assert abs(probe_accuracy(others, english) - 0.5) < 4 * math.sqrt(0.25 / 500)
    english[:, 3] += 8
    assert probe_accuracy(others, english) > 0.99


def test_probe_is_tested_on_what_it_was_not_trained_on() -> None:
    # More features than texts: whoever is tested on the training half is always right.
    rng = np.random.default_rng(0)
    found = probe_accuracy(rng.normal(size=(40, 100)), rng.normal(size=(40, 100)))
    assert 0.2 < found < 0.8


def test_probe_does_not_mind_scale_shift_or_sides_of_different_sizes() -> None:
    rng = np.random.default_rng(0)
    others, english = rng.normal(size=(30, 5)), rng.normal(0.7, 1, size=(400, 5))
    found = probe_accuracy(others, english)
    assert 0.6 < found < 1
    assert probe_accuracy(1e-3 * others + 5, 1e-3 * english + 5) == pytest.approx(found)
    assert probe_accuracy(english, others) == pytest.approx(found)


def test_probe_of_constant_embeddings_guesses() -> None:
    assert probe_accuracy(np.ones((4, 3)), np.ones((4, 3))) == 0.5


def test_probe_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        probe_accuracy(np.ones((1, 3)), np.ones((4, 3)))
    with pytest.raises(ValueError, match="expected"):
        probe_accuracy(np.ones((4, 2)), np.ones((4, 3)))
    with pytest.raises(ValueError, match="finite"):
        probe_accuracy(np.full((4, 3), np.inf), np.ones((4, 3)))
