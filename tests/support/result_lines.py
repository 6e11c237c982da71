"""Lines of results.jsonl whose numbers are known."""

from __future__ import annotations

from typing import Any

from fastadv.experiments.results import Results


def line(condition: str, seed: int, *steps: tuple[float, float, float, float]) -> dict[str, Any]:
    """Of English dev, German test and information at each step, with the alignment after it."""
    evaluations = [
        {
            "step": 10 * number,
            "dev": {"accuracy": dev},
            "test": {"en": {"accuracy": dev / 2}, "de": {"accuracy": test}},
            "observed": {
                "de": {"information": information, "alignment": alignment, "probe_accuracy": 0.9}
                | ({"discriminator_accuracy": 0.75} if condition == "adversarial" else {})
            },
        }
        for number, (dev, test, information, alignment) in enumerate(steps)
    ]
    return {
        "run": f"{condition}-{seed}", "experiment": "made up", "model": "tiny",
        "task": "classification", "condition": condition, "source": "en", "languages": ["de"],
        "seed": seed, "evaluations": evaluations,
        "averaged": {"evaluations": 1, "test": {"en": {"accuracy": 0.5}, "de": {"accuracy": 0.4}}},
    }  # fmt: skip


LINES = [
    line("baseline", 0, (0.9, 0.9, 0, 0.5), (0.8, 0.60, 1, 0.6), (0.7, 0.70, 2, 0.7)),
    line("baseline", 1, (0.9, 0.9, 0, 0.5), (0.8, 0.64, 1, 0.6), (0.7, 0.50, 2, 0.9)),
    line("adversarial", 0, (0.9, 0.9, 0, 0.5), (0.6, 0.75, 3, 0.6), (0.8, 0.65, 2, 0.9)),
    line("adversarial", 1, (0.9, 0.9, 0, 0.5), (0.6, 0.30, 3, 0.6), (0.8, 0.66, 2, 0.9)),
]
RESULTS = Results(LINES)
