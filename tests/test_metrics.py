import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from fastadv.metrics import (
    accuracy,
    confusion_matrix,
    entities,
    entity_scores,
    macro_f1,
    median_cosine,
)


def test_accuracy() -> None:
    assert accuracy(["a", "b", "b", "c"], ["a", "b", "c", "c"]) == 0.75
    assert accuracy(np.array([1, 0]), np.array([0, 1])) == 0.0
    assert accuracy([], []) == 0.0
    with pytest.raises(ValueError, match="found 1, expected 2"):
        accuracy([0, 1], [0])


def test_confusion_matrix_has_gold_rows() -> None:
    matrix = confusion_matrix(["a", "a", "b", "c"], ["a", "b", "b", "a"], ["a", "b", "c"])
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    assert matrix.dtype == np.int64
    with pytest.raises(ValueError, match="found the class 'd', expected one of a, b, c"):
        confusion_matrix(["a"], ["d"], ["a", "b", "c"])


def test_macro_f1_by_hand() -> None:
    # a: right 1, predicted 2, gold 2: F1 1/2. b: 1, 2, 1: 2/3. c: 0, 0, 1: 0.
    score = macro_f1(["a", "a", "b", "c"], ["a", "b", "b", "a"], ["a", "b", "c"])
    # One rounding in each of a few float64 operations on numbers near 1.
    assert math.isclose(score, Fraction(1, 3) * (Fraction(1, 2) + Fraction(2, 3)), rel_tol=1e-15)
    assert macro_f1(["a"], ["a"], ["a", "never"]) == 0.5
    assert macro_f1([], [], []) == 0.0


LEGAL = [
    ("", set()),
    ("O O", set()),
    ("B-PER", {("PER", 0, 1)}),
    ("B-PER I-PER O B-LOC", {("PER", 0, 2), ("LOC", 3, 4)}),
    ("B-PER B-PER I-PER", {("PER", 0, 1), ("PER", 1, 3)}),
    ("O B-ORG I-ORG I-ORG", {("ORG", 1, 4)}),
    ("B-X-Y I-X-Y", {("X-Y", 0, 2)}),
]
ILLEGAL = [
    ("I-PER I-PER", {("PER", 0, 2)}),
    ("O I-PER", {("PER", 1, 2)}),
    ("B-PER I-LOC I-LOC", {("PER", 0, 1), ("LOC", 1, 3)}),
    ("B-PER I-LOC I-PER", {("PER", 0, 1), ("LOC", 1, 2), ("PER", 2, 3)}),
    ("I-LOC B-LOC O I-LOC", {("LOC", 0, 1), ("LOC", 1, 2), ("LOC", 3, 4)}),
]


@pytest.mark.parametrize(("tags", "expected"), LEGAL + ILLEGAL)
def test_entities(tags: str, expected: set[tuple[str, int, int]]) -> None:
    assert entities(tags.split()) == expected


@pytest.mark.parametrize("tag", ["", "B", "I-", "S-PER", "o", "PER", "O-PER", "B_PER"])
def test_entities_refuses_other_tags(tag: str) -> None:
    with pytest.raises(ValueError, match="expected O, B-TYPE or I-TYPE"):
        entities(["O", tag])


def test_entity_scores_by_hand() -> None:
    gold = [
        ["B-PER", "I-PER", "O", "B-LOC"],
        ["B-LOC", "O", "B-LOC", "O"],
        ["O", "B-ORG"],
    ]
    predicted = [
        ["B-PER", "O", "O", "B-LOC"],  # the person's end is wrong, the place right
        ["I-LOC", "O", "B-PER", "O"],  # the first place right, the second of a wrong type
        ["O", "O"],
    ]
    scores = entity_scores(gold, predicted)
    # Right 2 of 4 predicted and of 5 gold.
    assert (scores.precision, scores.recall, scores.support) == (2 / 4, 2 / 5, 5)
    assert scores.f1 == 4 / 9
    assert list(scores.per_type) == ["LOC", "ORG", "PER"]
    place, organisation, person = scores.per_type.values()
    assert (place.precision, place.recall, place.f1, place.support) == (1.0, 2 / 3, 0.8, 3)
    assert (organisation.precision, organisation.recall, organisation.f1) == (0.0, 0.0, 0.0)
    assert organisation.support == 1
    assert (person.precision, person.recall, person.f1, person.support) == (0.0, 0.0, 0.0, 1)


def test_the_same_span_in_another_sentence_is_not_right() -> None:
    scores = entity_scores([["B-PER"], ["O"]], [["O"], ["B-PER"]])
    assert (scores.precision, scores.recall, scores.f1) == (0.0, 0.0, 0.0)


def test_entity_scores_without_entities() -> None:
    scores = entity_scores([["O"], []], [["O"], []])
    assert (scores.precision, scores.recall, scores.f1, scores.support) == (0.0, 0.0, 0.0, 0)
    assert scores.per_type == {}
    only_predicted = entity_scores([["O"]], [["B-LOC"]])
    assert (only_predicted.precision, only_predicted.per_type["LOC"].support) == (0.0, 0)


def test_entity_scores_refuses_unequal_lengths() -> None:
    with pytest.raises(ValueError, match="found 1, expected 2"):
        entity_scores([["O"], ["O"]], [["O"]])
    with pytest.raises(ValueError, match=r"sentence 1.* found 1, expected 2"):
        entity_scores([["O"], ["O", "O"]], [["O"], ["O"]])


def test_median_cosine_by_hand() -> None:
    a = np.array([[1.0, 0.0], [3.0, 4.0], [2.0, 0.0], [1.0, 1.0]])
    b = np.array([[0.0, 5.0], [4.0, 3.0], [7.0, 0.0], [-2.0, -2.0]])
    # The cosines are 0, 24/25, 1 and -1; the middle two are 0 and 24/25. float64 roundings.
    assert math.isclose(median_cosine(a, b), 12 / 25, rel_tol=1e-15)
    assert math.isclose(median_cosine(a[:3], b[:3]), 24 / 25, rel_tol=1e-15)


def test_median_cosine_takes_tensors_of_any_dtype_and_size() -> None:
    a = torch.tensor([[3.0, 4.0]], dtype=torch.bfloat16, requires_grad=True)
    b = torch.tensor([[3.0, 4.0]], dtype=torch.float16)
    # Small whole numbers are exact in 16 bits; what is left are float64 roundings.
    assert math.isclose(median_cosine(a, b), 1.0, rel_tol=1e-15)
    # In float32 the squares of these would overflow.
    big = np.full((1, 3), 3e38, np.float32)
    assert math.isclose(median_cosine(big, big), 1.0, rel_tol=1e-15)


def test_median_cosine_at_the_edges() -> None:
    assert median_cosine(np.zeros((1, 3)), np.ones((1, 3))) == 0.0
    with pytest.raises(ValueError, match=r"shapes \(2, 3\) and \(1, 3\)"):
        median_cosine(np.zeros((2, 3)), np.zeros((1, 3)))
    with pytest.raises(ValueError, match="N at least 1"):
        median_cosine(np.zeros((0, 3)), np.zeros((0, 3)))
