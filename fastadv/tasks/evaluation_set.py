"""Labelled data, tokenised once and scored as often as wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastadv.batches.tokenization import TokenizedDataset
from fastadv.config import Task
from fastadv.nn.heads import AdversarialModel
from fastadv.tasks.inference import document_probabilities, word_probabilities
from fastadv.tasks.metrics import DocumentReport, EntityScores, document_report, entity_scores

OUTSIDE = "O"


def tags_of(probabilities: NDArray[np.float32], labels: Sequence[str]) -> list[str]:
    """The likeliest tag of each word; "O" for a word the model never saw (a row of NaN)."""
    seen = ~np.isnan(probabilities).any(axis=1)
    best = np.where(seen, np.nan_to_num(probabilities).argmax(axis=1), -1)
    return [OUTSIDE if k < 0 else labels[k] for k in best]


@dataclass(frozen=True)
class EvaluationSet:
    """Labelled data, tokenised once.

    Attributes:
        task: "classification" or "ner".
        dataset: The tokens.
        gold: For each document its label, or for each sentence the tags of its words.
    """

    task: Task
    dataset: TokenizedDataset
    gold: list[Any]

    def score(
        self, model: AdversarialModel, labels: Sequence[str], batch_size: int
    ) -> dict[str, float]:
        """{"accuracy", "macro_f1"}; for entities {"precision", "recall", "f1"}, micro-averaged."""
        report = self.report(model, labels, batch_size)
        if isinstance(report, DocumentReport):
            return {"accuracy": report.accuracy, "macro_f1": report.macro_f1}
        return {"precision": report.precision, "recall": report.recall, "f1": report.f1}

    def report(
        self, model: AdversarialModel, labels: Sequence[str], batch_size: int
    ) -> DocumentReport | EntityScores:
        """What `score` sums up: the confusion matrix and each class, or each type of entity.

        Macro-F1 is over the labels of the model, whether a data set holds them all or not.
        """
        if self.task == "classification":
            best = document_probabilities(model, self.dataset, batch_size).argmax(axis=1)
            return document_report(self.gold, [labels[k] for k in best], labels)
        rows = word_probabilities(model, self.dataset, batch_size)
        return entity_scores(self.gold, [tags_of(row, labels) for row in rows])
