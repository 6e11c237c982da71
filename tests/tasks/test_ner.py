"""What a model says of a sentence and its words."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny

from fastadv import AdversarialFinetuner, FinetuneConfig, Sentence, SentencePrediction
from fastadv.selection import target_signals


def test_places_of_entities() -> None:
    words, tags = ("In", "New", "York", "?"), ("O", "B-LOC", "I-LOC", "B-PER")
    prediction = SentencePrediction(words, tags, (0.9, 0.5, 0.75, float("nan")))
    assert json.loads(json.dumps(prediction.as_json(), allow_nan=False)) == {
        "text": "In New York ?",
        "words": list(words),
        "tags": list(tags),
        "entities": [
            {
                "type": "LOC",
                "text": "New York",
                "start": 1,
                "end": 3,
                "start_char": 3,
                "end_char": 11,
                "probability": 0.625,
            },
            {
                "type": "PER",
                "text": "?",
                "start": 3,
                "end": 4,
                "start_char": 12,
                "end_char": 13,
                # JSON has no NaN.
                "probability": None,
            },
        ],
    }


@pytest.mark.usefixtures("one_thread")
def test_words_that_the_model_never_sees_are_no_predictions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = FinetuneConfig(max_length=16, precision="fp32")
    tuner = AdversarialFinetuner(
        tiny.tiny_bert(), "ner", tiny.TAGS, config, tokenizer=tiny.tiny_tokenizer(), device="cpu"
    )
    prepare, sentence = tuner.preparation, Sentence(("Anna", "\u200b", "left"))
    task = prepare.task
    rows = task.rows(task.outputs(tuner.model, prepare.tokenized([sentence]), 2))
    assert rows.shape == (2, len(tiny.TAGS)) and not np.isnan(rows).any()
    # Nor are more of them looked at than criteria have time for.
    signals = target_signals.TargetSignals(prepare, {"de": [sentence] * 5}, 2)
    assert len(signals.probabilities(tuner.model, "de")) == 10
    monkeypatch.setattr(target_signals, "PREDICTIONS", 3)
    assert len(signals.probabilities(tuner.model, "de")) == 3
