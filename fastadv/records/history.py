"""What happened in a run, as `fit` returns it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class History:
    """What `fit` returns.

    Attributes:
        records: The lines of metrics.jsonl: {"kind": "train", "step", mean losses, rates},
            {"kind": "eval", "step", "dev": {metric: value}, "test": {name: {metric: value}}} (and
            what an observer found as "observed", what selection looked at as "unlabeled"),
            {"kind": "mean", "step", "evaluations", "dev", "test"} of the mean of the weights, and
            {"kind": "warning", "step", "message"}.
        best_step: The step with the greatest value of the configuration's `selection`, the
            earliest of equals; by default the score on the source language's dev set (paper,
            section 3.1). None without a dev set.
        best_score: That value: accuracy, or F1 for NER; for an ensemble the mean of its ranks.
        majority: What always giving the commonest class of the training labels would score:
            {"label", "dev": {metric: value}, "test": {name: {metric: value}}}. None for NER
            (`fastadv.tasks.majority`).
    """

    records: list[dict[str, Any]] = field(default_factory=list)
    best_step: int | None = None
    best_score: float | None = None
    majority: dict[str, Any] | None = None

    def evaluations(self) -> list[dict[str, Any]]:
        """The evaluation records, in the order of their steps."""
        return [record for record in self.records if record["kind"] == "eval"]
