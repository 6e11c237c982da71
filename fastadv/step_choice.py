"""Which evaluated step of a run becomes best/."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fastadv.evaluate import SCORE
from fastadv.selection import CRITERIA
from fastadv.target_predictions import TargetPredictions

if TYPE_CHECKING:
    from fastadv.finetuner import AdversarialFinetuner

ENGLISH_DEV = "english_dev"
"""The paper's criterion (section 3.1)."""


class StepChoice:
    """`FinetuneConfig.selection` at work: a value for every evaluation, of which the greatest wins.

    Args:
        tuner: Whose configuration and task it is.
        texts: Unlabelled text by target language, at which English dev does not look.

    Raises:
        ValueError: The criterion reads predictions on target text, and there is none.
    """

    def __init__(self, tuner: AdversarialFinetuner, texts: Mapping[str, Any]) -> None:
        self.criterion, self.metric = tuner.config.selection, SCORE[tuner.task]
        self._predictions: TargetPredictions | None = None
        self._languages = list(texts)
        if self.criterion != ENGLISH_DEV:
            if not texts:
                raise ValueError(
                    f"selection is {self.criterion!r} and there is no text of another language, "
                    "expected unlabeled text for it to look at"
                )
            self._predictions = TargetPredictions(tuner, texts)

    @property
    def looks(self) -> bool:
        """Whether the criterion reads predictions on unlabelled text."""
        return self._predictions is not None

    def look(self, tuner: AdversarialFinetuner) -> dict[str, dict[str, float]]:
        """{language: {signal: value}} of the model as it is now; empty where it does not look."""
        return {} if self._predictions is None else self._predictions.signals(tuner)

    def value(self, evaluation: Mapping[str, Any]) -> float | None:
        """The criterion's value, over target languages their mean.

        None before the first step, where no head was ever trained, and without a dev set where
        the criterion reads one.
        """
        if evaluation["step"] == 0:
            return None
        read = CRITERIA[self.criterion]
        if not self.looks:
            return read(evaluation, "", self.metric)
        seen = {**evaluation, "observed": evaluation["unlabeled"]}
        values = [read(seen, language, self.metric) for language in self._languages]
        return float(np.mean([value for value in values if value is not None]))
