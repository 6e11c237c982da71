"""A task's class shares, and outputs matched to them."""

from __future__ import annotations

import numpy as np
import pytest
import tiny

from fastadv.data import Document, Sentence
from fastadv.tasks.class_shares import ClassShares, matched_outputs
from fastadv.tasks.registry import task_of

LABELS = ("games", "music", "news")


def documents() -> ClassShares:
    return ClassShares(task_of("classification"), LABELS, {"games": 60, "music": 30, "news": 10})


def entities() -> ClassShares:
    task = task_of("ner")
    return ClassShares(task, tiny.TAGS, {"O": 90, "PER": 8, "LOC": 2})


def rows(count: int, classes: int, seed: int = 0) -> np.ndarray:
    raised = np.exp(2 * np.random.default_rng(seed).normal(size=(count, classes)))
    return (raised / raised.sum(axis=1, keepdims=True)).astype(np.float32)


def test_named_shares() -> None:
    known = documents()
    assert known.names == LABELS
    assert known.named("english") == known.english == {"games": 0.6, "music": 0.3, "news": 0.1}
    assert [*known.named("equal").values()] == pytest.approx([1 / 3] * 3)
    assert [*known.named("halfway").values()] == pytest.approx(
        [0.46667, 0.31667, 0.21667], abs=1e-4
    )
    with pytest.raises(ValueError, match="found the shares 'even', expected one of english"):
        known.named("even")


def test_given_and_counted_shares() -> None:
    known = documents()
    assert known.known({"news": 0.5, "games": 0.5}) == {"games": 0.5, "music": 0.0, "news": 0.5}
    with pytest.raises(ValueError, match="found a share of 'sport', expected classes among games"):
        known.known({"sport": 1.0})
    with pytest.raises(ValueError, match="sum to 0.9, expected 1"):
        known.known({"games": 0.9})
    found = known.counted([Document("x", "music")] * 3 + [Document("y", "news")])
    assert found == pytest.approx({"games": 0.6 / 5, "music": 3.3 / 5, "news": 1.1 / 5})
    with pytest.raises(ValueError, match="found the class 'sport' in labelled texts"):
        known.counted([Document("x", "sport")])


def test_documents_are_matched() -> None:
    known, outputs = documents(), rows(300, 3)
    wanted = {"games": 0.2, "music": 0.2, "news": 0.6}
    matched = known.match(outputs, wanted)
    assert matched.shares == wanted
    mean = np.asarray(matched_outputs(outputs, matched.constants)).mean(axis=0)
    np.testing.assert_allclose(mean, [0.2, 0.2, 0.6], atol=2e-4)


def test_entities_are_matched_by_type_and_words_outside_keep_their_mean() -> None:
    """B- and I- of a type share a constant; how many entities there are is the model's to say."""
    known = entities()
    assert known.names == ("PER", "LOC") and known.english == {"PER": 0.8, "LOC": 0.2}
    outputs = [rows(n, 5, seed=n) for n in (3, 40, 7)]
    outputs[1][5] = np.nan  # a word that the model never saw
    matched = known.match(outputs, {"PER": 0.3, "LOC": 0.7})
    before = np.nanmean(np.concatenate(outputs), axis=0)
    found = matched_outputs(outputs, matched.constants)
    assert [len(one) for one in found] == [3, 40, 7] and np.isnan(found[1][5]).all()
    after = np.nanmean(np.concatenate(list(found)), axis=0)
    assert after[0] == pytest.approx(before[0], abs=2e-4)
    inside = after[1:].sum()
    assert after[1:3].sum() / inside == pytest.approx(0.3, abs=1e-3)
    tags = dict(zip(tiny.TAGS, matched.constants, strict=True))
    assert tags["B-PER"] == tags["I-PER"] != tags["B-LOC"] == tags["I-LOC"]


def test_what_labelled_text_holds() -> None:
    task = task_of("ner")
    sentence = Sentence(("Anna", "Berg", "left", "Oslo"), ("B-PER", "I-PER", "O", "B-LOC"))
    assert task.counts([sentence]) == {"PER": 2, "O": 1, "LOC": 1}
    assert entities().missing([("O", "B-PER")]) == ["LOC"]
    assert entities().missing([("O", "B-PER"), ("I-LOC",)]) == []
    assert documents().missing(["games", "news"]) == ["music"]


def test_shares_are_estimated_over_all_classes_and_given_without_those_apart() -> None:
    known = entities()
    draw = np.random.default_rng(0)

    def said(shares: list[float], words: int) -> tuple[list[np.ndarray], list[list[str]]]:
        gold = draw.choice(5, size=words, p=shares)
        outputs = np.full((words, 5), 0.01, np.float32)
        outputs[np.arange(words), gold] = 0.96
        return [outputs], [[tiny.TAGS[k] for k in gold]]

    dev, gold = said([0.8, 0.08, 0.08, 0.02, 0.02], 2000)
    target, _ = said([0.8, 0.02, 0.02, 0.08, 0.08], 2000)
    shares, estimate = known.estimated(dev, gold, target)
    assert len(estimate.shares) == 3 and estimate.shares[0] == pytest.approx(0.8, abs=0.05)
    assert shares == pytest.approx({"PER": 0.2, "LOC": 0.8}, abs=0.06)


def test_without_text_or_counts_nothing_is_matched() -> None:
    with pytest.raises(ValueError, match="found no text to match predictions on"):
        documents().match(rows(0, 3), {"games": 1.0})
    with pytest.raises(ValueError, match="found no count of the classes in training"):
        ClassShares(task_of("classification"), LABELS, {}).named("english")
