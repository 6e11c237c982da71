"""The numbers of Keung, Lu and Bhardwaj, EMNLP 2019, to be shown next to ours."""

from __future__ import annotations

WITHOUT, WITH = "BERT En-labels (paper)", "BERT En-labels + Adv. (paper)"

SCORES: dict[str, dict[str, dict[str, float]]] = {
    "mldoc": {
        WITHOUT: {
            "en": 94.2, "de": 79.8, "es": 72.1, "fr": 73.5, "it": 63.7, "ja": 72.8, "ru": 73.7,
            "zh": 76.0,
        },
        WITH: {
            "de": 88.1, "es": 80.8, "fr": 85.7, "it": 72.3, "ja": 76.8, "ru": 77.4, "zh": 84.7,
        },
    },
    "conll": {
        WITHOUT: {"en": 91.1, "de": 68.6, "es": 75.0, "nl": 77.5},
        WITH: {"de": 71.9, "es": 74.3, "nl": 77.6},
    },
}  # fmt: skip
"""Tables 1 (accuracy) and 2 (F1), in per cent: means of 4 runs."""

ALIGNMENT: dict[str, dict[str, float]] = {
    "Without Adv. (paper)": {
        "de": 0.74, "es": 0.72, "fr": 0.73, "it": 0.73, "ja": 0.65, "ru": 0.72, "zh": 0.69,
    },
    "With Adv. (paper)": {
        "de": 0.94, "es": 0.94, "fr": 0.94, "it": 0.92, "ja": 0.84, "ru": 0.89, "zh": 0.91,
    },
}  # fmt: skip
"""Table 3: median cosine of MLDoc's English training documents and their machine translations."""
