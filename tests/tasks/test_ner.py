"""What a model says of a sentence, in words and as JSON."""

from __future__ import annotations

import json

from fastadv import SentencePrediction


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
