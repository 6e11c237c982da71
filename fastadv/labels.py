"""The label set that labelled examples imply."""

from __future__ import annotations

from fastadv.config import Task
from fastadv.data import Data, as_documents, as_sentences


def labels_of(data: Data, task: Task) -> tuple[str, ...]:
    """Classes in alphabetical order; for NER "O", then B- and I- of every entity type.

    Both B- and I- are there for every type, seen or not: a small training set may lack a
    two-word entity that a test set has.
    """
    if task == "classification":
        return tuple(sorted({d.label for d in as_documents(data) if d.label is not None}))
    tags = {tag for sentence in as_sentences(data) for tag in sentence.tags or ()}
    types = sorted({tag[2:] for tag in tags if tag != "O"})
    return ("O", *(f"{prefix}-{kind}" for kind in types for prefix in "BI"))
