"""The least that a score must beat: that of always giving the commonest class of the training data.

The class is that of the labelled language's training examples. Labels of a test set, which may be
in a language that has none, choose nothing here.

Of named entities there is no such score: the commonest tag is "O", which finds no entity, so that
F1 is 0 on every test set. Tables leave the row out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastadv.tasks.evaluation_set import EvaluationSet
from fastadv.tasks.metrics import document_report
from fastadv.tasks.task import Task


def majority_class(task: Task, counts: Mapping[str, int], labels: Sequence[str]) -> str | None:
    """The commonest class by what `Task.counts` gave, the first of `labels` among equals; None
    where nothing was counted, and where an example has more than one class.
    """
    if not task.one_class or not counts:
        return None
    return max(labels, key=lambda label: counts.get(label, 0))


def majority_scores(
    data: EvaluationSet, majority: str | None, labels: Sequence[str]
) -> dict[str, float] | None:
    """{"accuracy", "macro_f1"} of giving one class to every example; None where there is none."""
    if majority is None:
        return None
    return document_report(data.gold, [majority] * len(data.gold), labels).scores()


def majority_record(
    majority: str | None,
    labels: Sequence[str],
    dev: EvaluationSet | None,
    tests: Mapping[str, EvaluationSet],
) -> dict[str, Any] | None:
    """{"label", "dev": scores, "test": {name: scores}} of the sets that there are, or None."""
    if majority is None:
        return None
    found: dict[str, Any] = {"label": majority}
    if dev is not None:
        found["dev"] = majority_scores(dev, majority, labels)
    found["test"] = {name: majority_scores(data, majority, labels) for name, data in tests.items()}
    return found
