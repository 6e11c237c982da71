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


def accuracy(gold: Sequence[Any], predicted: Sequence[Any]) -> float:
    """The share of the N examples whose predicted class is the gold one; 0.0 where N = 0.

    Raises:
        ValueError: the two are not of one length.
    """
    _check_lengths(len(gold), len(predicted), "predictions for", "examples")
    right = sum(bool(g == p) for g, p in zip(gold, predicted, strict=True))
    return _ratio(right, len(gold))


def confusion_matrix(
    gold: Sequence[Hashable], predicted: Sequence[Hashable], labels: Sequence[Hashable]
) -> np.ndarray:
    """(K, K) int64: how many examples of class row were predicted as class column.

    Raises:
        ValueError: the two are not of one length, or hold a class that is not in `labels`.
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
        ValueError: as `confusion_matrix`.
    """
    matrix = confusion_matrix(gold, predicted, labels)
    right = matrix.diagonal()
    counts = zip(right, matrix.sum(axis=0), matrix.sum(axis=1), strict=True)
    scores = [_scores(int(r), int(p), int(g)).f1 for r, p, g in counts]
    return _ratio(sum(scores), len(scores))


@dataclass(frozen=True)
class Scores:
    """Precision, recall and F1, each 0 to 1, and how many of the kind the gold data hold."""

    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class EntityScores(Scores):
    """Scores over the entities of all types (micro-average), and those of each type.

    Attributes:
        per_type: by the name of the type, sorted; every type found in gold or predicted tags.
    """

    per_type: dict[str, Scores]


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """The entities of one sentence as (type, first word, one past the last word).

    As conlleval (CoNLL-2000 to 2003) reads tags in IOB2: B-X begins an entity of type X, and so
    does an I-X that follows O, another type, or nothing; I-X after X continues it. So no
    predicted sequence is illegal.

    Raises:
        ValueError: a tag is not O, B-TYPE or I-TYPE.
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
        gold: the tags of each sentence, IOB2.
        predicted: as many tags of as many sentences, legal or not (see `entities`).

    Raises:
        ValueError: there are not as many sentences, a sentence has not as many tags, or a tag is
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
    embeddings of English documents and `b` those of their translations. In float64; the mean of
    the middle two where N is even; 0.0 for a pair in which one is zero.

    Args:
        a: (N, H) of any floating dtype, on any device.
        b: (N, H).

    Raises:
        ValueError: the two are not of one shape (N, H), or N is 0.
    """
    left, right = _matrix(a), _matrix(b)
    if left.shape != right.shape or left.ndim != 2 or not len(left):
        raise ValueError(
            f"found embeddings of shapes {left.shape} and {right.shape}, "
            "expected the same shape (N, H) with N at least 1"
        )
    cosines = (_normalised(left) * _normalised(right)).sum(axis=1)
    return float(np.median(cosines))


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
