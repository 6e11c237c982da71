"""Steps that criteria choose."""

from __future__ import annotations

from typing import Any

import pytest

from fastadv.selection import CRITERIA, ENSEMBLES, MEANINGS, ORACLE, chosen_step, values


def evaluation(step: int, dev: float, test: float, **signals: float) -> dict[str, Any]:
    return {
        "step": step,
        "dev": {"accuracy": dev},
        "test": {"de": {"accuracy": test}},
        "observed": {"de": signals},
    }


RUN = [
    evaluation(0, 0.99, 0.99, entropy=0.0, nuclear_norm=9.0, discriminator_accuracy=0.5),
    evaluation(10, 0.80, 0.60, entropy=0.9, nuclear_norm=0.2, discriminator_accuracy=0.7),
    evaluation(20, 0.90, 0.50, entropy=0.2, nuclear_norm=0.4, discriminator_accuracy=0.45),
    evaluation(30, 0.90, 0.70, entropy=0.5, nuclear_norm=0.8, discriminator_accuracy=0.9),
    evaluation(40, 0.70, 0.65, entropy=0.6, nuclear_norm=0.5, discriminator_accuracy=0.56),
]


@pytest.mark.parametrize(
    ("criterion", "step"),
    [
        ("english_dev", 20),  # the earliest of equals
        ("last", 40),
        ("entropy", 20),
        ("nuclear_norm", 30),
        ("discriminator_near_chance", 20),
        (ORACLE, 30),
    ],
)
def test_the_step_that_each_chooses(criterion: str, step: int) -> None:
    # Before the first step everything here is best: it is no candidate.
    assert chosen_step(RUN, "de", criterion, "accuracy") == step


@pytest.mark.parametrize("criterion", [*CRITERIA, *ENSEMBLES, ORACLE])
def test_no_criterion_but_the_oracle_sees_test_scores(criterion: str) -> None:
    without = [{**e, "test": {}} for e in RUN]
    found = chosen_step(without, "de", criterion, "accuracy")
    expected = None if criterion == ORACLE else chosen_step(RUN, "de", criterion, "accuracy")
    assert found == expected


def test_a_signal_that_was_not_measured_chooses_nothing() -> None:
    assert chosen_step(RUN, "de", "alignment", "accuracy") is None
    assert chosen_step(RUN, "fr", "entropy", "accuracy") is None
    assert chosen_step([], "de", "last", "accuracy") is None


def test_ensembles_are_means_of_ranks() -> None:
    # Ranks on English dev: 1, 2.5, 2.5, 0; of the norm: 0, 1, 3, 2.
    found = values(RUN[1:], "de", "english_dev+nuclear_norm", "accuracy")
    assert found == [0.5, 1.75, 2.75, 1.0]
    assert chosen_step(RUN, "de", "english_dev+nuclear_norm", "accuracy") == 30


def test_each_is_described() -> None:
    assert [*MEANINGS] == [*CRITERIA, *ENSEMBLES]


def test_an_unknown_criterion_is_refused() -> None:
    with pytest.raises(ValueError, match="criterion 'best', expected one of english_dev"):
        chosen_step(RUN, "de", "best", "accuracy")
