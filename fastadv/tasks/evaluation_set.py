"""Labelled data that is tokenised once and scored any number of times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastadv.batches.tokenized import TokenizedDataset
from fastadv.nn.heads import AdversarialModel
from fastadv.tasks.task import Outputs, Report, Task


@dataclass(frozen=True)
class EvaluationSet:
    """Labelled data, tokenised once.

    Attributes:
        task: What is predicted.
        dataset: The tokens.
        gold: For each document its label, or for each sentence the tags of its words.
    """

    task: Task
    dataset: TokenizedDataset
    gold: list[Any]

    def outputs(self, model: AdversarialModel, batch_size: int) -> Outputs:
        """What the model says of the examples; see `Task.outputs`."""
        return self.task.outputs(model, self.dataset, batch_size)

    def report(self, outputs: Outputs, labels: Sequence[str]) -> Report:
        """The outputs against the gold: a `DocumentReport`, or for entities `EntityScores`."""
        return self.task.report(outputs, self.gold, labels)

    def score(
        self, model: AdversarialModel, labels: Sequence[str], batch_size: int
    ) -> dict[str, float]:
        """{"accuracy", "macro_f1"}; for entities {"precision", "recall", "f1"}, micro-averaged."""
        return self.report(self.outputs(model, batch_size), labels).scores()
