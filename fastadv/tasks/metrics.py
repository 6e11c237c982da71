"""Scores of classes, of named entities and of aligned embeddings.

A ratio whose denominator is zero is 0.0 throughout: the precision of a type never predicted, the
recall of one that does not occur, and F1 where both are 0.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def accuracy(gold: Sequence[Any], predicted: Sequence[Any]) -> float:
    """The share of the N examples whose predicted class is the gold one; 0.0 where N = 0.

    Raises:
        ValueError: The two are not of one length.
    """
    _check_lengths(len(gold), len(predicted), "predictions for", "examples")
    right = sum(bool(g == p) for g, p in zip(gold, predicted, strict=True))
    return _ratio(right, len(gold))


def confusion_matrix(
    gold: Sequence[Hashable], predicted: Sequence[Hashable], labels: Sequence[Hashable]
) -> NDArray[np.int64]:
    """(K, K) int64: how many examples of class row were predicted as class column.

    Raises:
        ValueError: The two are not of one length, or hold a class that is not in `labels`.
    """
    _check_lengths(len(gold), len(predicted), "predictions for", "examples")
    place = {label: number for number, label in enumerate(labels)}
    matrix = np.zeros((len(labels), len(labels)), np.int64)
    for pair in zip(gold, predicted, strict=True):
        for label in pair:
            if label not in place:
                known = ", ".join(map(str, labels))
                raise ValueError(f"found the class {label!r}, expected one of {known}")
        matrix[place[pair[0]], place[pair[1]]] += 1
    return matrix


def macro_f1(
    gold: Sequence[Hashable], predicted: Sequence[Hashable], labels: Sequence[Hashable]
) -> float:
    """The mean over `labels` of each class's F1; one that never occurs and never is predicted is 0.

    Raises:
        ValueError: As `confusion_matrix`.
    """
    return document_report(gold, predicted, labels).macro_f1


@dataclass(frozen=True)
class Scores:
    """Precision, recall and F1, each 0 to 1, and how many there are in the gold data."""

    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class DocumentReport:
    """Everything that is counted about classified documents.

    Attributes:
        accuracy: The share of documents whose class is right.
        macro_f1: The mean of the classes' F1.
        confusion: (K, K) int64, gold classes in rows, predicted ones in columns.
        labels: The K classes, in the order of the rows and columns.
        per_class: By class, in the same order.
    """

    accuracy: float
    macro_f1: float
    confusion: NDArray[np.int64]
    labels: tuple[str, ...]
    per_class: dict[str, Scores]

    def scores(self) -> dict[str, float]:
        """{"accuracy", "macro_f1"}"""
        return {"accuracy": self.accuracy, "macro_f1": self.macro_f1}

    def details(self) -> dict[str, Any]:
        """{"labels", "confusion", "per_class"} as JSON can hold them."""
        return {
            "labels": list(self.labels),
            "confusion": self.confusion.tolist(),
            "per_class": {name: vars(scores) for name, scores in self.per_class.items()},
        }


def document_report(
    gold: Sequence[Any], predicted: Sequence[Any], labels: Sequence[Any]
) -> DocumentReport:
    """Accuracy, macro-F1, confusion matrix and the scores of each class.

    Raises:
        ValueError: As `confusion_matrix`.
    """
    matrix = confusion_matrix(gold, predicted, labels)
    counts = zip(matrix.diagonal(), matrix.sum(axis=0), matrix.sum(axis=1), strict=True)
    per_class = {
        label: _scores(int(right), int(guesses), int(support))
        for label, (right, guesses, support) in zip(labels, counts, strict=True)
    }
    return DocumentReport(
        accuracy=accuracy(gold, predicted),
        macro_f1=_ratio(sum(scores.f1 for scores in per_class.values()), len(per_class)),
        confusion=matrix,
        labels=tuple(labels),
        per_class=per_class,
    )


@dataclass(frozen=True)
class EntityScores(Scores):
    """Scores over the entities of all types (micro-average), and the scores of each type.

    Attributes:
        per_type: By the name of the type, sorted; every type found in gold or predicted tags.
    """

    per_type: dict[str, Scores]

    def scores(self) -> dict[str, float]:
        """{"precision", "recall", "f1"}"""
        return {"precision": self.precision, "recall": self.recall, "f1": self.f1}

    def details(self) -> dict[str, Any]:
        """{"per_type"} as JSON can hold it."""
        return {"per_type": {name: vars(scores) for name, scores in self.per_type.items()}}


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """The entities of one sentence as (type, first word, one past the last word).

    The policy for illegal sequences is conlleval's (the scorer of CoNLL-2000 to 2003): none is
    refused and no word is dropped. B-X begins an entity of type X, and so does an I-X that
    follows O, another type, or nothing; I-X after B-X or I-X continues it. The same policy is
    called "conlleval" repair in `seqscore` and is what `seqeval` does by default (its strict
    mode drops such entities instead, which raises precision and lowers recall). Gold tags are
    read in the same way, so that IOB1 data score as they do under conlleval.

    Raises:
        ValueError: A tag is not O, B-TYPE or I-TYPE.
    """
    found = set()
    kind, start = "", 0
    for place, tag in enumerate([*tags, "O"]):
        mark, _, name = tag.partition("-")
        if not (tag == "O" or (mark in ("B", "I") and name)):
            raise ValueError(f"found the tag {tag!r}, expected O, B-TYPE or I-TYPE")
        if mark == "I" and name == kind:
            continue
        if kind:
            found.add((kind, start, place))
        kind, start = name, place
    return found


def entity_scores(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> EntityScores:
    """Precision, recall and F1 of entities: right only with both borders and the type right.

    Args:
        gold: The tags of each sentence, IOB2.
        predicted: As many tags of as many sentences, legal or not (see `entities`).

    Raises:
        ValueError: There are not as many sentences, a sentence has not as many tags, or a tag is
            not O, B-TYPE or I-TYPE.
    """
    _check_lengths(len(gold), len(predicted), "predictions for", "sentences")
    counts: dict[str, np.ndarray] = {}
    for number, (gold_tags, tags) in enumerate(zip(gold, predicted, strict=True)):
        _check_lengths(len(gold_tags), len(tags), f"sentence {number}: predictions for", "words")
        truth, guess = entities(gold_tags), entities(tags)
        for place, group in enumerate((truth & guess, guess, truth)):
            for kind, _, _ in group:
                counts.setdefault(kind, np.zeros(3, np.int64))[place] += 1
    per_type = {kind: _scores(*map(int, counts[kind])) for kind in sorted(counts)}
    total = _scores(*map(int, sum(counts.values(), np.zeros(3, np.int64))))
    return EntityScores(total.precision, total.recall, total.f1, total.support, per_type)


def median_cosine(a: np.ndarray | torch.Tensor, b: np.ndarray | torch.Tensor) -> float:
    """The median over N pairs of the cosine between row i of `a` and row i of `b`.

    The measure of section 3.4 and Table 3 (Keung, Lu and Bhardwaj, EMNLP 2019), with `a` the
    embeddings of English documents and `b` the embeddings of their translations. Computed in
    float64; the mean of the middle two where N is even; 0.0 for a pair in which one is zero.

    Args:
        a: (N, H) of any floating dtype, on any device.
        b: (N, H).

    Raises:
        ValueError: The two are not of one shape (N, H), or N is 0.
    """
    left, right = _aligned(a, b)
    return float(np.median((left * right).sum(axis=1)))


def retrieval_accuracy(a: np.ndarray | torch.Tensor, b: np.ndarray | torch.Tensor) -> float:
    """The share of the N rows of `a` whose nearest row of `b`, by cosine, is its translation.

    This is one direction: `retrieval_accuracy(b, a)` is the other, and differs. Computed in
    float64; a tie with another row is a miss, so equal rows of `b` are not hit by chance. Memory
    beyond the two matrices is bounded (128 MiB).

    Args:
        a: (N, H) of any floating dtype, on any device.
        b: (N, H); row i is the translation of row i of `a`.

    Raises:
        ValueError: As `median_cosine`.
    """
    left, right = _aligned(a, b)
    count, size = left.shape
    # Equal rows may differ in the last bits: BLAS sums columns at the edge of a block in another
    # order. Dot products of unit vectors of length H err by at most H roundings.
    margin = size * np.finfo(np.float64).eps
    hits = 0
    chunk = max(1, _CHUNK // count)
    for start in range(0, count, chunk):
        cosines = left[start : start + chunk] @ right.T
        own = np.arange(len(cosines)), np.arange(start, start + len(cosines))
        translation = cosines[own]
        cosines[own] = -np.inf
        hits += int((translation > cosines.max(axis=1) + margin).sum())
    return hits / count


_CHUNK = 2**24
"""Cosines held at a time: 128 MiB of float64."""


def _aligned(
    a: np.ndarray | torch.Tensor, b: np.ndarray | torch.Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Both as (N, H) float64, their rows of length 1 (or 0)."""
    left, right = _matrix(a), _matrix(b)
    if left.shape != right.shape or left.ndim != 2 or not len(left):
        raise ValueError(
            f"found embeddings of shapes {left.shape} and {right.shape}, "
            "expected the same shape (N, H) with N at least 1"
        )
    for rows in (left, right):
        wrong = ~np.isfinite(rows).all(axis=1)
        if wrong.any():
            raise ValueError(
                f"embedding {int(wrong.argmax())}: found NaN or infinity, expected finite numbers"
            )
    return _normalised(left), _normalised(right)


def _matrix(values: np.ndarray | torch.Tensor) -> np.ndarray:
    return torch.as_tensor(values).detach().to("cpu", torch.float64).numpy()


def _normalised(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms == 0, 1, norms)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _scores(right: int, predicted: int, gold: int) -> Scores:
    # F1 = 2PR / (P + R) = 2 right / (predicted + gold), which has no 0 / 0 of its own.
    return Scores(
        _ratio(right, predicted), _ratio(right, gold), _ratio(2 * right, predicted + gold), gold
    )


def _check_lengths(expected: int, found: int, what: str, unit: str) -> None:
    if expected != found:
        raise ValueError(f"{what} {expected} {unit}: found {found}, expected {expected}")
