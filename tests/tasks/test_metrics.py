import math
from fractions import Fraction

import numpy as np
import pytest
import sklearn.metrics
import torch
from seqeval.metrics import classification_report
from seqscore.encoding import EncodingError
from seqscore.scoring import score_label_sequences

from fastadv.tasks import metrics
from fastadv.tasks.metrics import (
    EntityScores,
    Scores,
    accuracy,
    confusion_matrix,
    document_report,
    entities,
    entity_scores,
    macro_f1,
    median_cosine,
    retrieval_accuracy,
)

# Two divisions and a product of whole numbers in float64, in another order than ours.
ROUNDINGS = 4 * np.finfo(np.float64).eps


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


def test_document_report_by_hand() -> None:
    report = document_report(["a", "a", "b", "c"], ["a", "b", "b", "a"], ["a", "b", "c"])
    assert (report.accuracy, report.labels) == (0.5, ("a", "b", "c"))
    assert report.macro_f1 == macro_f1(["a", "a", "b", "c"], ["a", "b", "b", "a"], ["a", "b", "c"])
    assert report.confusion.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    assert report.per_class == {
        "a": Scores(0.5, 0.5, 0.5, 2),
        "b": Scores(0.5, 1.0, 2 / 3, 1),
        "c": Scores(0.0, 0.0, 0.0, 1),
    }


@pytest.mark.parametrize("seed", range(20))
def test_document_report_is_that_of_scikit_learn(seed: int) -> None:
    generator = np.random.default_rng(seed)
    labels = ["CCAT", "ECAT", "GCAT", "MCAT", "never"]
    gold, predicted = (list(generator.choice(labels[:4], 37)) for _ in range(2))
    report = document_report(gold, predicted, labels)
    expected = sklearn.metrics.confusion_matrix(gold, predicted, labels=labels)
    assert (report.confusion == expected).all()
    columns = sklearn.metrics.precision_recall_fscore_support(
        gold, predicted, labels=labels, zero_division=0
    )
    for label, *scores in zip(labels, *columns, strict=True):
        same(report.per_class[label], *scores)
    macro = sklearn.metrics.f1_score(
        gold, predicted, labels=labels, average="macro", zero_division=0
    )
    assert math.isclose(report.macro_f1, macro, rel_tol=ROUNDINGS)
    assert report.accuracy == sklearn.metrics.accuracy_score(gold, predicted)


def same(scores: Scores, precision: float, recall: float, f1: float, support: int) -> None:
    assert scores.support == support
    assert math.isclose(scores.precision, precision, rel_tol=ROUNDINGS)
    assert math.isclose(scores.recall, recall, rel_tol=ROUNDINGS)
    assert math.isclose(scores.f1, f1, rel_tol=ROUNDINGS)


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


TYPES = ("PER", "LOC", "ORG-X")
Tags = list[list[str]]


def random_tags(generator: np.random.Generator, lengths: list[int], legal: bool) -> Tags:
    """IOB2 tags; where they need not be legal, I- of any type may stand anywhere."""
    tags = ["O", *(f"{mark}-{kind}" for kind in TYPES for mark in "BI")]
    found = []
    for length in lengths:
        sentence: list[str] = []
        for _ in range(length):
            inside = {f"I-{sentence[-1][2:]}"} if sentence and sentence[-1] != "O" else set()
            allowed = [t for t in tags if not legal or t[0] != "I" or t in inside]
            sentence.append(str(generator.choice(allowed)))
        found.append(sentence)
    return found


def random_predictions(seed: int, legal: bool) -> tuple[Tags, Tags]:
    """Gold and predicted tags of a few sentences that agree on about half of the entities."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, 12, 8).tolist()
    gold = random_tags(generator, lengths, legal)
    predicted = random_tags(generator, lengths, legal)
    for number, sentence in enumerate(gold):
        if generator.random() < 0.3:
            predicted[number] = list(sentence)
        elif not legal:
            kept = generator.random(len(sentence)) < 0.6
            pairs = zip(kept, sentence, predicted[number], strict=True)
            predicted[number] = [a if keep else b for keep, a, b in pairs]
    return gold, predicted


def is_legal(tags: Tags) -> bool:
    return all(
        tag[0] != "I" or before[1:] == tag[1:]
        for sentence in tags
        for before, tag in zip(["O", *sentence], sentence, strict=False)
    )


CASES = [(seed, legal) for legal in (True, False) for seed in range(50)]


def test_random_predictions_hold_what_they_are_for() -> None:
    scores = [entity_scores(*random_predictions(*case)) for case in CASES]
    assert 0.2 < np.mean([s.f1 for s in scores]) < 0.8
    for seed, legal in CASES:
        assert all(is_legal(tags) == legal for tags in random_predictions(seed, legal))


@pytest.mark.parametrize(("seed", "legal"), CASES)
def test_entity_scores_are_those_of_seqscore(seed: int, legal: bool) -> None:
    """seqscore refuses illegal sequences unless told to repair them as conlleval reads them."""
    gold, predicted = random_predictions(seed, legal)
    if not legal:
        with pytest.raises(EncodingError):
            score_label_sequences(predicted, gold, "BIO", repair=None)
    expected, _ = score_label_sequences(predicted, gold, "BIO", repair="conlleval")
    scores = entity_scores(gold, predicted)
    same(scores, expected.precision, expected.recall, expected.f1, expected.total_ref)
    assert list(scores.per_type) == sorted(expected.type_scores)
    for kind, one in expected.type_scores.items():
        same(scores.per_type[kind], one.precision, one.recall, one.f1, one.total_ref)


@pytest.mark.parametrize(("seed", "legal"), CASES)
def test_entity_scores_are_those_of_seqeval(seed: int, legal: bool) -> None:
    """seqeval reads illegal sequences as conlleval does unless it is told to be strict."""
    gold, predicted = random_predictions(seed, legal)
    scores = entity_scores(gold, predicted)
    report = classification_report(gold, predicted, output_dict=True, zero_division=0)
    same(scores, *report.pop("micro avg").values())
    for average in ("macro avg", "weighted avg"):
        del report[average]
    assert list(scores.per_type) == list(report)
    for kind, expected in report.items():
        same(scores.per_type[kind], *expected.values())


def test_illegal_sequences_are_not_dropped() -> None:
    """seqeval's strict mode and seqscore's "discard" would count none of these as right."""
    gold = [["B-PER", "I-PER", "O", "B-LOC"]]
    scores = entity_scores(gold, [["I-PER", "I-PER", "O", "I-LOC"]])
    assert scores == EntityScores(
        1.0, 1.0, 1.0, 2, {"LOC": Scores(1.0, 1.0, 1.0, 1), "PER": Scores(1.0, 1.0, 1.0, 1)}
    )


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


def test_retrieval_accuracy_by_hand() -> None:
    a = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    b = np.array([[3.0, 1.0], [1.0, 9.0], [1.0, 5.0]])
    # Cosines: row 0 nearest b0, row 1 nearest b1, row 2 (45 degrees) nearest b0 (18 degrees).
    assert retrieval_accuracy(a, b) == 2 / 3
    # The other way b0 is nearest a2 (45 against 18 degrees away: a0), b1 a1, and b2 a1.
    assert retrieval_accuracy(b, a) == 2 / 3
    assert retrieval_accuracy(np.array([[5.0]]), np.array([[-1.0]])) == 1.0


def test_retrieval_accuracy_goes_one_way() -> None:
    a = np.array([[1.0, 0.0], [1.0, 0.1]])
    b = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert (retrieval_accuracy(a, b), retrieval_accuracy(b, a)) == (0.5, 1.0)


@pytest.mark.parametrize("chunk", [1, 50, 2**24])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_retrieval_accuracy_in_chunks(
    chunk: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "_CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(23, 7, generator=generator).to(dtype)
    b = (a.float() + torch.randn(23, 7, generator=generator)).to(dtype)
    cosines = torch.nn.functional.cosine_similarity(a.double()[:, None], b.double()[None], dim=-1)
    expected = (cosines.argmax(dim=1) == torch.arange(23)).double().mean().item()
    assert 0.3 < expected < 0.9
    assert retrieval_accuracy(a, b) == expected


@pytest.mark.parametrize("size", [3, 768])
def test_ties_count_against(size: int) -> None:
    generator = np.random.default_rng(0)
    a = generator.standard_normal((40, size))
    assert retrieval_accuracy(a, a) == 1.0
    a[7] = 3 * a[31]
    # Rows 7 and 31 cannot be told apart, however the product of the matrices rounds.
    assert retrieval_accuracy(a, a) == 38 / 40
    assert retrieval_accuracy(np.ones((5, size)), np.ones((5, size))) == 0.0
    assert retrieval_accuracy(np.zeros((5, size)), np.zeros((5, size))) == 0.0


@pytest.mark.parametrize("measure", [median_cosine, retrieval_accuracy])
def test_embeddings_that_are_no_pairs_are_refused(measure) -> None:
    with pytest.raises(ValueError, match=r"shapes \(2, 3\) and \(1, 3\)"):
        measure(np.zeros((2, 3)), np.zeros((1, 3)))
    broken = np.ones((3, 2))
    broken[1, 0] = np.nan
    with pytest.raises(ValueError, match="embedding 1: found NaN or infinity, expected finite"):
        measure(np.ones((3, 2)), broken)
