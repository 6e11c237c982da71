"""The score that a model must beat."""

from __future__ import annotations

import numpy as np
import pytest
import tiny

from fastadv import AdversarialFinetuner, FinetuneConfig
from fastadv.batches.tokenized import TokenizedDataset
from fastadv.tasks.classification import Classification
from fastadv.tasks.evaluation_set import EvaluationSet
from fastadv.tasks.majority import majority_class, majority_record, majority_scores
from fastadv.tasks.ner import NamedEntities


def test_it_is_the_commonest_and_the_first_of_equals() -> None:
    documents = Classification()
    assert majority_class(documents, {"a": 1, "b": 1, "c": 2}, "abc") == "c"
    assert majority_class(documents, {"c": 2, "b": 2}, "abc") == "b"
    assert majority_class(documents, {}, "abc") is None
    assert majority_class(NamedEntities(), {"PER": 2, "O": 9}, ("O", "B-PER")) is None


def test_its_score_is_that_of_predicting_it_everywhere() -> None:
    offsets = np.arange(5)
    texts = TokenizedDataset(offsets[:4], offsets, offsets)
    data = EvaluationSet(Classification(), texts, ["a", "b", "b", "c"])
    assert majority_scores(data, None, "abc") is None
    # Of b two in four are right: F1 2/3, and 0 of the two others.
    found = majority_scores(data, "b", "abc")
    assert found == {"accuracy": 0.5, "macro_f1": pytest.approx(2 / 9)}
    assert majority_record(None, "abc", data, {"x": data}) is None
    assert majority_record("b", "abc", None, {"x": data}) == {"label": "b", "test": {"x": found}}
    assert majority_record("b", "abc", data, {}) == {"label": "b", "dev": found, "test": {}}


@pytest.mark.usefixtures("one_thread")
def test_fit_tells_it_and_names_have_none() -> None:
    def fit(task: str, labels: tuple[str, ...], data: list) -> AdversarialFinetuner:
        config = FinetuneConfig(steps=1, max_length=16, batch_size=2)
        tuner = AdversarialFinetuner(
            tiny.tiny_bert(), task, labels, config, tokenizer=tiny.tiny_tokenizer(), device="cpu"
        )
        assert tuner.majority is None
        found.append(tuner.fit(data, {"de": tiny.GERMAN}, test={"x": data}, quiet=True).majority)
        return tuner

    found: list = []
    uneven = [pair for pair in tiny.ENGLISH if pair[1] == "music"][:1] + [
        pair for pair in tiny.ENGLISH if pair[1] == "weather"
    ]
    assert fit("classification", tiny.LABELS, uneven).majority == "weather"
    assert found[0]["label"] == "weather" and found[0]["test"]["x"]["accuracy"] == 0.8
    assert fit("ner", tiny.TAGS, tiny.SENTENCES).majority is None
    assert found[1] is None
