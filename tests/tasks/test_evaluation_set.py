"""Scores and reports of whole data sets, against the predictions they are made of."""

from __future__ import annotations

import numpy as np
import pytest
import tiny

from fastadv import AdversarialFinetuner, FinetuneConfig
from fastadv.config import SCORE
from fastadv.tasks.metrics import DocumentReport, EntityScores, document_report, entity_scores

pytestmark = pytest.mark.usefixtures("one_thread")


def finetuner(task: str, labels: tuple[str, ...]) -> AdversarialFinetuner:
    config = FinetuneConfig(max_length=32, window_overlap=8, eval_batch_size=3, precision="fp32")
    return AdversarialFinetuner(
        tiny.tiny_bert(), task, labels, config, tokenizer=tiny.tiny_tokenizer(), device="cpu"
    )


def test_documents() -> None:
    labels = ("music", "never", "weather")
    tuner = finetuner("classification", labels)
    data = tuner.evaluation_set(tiny.ENGLISH)
    report = data.report(data.outputs(tuner.model, 3), labels)
    assert isinstance(report, DocumentReport)
    predicted = [p.label for p in tuner.predict([text for text, _ in tiny.ENGLISH])]
    expected = document_report([label for _, label in tiny.ENGLISH], predicted, labels)
    np.testing.assert_array_equal(report.confusion, expected.confusion)
    assert report.per_class == expected.per_class and list(report.per_class) == list(labels)
    # All labels of the model count, a class that the data set lacks as 0.
    f1 = [scores.f1 for scores in expected.per_class.values()]
    assert report.macro_f1 == sum(f1) / 3
    scores = tuner.score(data)
    assert scores == {"accuracy": expected.accuracy, "macro_f1": expected.macro_f1}
    assert scores["accuracy"] > 0 and SCORE["classification"] in scores


def test_entities() -> None:
    tuner = finetuner("ner", tiny.TAGS)
    data = tuner.evaluation_set(tiny.SENTENCES)
    report = data.report(data.outputs(tuner.model, 3), tiny.TAGS)
    assert isinstance(report, EntityScores)
    predicted = [p.tags for p in tuner.predict([words for words, _ in tiny.SENTENCES])]
    assert report == entity_scores([tags for _, tags in tiny.SENTENCES], predicted)
    assert report.support == 6 and set(report.per_type) >= {"PER", "LOC"}
    scores = tuner.score(data)
    assert scores == {"precision": report.precision, "recall": report.recall, "f1": report.f1}
    assert SCORE["ner"] in scores
