"""Which evaluated step of a run becomes best/."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastadv.config import Selection
from fastadv.nn.heads import AdversarialModel
from fastadv.selection import CRITERIA, ENSEMBLES
from fastadv.selection.criteria import Evaluated, scores
from fastadv.selection.target_signals import TargetSignals

ENGLISH_DEV = "english_dev"
"""The paper's criterion (section 3.1)."""


class StepChoice:
    """`FinetuneConfig.selection` at work, over the evaluations that it was given so far.

    Args:
        selection: The criterion.
        metric: The task's, by which English dev is read.
        signals: Predictions on unlabelled target text; None where there is none, or for English
            dev, which does not look at them.
        dev: Whether evaluations have scores on a dev set.

    Raises:
        ValueError: The criterion reads predictions on target text and there is none, or it is an
            ensemble with English dev and there is no dev set.
    """

    def __init__(
        self,
        selection: Selection,
        metric: str,
        signals: TargetSignals | None = None,
        dev: bool = True,
    ) -> None:
        self.criterion, self.metric = selection, metric
        self.parts = ENSEMBLES.get(selection, (selection,))
        self._signals = signals
        self._seen: list[Evaluated] = []
        self._gone: set[int] = set()
        if selection == ENGLISH_DEV:
            return
        if signals is None:
            raise ValueError(
                f"selection is {selection!r} and there is no text of another language, "
                "expected unlabeled text for it to look at"
            )
        if ENGLISH_DEV in self.parts and not dev:
            raise ValueError(f"selection is {selection!r}, expected a dev set for it")

    @property
    def looks(self) -> bool:
        """Whether the criterion reads predictions on unlabelled text."""
        return self._signals is not None

    def look(self, model: AdversarialModel) -> dict[str, dict[str, float]]:
        """{language: {signal: value}} of the model as it is now; empty where it does not look."""
        return {} if self._signals is None else self._signals.signals(model)

    def add(self, evaluation: Mapping[str, Any]) -> None:
        """One more evaluation record; signals count by their mean over languages.

        Left out are step 0, where no head was ever trained, and what lacks a part's value.
        """
        by_language = evaluation.get("unlabeled", {}).values()
        names = {name for signals in by_language for name in signals}
        means = {name: float(np.mean([s[name] for s in by_language])) for name in names}
        dev = evaluation["dev"][self.metric] if "dev" in evaluation else None
        seen = Evaluated(evaluation["step"], dev, means)
        if seen.step > 0 and None not in self._values(seen):
            self._seen.append(seen)

    def best(self) -> tuple[int, float] | None:
        """The step with the greatest value, the earliest of equals, and the value: of an ensemble
        the mean of its ranks so far. None before there is one.
        """
        found = scores(self._seen, self.criterion) or []
        there = [
            (seen.step, value)
            for seen, value in zip(self._seen, found, strict=True)
            if seen.step not in self._gone
        ]
        return max(there, key=lambda pair: pair[1], default=None)

    def candidates(self) -> list[int]:
        """Steps that are or may yet become the best.

        Of an ensemble more than one: ranks shift with every evaluation. But a step that another
        equals or surpasses in every part never overtakes it.
        """
        return [
            one.step
            for one in self._seen
            if one.step not in self._gone
            and not any(self._never_below(other, one) for other in self._seen if other is not one)
        ]

    def lose(self, step: int) -> None:
        """The step's model is gone: it counts in ranks, but can no longer be the best."""
        self._gone.add(step)

    def _values(self, seen: Evaluated) -> list[Any]:
        """The value of every part of the criterion."""
        return [CRITERIA[part](seen) for part in self.parts]

    def _never_below(self, other: Evaluated, one: Evaluated) -> bool:
        ours, theirs = self._values(one), self._values(other)
        if ours == theirs:
            return other.step < one.step
        return all(a >= b for a, b in zip(theirs, ours, strict=True))
