"""The warning of a task that is not learned: when it comes, and that no run that learns gets it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from fastadv import AdversarialFinetuner, FinetuneConfig, samples
from fastadv.batches.tokenized import TokenizedDataset
from fastadv.experiments.plan_file import read_plan
from fastadv.experiments.results import Results
from fastadv.records import health
from fastadv.records.task_health import diagnose

RESULTS = Path(__file__).parents[2] / "docs" / "results"
# Entropy of the English training labels, in nats an example: of four classes, and of seven tags
# summed over a sentence's words.
GUESSING = {"debian_topics": 1.3204, "universal_ner": 4.6551}


def config(**changes: Any) -> FinetuneConfig:
    return FinetuneConfig(**changes).resolved("classification")


def records(loss: Any, steps: int, every: int = 10) -> list[dict[str, Any]]:
    return [
        {"kind": "train", "step": step, "loss_task": loss(step)}
        for step in range(every, steps + 1, every)
    ]


def said_at(found: list[dict[str, Any]], settings: FinetuneConfig) -> list[int]:
    """Steps at which a warning comes, of a run over four classes that are equally common."""
    return [
        found[end - 1]["step"]
        for end in range(1, len(found) + 1)
        if diagnose(found[:end], settings, math.log(4))
    ]


@pytest.mark.parametrize(
    ("settings", "every", "step"),
    [
        ({"steps": 60}, 10, 30),
        ({"steps": 200}, 10, 100),
        ({"steps": 200, "warmup_steps": 50}, 10, 150),
        ({"steps": 2000}, 10, 500),
        ({"steps": 2000}, 1, 500),
        # The first hundred steps hold the beginning: they decide nothing.
        ({"steps": 200}, 100, 200),
        ({"steps": 60}, 25, 50),
    ],
)
def test_it_comes_once_and_at_half_of_the_run(
    settings: dict[str, Any], every: int, step: int
) -> None:
    found = records(lambda _: 1.4, settings["steps"], every)
    assert said_at(found, config(**settings)) == [step]


def test_a_run_of_few_steps_is_not_judged() -> None:
    assert said_at(records(lambda _: 1.4, 20), config(steps=20)) == []


@pytest.mark.parametrize(("loss", "warns"), [(1.26, True), (1.24, False)])
def test_nine_tenths_of_guessing_is_the_limit(loss: float, warns: bool) -> None:
    """0.9 log 4 is 1.248."""
    assert bool(said_at(records(lambda _: loss, 100), config(steps=100))) == warns


def test_a_task_that_is_not_to_be_learned_is_no_news() -> None:
    assert said_at(records(lambda _: 1.4, 100), config(steps=100, lr_task=0.0)) == []


def test_what_counts_is_the_last_twenty_steps() -> None:
    late = records(lambda step: 1.4 if step <= 30 else 0.9, 100)
    assert said_at(late, config(steps=100)) == []
    # A run that goes wrong later is not one that never learned.
    lost = records(lambda step: 0.9 if step <= 50 else 1.4, 100)
    assert said_at(lost, config(steps=100)) == []


def test_it_names_the_rate_and_what_to_do() -> None:
    found = records(lambda _: 1.402, 60)[:3]
    assert diagnose(found, config(steps=60), math.log(4)) == (
        "the task is hardly being learned: its loss is 1.402 in steps 11 to 30, and guessing by "
        "the labels' shares costs 1.386. Raise lr_task (now 2e-06), tenfold at first: an encoder "
        "smaller than multilingual BERT needs more than the paper's rate. If a run without the "
        "adversary learns at this rate, lower lr_generator (now 2e-08) instead."
    )
    alone = diagnose(found, config(steps=60, adversarial=False), math.log(4))
    assert alone is not None and alone.endswith("the paper's rate.")


def test_guessing_costs_the_entropy_of_the_labels() -> None:
    offsets = np.arange(5)
    tokens = {"input_ids": offsets[:4], "token_offsets": offsets, "example_offsets": offsets}
    documents = TokenizedDataset(**tokens, labels=np.array([2, 0, 2, 2]))
    expected = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert documents.guessing_loss == pytest.approx(expected)
    # Three words a sentence.
    words = TokenizedDataset(**tokens, word_labels=np.array([0, 0, 0, 1] * 3))
    assert words.guessing_loss == pytest.approx(3 * expected)
    with pytest.raises(ValueError, match="found no labels, expected labelled examples"):
        TokenizedDataset(**tokens).guessing_loss  # noqa: B018


@pytest.mark.parametrize("folder", sorted(RESULTS.glob("*/plan.yaml")), ids=lambda p: p.parent.name)
def test_no_committed_run_would_have_warned(folder: Path) -> None:
    plan, results = read_plan(folder), Results.read(folder.parent / "results.jsonl")
    settings = plan.config.resolved(plan.task)
    for line in results.lines:
        found = [{"kind": "train", **record} for record in line["training"]]
        ends = range(1, len(found) + 1)
        guessing = GUESSING[plan.name]
        assert [end for end in ends if diagnose(found[:end], settings, guessing)] == []
        # They are not silent because nothing is judged.
        assert any(diagnose(found[:end], settings, guessing / 100) for end in ends)


def fit(**changes: Any) -> list[str]:
    """Warnings of a run of fastadv-mini on sample documents."""
    train = samples.documents("software", "en.train")
    settings = FinetuneConfig(steps=40, batch_size=8, max_length=32, adversarial=False,
                              eval_every=0, precision="fp32", **changes)  # fmt: skip
    labels = ("GAMES", "MEDIA", "NET", "SCIENCE")
    tuner = AdversarialFinetuner("fastadv-mini", labels=labels, config=settings, device="cpu")
    return [r["message"] for r in tuner.fit(train, quiet=True).records if r["kind"] == "warning"]


def test_fastadv_mini_warns_at_the_papers_rates_and_not_at_its_own() -> None:
    assert fit() == []
    (message,) = fit(recipe="paper")
    assert message.startswith("the task is hardly being learned: its loss is 1.4")
    assert "Raise lr_task (now 2e-06)" in message


def test_a_resumed_run_says_it_once(tmp_path: Path) -> None:
    def tuner() -> AdversarialFinetuner:
        settings = FinetuneConfig(steps=40, batch_size=2, max_length=16, checkpoint_every=35,
                                  eval_every=0, lr_task=1e-9, adversarial=False)  # fmt: skip
        return AdversarialFinetuner(
            tiny.tiny_bert(), labels=tiny.LABELS, config=settings, device="cpu",
            tokenizer=tiny.tiny_tokenizer(),
        )  # fmt: skip

    folder = {"output_dir": tmp_path, "quiet": True}
    first = tuner().fit(tiny.ENGLISH, **folder).records
    again = tuner().fit(tiny.ENGLISH, **folder, resume=True).records
    for found in (first, again):
        assert [r["step"] for r in found if r["kind"] == "warning"] == [30]


def test_both_diagnoses_are_told() -> None:
    found = [
        {"kind": "train", "step": step, "loss_task": 1.4, "discriminator_accuracy": 0.5}
        for step in range(10, 201, 10)
    ]
    settings = config(steps=400)
    said = health.diagnose(found, settings, math.log(4))
    assert [message.partition(":")[0] for message in said] == [
        "the task is hardly being learned",
        "the discriminator is no better than guessing and never was",
    ]
    assert health.diagnose(found[:3], settings, math.log(4)) == []
