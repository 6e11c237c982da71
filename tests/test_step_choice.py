"""best/ is the step that `selection` chooses, without target labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from fastadv import AdversarialFinetuner, FinetuneConfig, target_predictions
from fastadv.data import as_texts
from fastadv.evaluate import document_probabilities, word_probabilities
from fastadv.history import History
from fastadv.selection import batch_nuclear_norm, mean_entropy, mutual_information

pytestmark = pytest.mark.usefixtures("one_thread")
OTHERS = {"de": tiny.GERMAN, "fr": tiny.FRENCH}
SIGNALS = {
    "entropy": lambda p: -mean_entropy(p),
    "information": mutual_information,
    "nuclear_norm": batch_nuclear_norm,
}


def tuner_of(task: str = "classification", **changes: Any) -> AdversarialFinetuner:
    settings = {"steps": 8, "batch_size": 3, "max_length": 16, "window_overlap": 4}
    settings |= {"eval_every": 2, "lr_task": 3e-3, "precision": "fp32"}
    labels = tiny.LABELS if task == "classification" else tiny.TAGS
    return AdversarialFinetuner(
        tiny.tiny_bert(), task, labels, FinetuneConfig(**{**settings, **changes}),
        tokenizer=tiny.tiny_tokenizer(), device="cpu",
    )  # fmt: skip


def fit(
    tuner: AdversarialFinetuner, unlabeled: Mapping[str, Any] = OTHERS, **options: Any
) -> History:
    labeled = tiny.ENGLISH if tuner.task == "classification" else tiny.SENTENCES
    return tuner.fit(labeled, unlabeled, **{"quiet": True, **options})


@pytest.mark.parametrize("selection", SIGNALS)
def test_best_is_the_model_with_the_greatest_mean_over_languages(
    selection: str, tmp_path: Path
) -> None:
    tuner = tuner_of(selection=selection)
    history = fit(tuner, output_dir=tmp_path / "run", dev=tiny.ENGLISH)
    sign = -1 if selection == "entropy" else 1
    means = {
        e["step"]: np.mean([sign * e["unlabeled"][name][selection] for name in OTHERS])
        for e in history.evaluations()
    }
    assert history.best_step == max(means, key=lambda step: means[step])
    assert history.best_score == pytest.approx(max(means.values()), rel=1e-12)
    # They differ, or anything would do.
    assert len(set(means.values())) == 4
    best = AdversarialFinetuner.from_pretrained(tmp_path / "run" / "best")
    found = []
    for texts in OTHERS.values():
        dataset = best.preparation.unlabeled(texts)
        found.append(SIGNALS[selection](document_probabilities(best.model, dataset, 32)))
    # float32 logits of a model that was written and read again.
    assert np.mean(found) == pytest.approx(history.best_score, rel=1e-5)


def test_words_are_what_is_predicted_in_ner() -> None:
    tuner = tuner_of("ner", selection="information", steps=2)
    history = fit(tuner, {"de": tiny.GERMAN})
    dataset = tuner.preparation.sentences(as_texts(tiny.GERMAN, "ner"))
    words = np.concatenate(word_probabilities(tuner.model, dataset, 32))
    assert len(words) > len(tiny.GERMAN)
    expected = mutual_information(words)
    assert history.evaluations()[-1]["unlabeled"]["de"]["information"] == pytest.approx(expected)
    assert history.best_step == 2


def test_looking_changes_no_bit_of_training() -> None:
    tuners = [tuner_of(), tuner_of(selection="nuclear_norm")]
    for tuner in tuners:
        fit(tuner)
    first, second = (dict(tuner.model.named_parameters()) for tuner in tuners)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_a_baseline_may_look_at_text_that_it_does_not_train_on() -> None:
    plain, looking = (
        tuner_of(adversarial=False, **more) for more in ({}, {"selection": "entropy"})
    )
    fit(plain, {})
    history = fit(looking)
    assert history.best_step is not None
    first, second = (dict(tuner.model.named_parameters()) for tuner in (plain, looking))
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_text_of_the_source_language_is_no_target() -> None:
    history = fit(tuner_of(selection="entropy", steps=2), {"en": tiny.FRENCH, "de": tiny.GERMAN})
    assert history.evaluations()[-1]["unlabeled"].keys() == {"de"}


def test_target_labels_and_test_sets_are_not_looked_at() -> None:
    wrong = [(text, tiny.LABELS[0]) for text in tiny.GERMAN]
    histories = [
        fit(tuner_of(selection="nuclear_norm"), {"de": data}, **more)
        for data, more in ((tiny.GERMAN, {}), (wrong, {"test": {"de": wrong}}))
    ]
    assert histories[0].best_score == histories[1].best_score


@pytest.mark.parametrize("selection", ["english_dev", "entropy"])
def test_an_untrained_head_is_never_the_best(
    selection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The same at every step, so that the earliest wins.
    monkeypatch.setattr(AdversarialFinetuner, "score", lambda *_: {"accuracy": 0.5})
    monkeypatch.setattr(target_predictions, "mean_entropy", lambda _: 0.5)
    history = fit(tuner_of(selection=selection, eval_at_start=True), dev=tiny.ENGLISH)
    assert history.evaluations()[0]["step"] == 0
    assert history.best_step == 2


def test_a_stopped_run_chooses_the_same(tmp_path: Path) -> None:
    whole, parts = tuner_of(selection="nuclear_norm"), tmp_path / "parts"
    expected = fit(whole, output_dir=tmp_path / "whole")
    for steps in (2, 6, 8):
        found = fit(tuner_of(selection="nuclear_norm", steps=steps), output_dir=parts, resume=True)
    assert (found.best_step, found.best_score) == (expected.best_step, expected.best_score)
    name = "best/model.safetensors"
    assert (parts / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    with pytest.raises(ValueError, match="selection was 'nuclear_norm' in that run"):
        fit(tuner_of(selection="entropy"), output_dir=parts, resume=True)


def test_texts_that_can_be_read_once_are_read_once() -> None:
    given = {"de": iter(tiny.GERMAN), "fr": iter(tiny.FRENCH)}
    expected = fit(tuner_of(selection="entropy", steps=2))
    assert fit(tuner_of(selection="entropy", steps=2), given).best_score == expected.best_score


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match="selection is 'best', expected 'english_dev', 'entropy'"):
        FinetuneConfig(selection="best")  # type: ignore[arg-type]
    tuner = tuner_of(selection="entropy", adversarial=False)
    for unlabeled in ({}, {"en": tiny.FRENCH}):
        with pytest.raises(ValueError, match="'entropy' and there is no text of another language"):
            fit(tuner, unlabeled)
    with pytest.raises(ValueError, match="de"):
        fit(tuner, {"de": []})
