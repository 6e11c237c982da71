"""The label set that labelled examples imply."""

from __future__ import annotations

import os
from collections.abc import Sequence

from fastadv.config import Task
from fastadv.data import Data, DataFile, as_documents, as_sentences


def labels_of(data: Data, task: Task) -> tuple[str, ...]:
    """Classes in alphabetical order; for NER "O", then B- and I- of every entity type.

    Both B- and I- are there for every type, seen or not: a small training set may lack a
    two-word entity that a test set has.

    Raises:
        ValueError: Malformed data, fewer than two classes, or no entity at all.
    """
    if task == "classification":
        classes = sorted({d.label for d in as_documents(data) if d.label is not None})
        if len(classes) < 2:
            found = f"the one label {classes[0]!r}" if classes else "no label"
            raise ValueError(f"{_name(data)}: found {found}, expected at least two different ones")
        return tuple(classes)
    tags = {tag for sentence in as_sentences(data) for tag in sentence.tags or ()}
    types = sorted({tag[2:] for tag in tags if tag != "O"})
    if not types:
        raise ValueError(f"{_name(data)}: found no entity, expected tags such as B-PER beside O")
    return ("O", *(f"{prefix}-{kind}" for kind in types for prefix in "BI"))


def _name(data: Data) -> str:
    if isinstance(data, DataFile):
        return os.fspath(data.path)
    return os.fspath(data) if isinstance(data, str | os.PathLike) else "the labelled examples"


def checked_labels(labels: Sequence[str], task: Task) -> tuple[str, ...]:
    """The labels as a tuple, if they are at least two different names, for NER "O" among them."""
    found = tuple(labels)
    if isinstance(labels, str) or len(found) < 2 or len(set(found)) < len(found):
        raise ValueError(f"labels is {labels!r}, expected at least two different names")
    if task == "ner" and "O" not in found:
        raise ValueError(f"labels is {labels!r}, expected the tag 'O' among them for NER")
    return found
