"""What a model predicts on unlabelled text of the target languages, as signals for a criterion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastadv.nn.heads import AdversarialModel
from fastadv.selection import batch_nuclear_norm, mean_entropy, mutual_information
from fastadv.tasks.preparation import Preparation
from fastadv.tasks.task import Outputs

TEXTS = 500
"""Texts of a language that signals are computed from, at most."""
PREDICTIONS = 4000
"""Predictions on them, at most, of which NER has one a word: some criteria take time with their
square.
"""


def spread(records: Any, count: int = TEXTS) -> Any:
    """`count` of the records, evenly over their order; all where there are not more."""
    indices = np.linspace(0, len(records) - 1, min(count, len(records))).round().astype(int)
    return [records[int(index)] for index in indices]


class TargetSignals:
    """Signals from `PREDICTIONS` predictions on `TEXTS` texts a language.

    Args:
        preparation: How texts are tokenised, which is done now and once.
        texts: Unlabelled examples of the task by language.
        batch_size: Texts in a batch of the longest.

    Raises:
        ValueError: A language has no text.
    """

    def __init__(self, preparation: Preparation, texts: Mapping[str, Any], batch_size: int) -> None:
        for language, records in texts.items():
            if not len(records):
                raise ValueError(f"found no text of {language}, expected some to predict on")
        self._task, self._batch_size = preparation.task, batch_size
        read = preparation.tokenized
        self._datasets = {name: read(spread(records)) for name, records in texts.items()}

    def probabilities(self, model: AdversarialModel, language: str) -> NDArray[np.float32]:
        """(N, K) float32, N at most `PREDICTIONS`: p(Y | x) of documents, or p(Y_t | x) of words.

        A word of which the model sees no piece has no prediction, and is left out.
        """
        return self.rows(self.outputs(model, language))

    def rows(self, outputs: Outputs) -> NDArray[np.float32]:
        """`probabilities` of outputs."""
        return np.stack(spread(self._task.rows(outputs), PREDICTIONS))

    def outputs(self, model: AdversarialModel, language: str) -> Outputs:
        """What the model says of the language's texts; see `Task.outputs`."""
        return self._task.outputs(model, self._datasets[language], self._batch_size)

    def texts(self, language: str) -> int:
        """How many texts of a language are looked at."""
        return len(self._datasets[language])

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
