"""Text that differs from English in length, or is of two scripts, is told before the first step."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import tiny

from fastadv import AdversarialFinetuner, FinetuneConfig
from fastadv.data import DataFile
from fastadv.run.unlike_text import LEAST_TEXTS, OTHER_SCRIPT

pytestmark = pytest.mark.usefixtures("one_thread")

LABELED = tiny.ENGLISH * 3
LIKE = [text for text, _ in LABELED]
LONG = [f"{text} {text} {text} {text}" for text in LIKE]
# The tiny tokenizer has one piece for a word of letters that it does not know: where scripts alone
# are to differ, texts are cut at `SHORT` pieces.
SHORT = 6
RUSSIAN = ["дождь идёт над тихой гаванью", "скрипка отвечает виолончели в тёмном зале"] * 10
WITH_ENGLISH = [*RUSSIAN[:17], *["rain falls on the harbour"] * 3]


def finetuner(**changes: Any) -> AdversarialFinetuner:
    settings = {"steps": 2, "batch_size": 3, "max_length": 64, "log_every": 1, "eval_every": 0}
    return AdversarialFinetuner(
        tiny.tiny_bert(),
        "classification",
        tiny.LABELS,
        FinetuneConfig(**(settings | changes)),
        tokenizer=tiny.tiny_tokenizer(),
        device="cpu",
    )


def warnings(unlabeled: Any, output: Path | None = None, **changes: Any) -> list[dict[str, Any]]:
    tuner = finetuner(**changes)
    history = tuner.fit(
        LABELED, unlabeled, output_dir=output, resume=output is not None, quiet=True
    )
    return [r for r in history.records if r["kind"] == "warning"]


def median(texts: list[str]) -> float:
    tokenizer = tiny.tiny_tokenizer()
    return statistics.median(min(64, len(tokenizer(text)["input_ids"])) for text in texts)


def test_longer_and_shorter_text_is_told() -> None:
    english = median(LIKE)
    (said,) = warnings({"de": LONG, "fr": LIKE})
    assert said["step"] == 0
    assert said["message"].startswith(
        f"unlabelled texts of de have {median(LONG):g} word pieces in the median and those of "
        f"en {english:g}, "
    )
    assert f"max_length near {english:g}" in said["message"]
    (said,) = warnings({"de": ["rain", "nebel"] * 10})
    short = median(["rain", "nebel"])
    assert f"unlabelled texts of de have {short:g} word pieces" in said["message"]
    assert f"max_length near {short:g}" in said["message"]


def test_of_few_texts_nothing_is_said() -> None:
    assert warnings({"de": LONG[: LEAST_TEXTS - 1]}) == []
    assert warnings({"de": LONG[:LEAST_TEXTS]}) != []
    assert warnings({"ru": WITH_ENGLISH[1:]}, max_length=SHORT) == []


def test_length_is_that_after_the_cut() -> None:
    assert warnings({"de": LONG}, max_length=12) == []


def test_english_text_without_labels_is_of_the_english_side() -> None:
    """Medians of both sides are then alike."""
    assert warnings({"de": LONG, "en": LONG * 2}) == []


def test_a_text_in_another_script_is_told() -> None:
    assert warnings({"ru": RUSSIAN, "de": LIKE}, max_length=SHORT) == []
    (said,) = warnings({"ru": WITH_ENGLISH}, max_length=SHORT)
    assert said["message"].startswith(
        "of 20 unlabelled texts of ru 15% are not in the script of the others (Cyrillic), most of "
        "them in Latin, "
    )
    tenth = [*RUSSIAN[:18], "rain falls on the harbour", "Η βροχή πέφτει."]
    assert 2 / len(tenth) == OTHER_SCRIPT
    assert warnings({"ru": tenth}, max_length=SHORT) == []


def test_other_words_of_the_source_language_are_not_looked_at() -> None:
    assert warnings({"ru": RUSSIAN, "en": WITH_ENGLISH}, max_length=SHORT) == []


def test_without_the_adversary_nothing_is_said() -> None:
    assert warnings({"de": LONG, "ru": WITH_ENGLISH}, adversarial=False) == []


def test_sentences_of_words_are_looked_at_too() -> None:
    mixed = [["дождь", "идёт"]] * 16 + [["Anna", "Berg"]] * 4
    config = FinetuneConfig(steps=1, batch_size=2, max_length=32)
    tuner = AdversarialFinetuner(
        tiny.tiny_bert(), "ner", tiny.TAGS, config, tokenizer=tiny.tiny_tokenizer(), device="cpu"
    )
    history = tuner.fit(tiny.SENTENCES, {"ru": mixed}, quiet=True)
    messages = [r["message"] for r in history.records if r["kind"] == "warning"]
    assert any(m.startswith("of 20 unlabelled texts of ru 20% are not") for m in messages)


def test_a_file_is_read_once_and_a_resumed_run_says_nothing_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "ru.txt"
    file.write_text("\n".join(WITH_ENGLISH) + "\n", "utf-8")
    data, run = {"ru": DataFile(file, format="lines")}, tmp_path / "run"
    (said,) = warnings(data, run, max_length=SHORT)
    assert capsys.readouterr().err.splitlines() == [f"warning: step 0: {said['message']}"]
    assert warnings(data, run, max_length=SHORT, steps=3) == [said]
    assert capsys.readouterr().err == ""
    first = json.loads((run / "metrics.jsonl").read_text("utf-8").splitlines()[0])
    assert first == said
