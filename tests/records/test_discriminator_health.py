"""What is said of a discriminator's accuracy, when, and how often."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fastadv.config import FinetuneConfig
from fastadv.records.discriminator_health import _Interval, diagnose

CONFIG = FinetuneConfig(batch_size=32).resolved("classification")
EVERY = 10
Records = list[dict[str, Any]]


def run(accuracies: Sequence[float], seed: int | None = None, every: int = EVERY) -> Records:
    """Training records; with a seed, as the accuracy comes out on the texts of `every` batches."""
    generator = None if seed is None else np.random.default_rng(seed)
    texts = 2 * CONFIG.batch_size * every
    found: Records = []
    for number, accuracy in enumerate(accuracies, 1):
        seen = accuracy if generator is None else generator.binomial(texts, accuracy) / texts
        found.append({"kind": "train", "step": number * every, "discriminator_accuracy": seen})
    return found


def said(records: Records, config: FinetuneConfig = CONFIG) -> list[tuple[int, str]]:
    """What a run prints: diagnose after each training record."""
    ends = [n for n, record in enumerate(records, 1) if record["kind"] == "train"]
    messages = [(records[end - 1]["step"], diagnose(records[:end], config)) for end in ends]
    return [(step, message) for step, message in messages if message is not None]


def ramp(start: float, stop: float, count: int) -> list[float]:
    return list(np.linspace(start, stop, count))


@pytest.mark.parametrize("seed", range(10))
def test_a_discriminator_that_only_guesses(seed: int) -> None:
    ((step, message),) = said(run([0.5] * 100, seed))
    # Not before the 100 steps it is given to learn in and the 100 of a window.
    assert 200 <= step <= 300
    assert "no better than guessing and never was" in message
    assert f"in steps {step - 99} to {step}. " in message and "of 6,400 texts right" in message
    assert "Raise lr_discriminator (now 5e-05)" in message
    assert "lower lr_generator (now 2e-08)" in message
    assert "unlabeled texts are in the languages they are named for, not in en" in message


@pytest.mark.parametrize("seed", range(10))
def test_a_discriminator_that_is_always_right(seed: int) -> None:
    ((step, message),) = said(run([0.999] * 100, seed))
    assert step == 400, "languages start far apart: not news before step 300 and a window"
    assert re.search(r"hardly ever wrong: (99\.\d|100\.0)% of 6,400 texts", message)
    assert "letter case, spacing" in message and "raise lr_generator (now 2e-08)" in message


@pytest.mark.parametrize("accuracy", [0.57, 0.6, 0.8, 0.97])
@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_said_of_a_discriminator_at_work(accuracy: float, seed: int) -> None:
    assert said(run([accuracy] * 200, seed)) == []


@pytest.mark.parametrize("accuracies", [
    ramp(0.5, 0.95, 60),
    [*ramp(0.5, 0.55, 15), *ramp(0.55, 0.9, 45)],
    [*[0.5] * 14, *[0.7] * 40],
    [*[0.5] * 19, 0.9, *[0.7] * 40],
    [*[1.0] * 36, *ramp(1.0, 0.6, 20)],
    [0.5] * 19,
    [1.0] * 39,
], ids=range(7))  # fmt: skip
def test_nothing_is_said_too_early_or_of_one_on_its_way(accuracies: list[float]) -> None:
    assert said(run(accuracies)) == []


def test_language_that_was_learned_and_forgotten() -> None:
    """The method's aim, and said as such; not as a discriminator that never learned."""
    ((step, message),) = said(run([*[0.85] * 30, *ramp(0.85, 0.5, 30), *[0.5] * 60], seed=1))
    assert step > 600
    assert "told the languages apart earlier and now only guesses" in message
    assert "this is what the method is for" in message and "median cosine" in message
    # Learned in the first steps, before the window may begin, and soon forgotten.
    ((_, message),) = said(run([0.55, 0.85, 0.8, 0.6, *[0.5] * 60], seed=1))
    assert "told the languages apart earlier" in message


def test_one_lucky_record_is_not_learning() -> None:
    records = run([*[0.5] * 3, 0.68, *[0.5] * 40])
    ((_, message),) = said(records)
    assert "never was" in message


@pytest.mark.parametrize("seed", range(5))
def test_a_discriminator_that_is_fooled(seed: int) -> None:
    """Hovering around the border of two verdicts, it is told once."""
    ((_, message),) = said(run([0.44] * 60 + [0.46, 0.5, 0.49] * 30, seed))
    assert "wrong more often than right" in message and "runs away" in message


def test_each_state_is_told_once_and_a_new_one_anew() -> None:
    records = run([*[0.5] * 30, *[0.9] * 30, *[0.5] * 30, *[0.9] * 30, *[0.5] * 40])
    first, second = said(records)
    assert "never was" in first[1] and "earlier" in second[1]
    # A resumed run has the records before its checkpoint and asks about those after it alone.
    for checkpoint in (100, 300, first[0], second[0] - EVERY):
        resumed = range(checkpoint // EVERY, len(records))
        again = [diagnose(records[: n + 1], CONFIG) for n in resumed]
        told = [message for message in again if message is not None]
        assert told == [m for step, m in (first, second) if step > checkpoint]


def test_other_records_do_not_count() -> None:
    records = run([0.5] * 40)
    mixed: Records = []
    for record in records:
        mixed += [record, {"kind": "eval", "step": record["step"], "test": {}}]
        mixed.append({"kind": "warning", "step": record["step"], "message": "words"})
    assert said(mixed) == said(records) != []
    assert diagnose(mixed[:60], CONFIG) is None, "asked again after the evaluation of step 200"


def test_a_run_without_discriminator() -> None:
    assert diagnose([], CONFIG) is None
    records = [{"kind": "train", "step": s, "loss_task": 1.0} for s in range(10, 900, 10)]
    assert said(records) == []


def test_small_batches_need_more_steps() -> None:
    """A window is counted in texts too: two batches of 2 say nothing."""
    small = replace(CONFIG, batch_size=1)
    ((step, message),) = said(run([0.5] * 300), small)
    # 20 texts a record: 103 records make a stretch of at least 2,048.
    assert step == 100 + 2 * 103 * EVERY
    assert "4,120 texts" in message


@pytest.mark.parametrize(("every", "step"), [(1, 200), (7, 217), (100, 300), (1000, 3000)])
def test_any_interval_of_records(every: int, step: int) -> None:
    ((found, _),) = said(run([0.5] * (4000 // every if every > 1 else 300), every=every))
    assert found == step


def test_interval_by_hand() -> None:
    # Wilson's interval of 0 in 8 (half of 16 texts) at z = 2: 0 to 4 / (8 + 4).
    low, high = _Interval(0, 1, 16, 0.0).bounds()
    assert (low, high) == (pytest.approx(0, abs=1e-15), pytest.approx(1 / 3))
    # Of 4 in 8: the centre stays 1/2, the half width is 2 sqrt(1/32 + 1/64) / 1.5.
    low, high = _Interval(0, 1, 16, 0.5).bounds()
    width = 2 * (1 / 32 + 1 / 64) ** 0.5 / 1.5
    assert (low, high) == (pytest.approx(0.5 - width), pytest.approx(0.5 + width))


def test_false_alarms_are_rare() -> None:
    """At 55%, the border, over 2,000 steps each: the docstring's odds leave few of 40 runs."""
    alarms = sum(bool(said(run([0.55] * 200, seed))) for seed in range(40))
    assert alarms <= 3


def test_the_number_of_texts_is_the_records_own() -> None:
    # By a budget of word pieces batches are of any size, whatever batch_size says.
    records = [record | {"discriminator_texts": 500} for record in run([0.5] * 40)]
    ((_, message),) = said(records)
    assert "50.0% of 5,000 texts right" in message
    few = [record | {"discriminator_texts": 2} for record in records]
    assert said(few) == []
