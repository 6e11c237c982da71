"""Criteria: which step of a run to keep for a target language.

A criterion gives every evaluation of a run a value, and the greatest wins, the earliest of equals.
`values` and `chosen_step` take evaluation records as `fit` writes them to metrics.jsonl, with the
signals that an experiment's observer adds: {"kind": "eval", "step", "dev": {metric: value},
"test": {name: {metric: value}}, "observed": {language: {signal: value}}}.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Evaluation = Mapping[str, Any]

ORACLE = "oracle"
"""The best step by the target's own test labels: a bound, and not allowed."""
NEAR_CHANCE = 0.5


@dataclass(frozen=True)
class Evaluated:
    """What criteria read of one evaluation, for one target.

    Attributes:
        step: Steps done.
        dev: The score on labelled English; None without a dev set.
        signals: Numbers from unlabelled text, by name.
        test: The score on the target's test set, which the oracle alone reads; None without one.
    """

    step: int
    dev: float | None = None
    signals: Mapping[str, float] = field(default_factory=dict)
    test: float | None = None


Criterion = Callable[[Evaluated], float | None]


def _signal(name: str, sign: float = 1.0) -> Criterion:
    def value(evaluated: Evaluated) -> float | None:
        found = evaluated.signals.get(name)
        return None if found is None else sign * float(found)

    return value


def _near_chance(name: str) -> Criterion:
    def value(evaluated: Evaluated) -> float | None:
        accuracy = _signal(name)(evaluated)
        return None if accuracy is None else -abs(accuracy - NEAR_CHANCE)

    return value


CRITERIA: dict[str, Criterion] = {
    "english_dev": lambda evaluated: evaluated.dev,
    "last": lambda evaluated: float(evaluated.step),
    "entropy": _signal("entropy", -1.0),
    "information": _signal("information"),
    "nuclear_norm": _signal("nuclear_norm"),
    "neighborhood_density": _signal("neighborhood_density"),
    "discriminator_near_chance": _near_chance("discriminator_accuracy"),
    "probe_near_chance": _near_chance("probe_accuracy"),
    "alignment": _signal("alignment"),
}
"""The criteria by name."""

ENSEMBLES: dict[str, tuple[str, ...]] = {
    "english_dev+nuclear_norm": ("english_dev", "nuclear_norm"),
}
"""Steps by the mean of their ranks under several criteria."""

MEANINGS: dict[str, str] = {
    "english_dev": "score on labelled English",
    "last": "the last step",
    "entropy": "sure predictions",
    "information": "sure predictions of all classes",
    "nuclear_norm": "the same, by the singular values of the predictions",
    "neighborhood_density": "texts that are predicted like many others",
    "discriminator_near_chance": "a discriminator that only guesses on held-out text",
    "probe_near_chance": "the same of a linear probe trained afresh",
    "alignment": "translations close together",
    "english_dev+nuclear_norm": "both, by the mean of the ranks",
}
"""What each of them looks for, in a few words."""


def scores(evaluated: Sequence[Evaluated], criterion: str) -> list[float] | None:
    """The criterion's value at every evaluation; None if one has none, as a baseline has no
    discriminator.

    Args:
        evaluated: The evaluations of one run, in the order of their steps.
        criterion: A key of `CRITERIA` or `ENSEMBLES`, or `ORACLE`.

    Raises:
        ValueError: There is no such criterion.
    """
    if criterion in ENSEMBLES:
        parts = [scores(evaluated, part) for part in ENSEMBLES[criterion]]
        if any(part is None for part in parts):
            return None
        return list(np.mean([_ranks(part) for part in parts if part is not None], axis=0))
    if criterion == ORACLE:
        found = [one.test for one in evaluated]
    elif criterion in CRITERIA:
        found = [CRITERIA[criterion](one) for one in evaluated]
    else:
        known = ", ".join([*CRITERIA, *ENSEMBLES, ORACLE])
        raise ValueError(f"found the criterion {criterion!r}, expected one of {known}")
    return None if None in found else [float(value) for value in found if value is not None]


def values(
    evaluations: Sequence[Evaluation], language: str, criterion: str, metric: str
) -> list[float] | None:
    """`scores` of evaluation records.

    Args:
        evaluations: The records of one run, in the order of their steps.
        language: The target's name among test sets and signals.
        criterion: As for `scores`.
        metric: "accuracy" or "f1".

    Raises:
        ValueError: There is no such criterion.
    """
    return scores([_read(one, language, metric) for one in evaluations], criterion)


def _read(evaluation: Evaluation, language: str, metric: str) -> Evaluated:
    return Evaluated(
        evaluation["step"],
        evaluation["dev"][metric] if "dev" in evaluation else None,
        evaluation.get("observed", {}).get(language, {}),
        evaluation["test"][language][metric] if language in evaluation["test"] else None,
    )


def chosen_step(
    evaluations: Sequence[Evaluation], language: str, criterion: str, metric: str
) -> int | None:
    """The step whose value is the greatest, the earliest of equals; None where there is no value.

    Step 0 is no candidate: its heads were never trained.

    Raises:
        ValueError: There is no such criterion.
    """
    trained = [evaluation for evaluation in evaluations if evaluation["step"] > 0]
    found = values(trained, language, criterion, metric)
    if not found:
        return None
    return int(trained[int(np.argmax(found))]["step"])


def _ranks(found: Sequence[float]) -> np.ndarray:
    """(N,) from 0 for the least; equals share the mean of their ranks."""
    array = np.asarray(found)
    below = (array[:, None] > array[None, :]).sum(axis=1)
    equal = (array[:, None] == array[None, :]).sum(axis=1)
    result: np.ndarray = below + (equal - 1) / 2
    return result
