"""The least that a score must beat: that of always giving the commonest class of the training data.

The class is that of the labelled language's training examples. Labels of a test set, which may be
in a language that has none, choose nothing here.

Of named entities there is no such score: the commonest tag is "O", which finds no entity, so that
F1 is 0 on every test set. Tables leave the row out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastadv.batches.tokenized import TokenizedDataset
from fastadv.tasks.evaluation_set import EvaluationSet
from fastadv.tasks.metrics import document_report


def majority_class(training: TokenizedDataset, labels: Sequence[str]) -> str | None:
    """The commonest class of labelled examples, the first of `labels` among equals; None for
    sentences of tagged words.
    """
    if training.labels is None:
        return None
    return labels[int(np.bincount(training.labels, minlength=len(labels)).argmax())]


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
