"""What a model predicts on unlabelled text of the target languages, as signals for a criterion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastadv.config import Task
from fastadv.nn.heads import AdversarialModel
from fastadv.selection import batch_nuclear_norm, mean_entropy, mutual_information
from fastadv.tasks.inference import document_probabilities, word_probabilities
from fastadv.tasks.preparation import Preparation

TEXTS = 500
"""Texts of a language that signals are computed from, at most."""
WORDS = 4000
"""Words of them, for NER: some criteria take time with their square."""


def spread(records: Any, count: int = TEXTS) -> Any:
    """`count` of the records, evenly over their order; all where there are not more."""
    places = np.linspace(0, len(records) - 1, min(count, len(records))).round().astype(int)
    return [records[int(place)] for place in places]


class TargetSignals:
    """Signals from predictions on `TEXTS` texts a language, or for NER on `WORDS` words of them.

    Args:
        preparation: How texts are tokenised, which is done now and once.
        task: "classification" or "ner".
        texts: Unlabelled documents, or sentences for NER, by language.
        batch_size: Texts in a batch of the longest.

    Raises:
        ValueError: A language has no text.
    """

    def __init__(
        self, preparation: Preparation, task: Task, texts: Mapping[str, Any], batch_size: int
    ) -> None:
        for language, records in texts.items():
            if not len(records):
                raise ValueError(f"found no text of {language}, expected some to predict on")
        self._task, self._batch_size = task, batch_size
        read = preparation.documents if task == "classification" else preparation.sentences
        self._datasets = {name: read(spread(records)) for name, records in texts.items()}

    def probabilities(self, model: AdversarialModel, language: str) -> NDArray[np.float32]:
        """(N, K) float32: p(Y | x) of documents, or p(Y_t | x) of words.

        A word of which the model sees no piece has no prediction, and is left out.
        """
        dataset, size = self._datasets[language], self._batch_size
        if self._task == "classification":
            return document_probabilities(model, dataset, size)
        words = np.concatenate(word_probabilities(model, dataset, size))
        return np.stack(spread(words[~np.isnan(words).any(axis=1)], WORDS))

    def signals(self, model: AdversarialModel) -> dict[str, dict[str, float]]:
        """{language: {signal: value}}, see `signals_of`."""
        return {name: signals_of(self.probabilities(model, name)) for name in self._datasets}


def signals_of(probabilities: NDArray[np.float32]) -> dict[str, float]:
    """The signals of (N, K) predictions by their names in `fastadv.selection.CRITERIA`."""
    return {
        "entropy": mean_entropy(probabilities),
        "information": mutual_information(probabilities),
        "nuclear_norm": batch_nuclear_norm(probabilities),
    }
