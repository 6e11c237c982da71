"""What an experiment found, in a few sentences with its numbers in them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fastadv.experiments.plan import ADVERSARIAL, BASELINE
from fastadv.experiments.results import CONDITIONS, Results
from fastadv.experiments.tables import DEFAULT_CRITERION, per_cent, ranking_table

LAST = "last"


def sentences(results: Results) -> list[str]:
    """The sentences for which the finished runs have numbers; they judge nothing."""
    found = [_effect(results), _criteria(results), _languages(results), _alignment(results)]
    return [sentence for sentence in found if sentence is not None]


def _effect(results: Results) -> str | None:
    """What the adversary adds, for the two criteria that need nothing of the target language."""
    parts = []
    for criterion in (DEFAULT_CRITERION, LAST):
        effect = results.effect(None, criterion)
        if effect:
            parts.append(f"{per_cent(effect, sign=True)} ({criterion})")
    if not parts:
        return None
    pairs = len(results.effect(None, DEFAULT_CRITERION))
    return (
        f"Adversarial less baseline, mean of the targets in points: {', '.join(parts)}; over "
        f"{pairs} seed{'s' if pairs > 1 else ''}, runs paired by seed."
    )


def _criteria(results: Results) -> str | None:
    """The best criterion, the paper's and the oracle, over both conditions where both are there."""
    table = ranking_table(results)
    column = table.header.index("both")
    if table.rows[0][column] == "-":
        return None
    score = {row[0]: row[column] for row in table.rows}
    best, oracle = table.rows[0][0], table.rows[-1][0]
    paper = "" if best == DEFAULT_CRITERION else f"; {DEFAULT_CRITERION} {score[DEFAULT_CRITERION]}"
    return (
        f"Of the criteria for a step {best} gets most: {score[best]}{paper}; {oracle} "
        f"{score[oracle]}."
    )


def _languages(results: Results) -> str | None:
    """How far the languages are told apart after the last step."""
    discriminator = _mean(results, ADVERSARIAL, "discriminator_accuracy")
    probes = [_mean(results, condition, "probe_accuracy") for condition in CONDITIONS]
    if discriminator is None or None in probes:
        return None
    without, with_ = probes
    return (
        f"After the last step the discriminator is right on {discriminator:.1%} of held-out text; "
        f"a probe trained afresh on {with_:.1%}, and without the adversary on {without:.1%}."
    )


def _alignment(results: Results) -> str | None:
    """Translations before and after, as the mean over the languages that have them."""
    before = _mean(results, BASELINE, "alignment", 0)
    after = [_mean(results, condition, "alignment") for condition in CONDITIONS]
    if before is None or None in after:
        return None
    without, with_ = after
    return (
        f"The median cosine of translations goes from {before:.2f} to {without:.2f} without the "
        f"adversary and {with_:.2f} with it."
    )


def _mean(results: Results, condition: str, name: str, place: int = -1) -> float | None:
    by_language: list[Mapping[int, float]] = [
        results.signal(condition, language, name, place) for language in results.languages
    ]
    means = [np.mean([*found.values()]) for found in by_language if found]
    return float(np.mean(means)) if means else None
