"""best/ is the step that `selection` chooses, without target labels."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from fastadv import AdversarialFinetuner, FinetuneConfig
from fastadv.data import as_texts
from fastadv.records.history import History
from fastadv.selection import (
    batch_nuclear_norm,
    chosen_step,
    mean_entropy,
    mutual_information,
    target_signals,
)
from fastadv.selection.step_choice import StepChoice
from fastadv.selection.target_signals import TargetSignals
from fastadv.tasks.evaluation_set import EvaluationSet
from fastadv.tasks.inference import document_probabilities, word_probabilities

pytestmark = pytest.mark.usefixtures("one_thread")
BOTH = "english_dev+nuclear_norm"
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
    if isinstance(models := options.get("observer"), Models):
        models.tuner = tuner
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
    dataset = tuner.preparation.tokenized(as_texts(tiny.GERMAN, "ner"))
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


def evaluation(step: int, dev: float, *norms: float) -> dict[str, Any]:
    signals = {str(k): {"nuclear_norm": norm} for k, norm in enumerate(norms)}
    return {"step": step, "dev": {"accuracy": dev}, "test": {}, "unlabeled": signals}


def choice_of(*evaluations: dict[str, Any], selection: str = BOTH) -> StepChoice:
    texts = {name: as_texts(data, "classification") for name, data in OTHERS.items()}
    signals = TargetSignals(tuner_of().preparation, texts, 4)
    choice = StepChoice(selection, "accuracy", signals)
    for one in evaluations:
        choice.add(one)
    return choice


def test_ranks_shift_and_candidates_are_those_that_may_win_yet() -> None:
    choice = choice_of(evaluation(0, 1.0, 1.0), evaluation(10, 0.8, 0.2, 0.4))
    assert choice.best() == (10, 0.0) and choice.candidates() == [10]
    # Higher by English, lower by norm (0.25): equal ranks, so the earlier one.
    choice.add(evaluation(20, 0.9, 0.1, 0.4))
    assert choice.best() == (10, 0.5) and choice.candidates() == [10, 20]
    # Between the two by norm, below both by English: 20 has ranks 2 and 0, 10 has 1 and 2.
    choice.add(evaluation(30, 0.7, 0.3, 0.26))
    assert choice.best() == (10, 1.5) and choice.candidates() == [10, 20]
    # Between the two by English, the lowest by norm: 20 has 3 and 1, 10 has 1 and 3.
    choice.add(evaluation(40, 0.85, 0.0, 0.0))
    assert choice.best() == (10, 2.0)
    # 20 has 4 and 2, 10 has 1 and 4.
    choice.add(evaluation(50, 0.87, 0.1, 0.1))
    assert choice.best() == (20, 3.0) and choice.candidates() == [10, 20]
    # As good as 20 in both, but later; and better than 10 in both.
    choice.add(evaluation(60, 0.9, 0.1, 0.4))
    assert choice.candidates() == [10, 20]
    choice.add(evaluation(70, 0.89, 0.3, 0.4))
    assert choice.candidates() == [20, 70]


def test_what_is_chosen_was_always_a_candidate() -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        evaluations = [evaluation(step, *rng.integers(0, 6, size=2) / 6) for step in range(1, 9)]
        choice, candidates = choice_of(), [set[int]() for _ in evaluations]
        for k, one in enumerate(evaluations):
            choice.add(one)
            candidates[k] = {*choice.candidates()}
            best = choice.best()
            assert best is not None
            step = best[0]
            assert all(step in candidates[j] for j in range(step - 1, k + 1))
            seen = [{**e, "observed": {"": e["unlabeled"]["0"]}} for e in evaluations[: k + 1]]
            assert step == chosen_step(seen, "", BOTH, "accuracy")


def test_the_ensembles_best_is_the_model_of_its_step(tmp_path: Path) -> None:
    """Also where ranks go back to a step whose model was not the best when it was evaluated."""
    tuner, folder = tuner_of(selection=BOTH, steps=5, eval_every=1), tmp_path / "run"
    models = Models()
    script = {1: (0.8, 0.3), 2: (0.9, 0.25), 3: (0.7, 0.28), 4: (0.85, 0.0), 5: (0.87, 0.1)}
    with scripted(tuner, script):
        history = fit(tuner, dev=tiny.ENGLISH, output_dir=folder, observer=models)
    assert history.best_step == 2
    assert_is_model_of(folder, models.weights[2])
    assert not (folder / ".candidates").exists()


def test_an_ensemble_that_is_stopped_chooses_the_same(tmp_path: Path) -> None:
    script = {1: (0.8, 0.3), 2: (0.9, 0.25), 3: (0.7, 0.28), 4: (0.85, 0.0), 5: (0.87, 0.1)}
    for stop in (1, 2, 3, 4):
        folder, models = tmp_path / str(stop), Models(stop)
        tuner = tuner_of(selection=BOTH, steps=5, eval_every=1, checkpoint_every=1)
        with scripted(tuner, script), pytest.raises(RuntimeError, match="power cut"):
            fit(tuner, dev=tiny.ENGLISH, output_dir=folder, observer=models)
        tuner = tuner_of(selection=BOTH, steps=5, eval_every=1, checkpoint_every=1)
        models.stop = None
        with scripted(tuner, script):
            found = fit(tuner, dev=tiny.ENGLISH, output_dir=folder, observer=models, resume=True)
        assert found.best_step == 2
        assert_is_model_of(folder, models.weights[2])


def test_a_run_goes_on_without_a_model_that_was_taken_away(tmp_path: Path) -> None:
    script = {1: (0.8, 0.3), 2: (0.9, 0.25), 3: (0.7, 0.28), 4: (0.85, 0.0), 5: (0.87, 0.1)}
    folder, models = tmp_path / "run", Models(4)
    settings = {"selection": BOTH, "steps": 5, "eval_every": 1, "checkpoint_every": 1}
    tuner = tuner_of(**settings)
    with scripted(tuner, script), pytest.raises(RuntimeError, match="power cut"):
        fit(tuner, dev=tiny.ENGLISH, output_dir=folder, observer=models)
    # What would win in the end.
    shutil.rmtree(folder / ".candidates" / "2")
    tuner, models.stop = tuner_of(**settings), None
    with scripted(tuner, script):
        found = fit(tuner, dev=tiny.ENGLISH, output_dir=folder, observer=models, resume=True)
    assert found.best_step == 1
    assert_is_model_of(folder, models.weights[1])


def test_more_steps_after_the_end_know_its_best_alone(tmp_path: Path) -> None:
    script = {1: (0.9, 0.2), 2: (0.8, 0.3), 3: (0.1, 0.1), 4: (0.85, 0.1), 5: (0.1, 0.25)}
    folder, models = tmp_path / "run", Models()
    for steps, best in ((2, 1), (5, 1)):
        tuner = tuner_of(selection=BOTH, steps=steps, eval_every=1)
        with scripted(tuner, script):
            found = fit(tuner, dev=tiny.ENGLISH, output_dir=folder, observer=models, resume=True)
        assert found.best_step == best
        assert_is_model_of(folder, models.weights[best])


def test_a_missing_model_is_no_candidate_but_counts(tmp_path: Path) -> None:
    choice = choice_of(evaluation(1, 0.8, 0.3), evaluation(2, 0.9, 0.2), evaluation(3, 0.7, 0.4))
    before = choice.best()
    choice.lose(1)
    assert before == (1, 1.0) and choice.best() == (2, 1.0) and choice.candidates() == [2, 3]


class Models:
    """The weights at every evaluation; ends the run at one of them."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop, self.weights = stop, dict[int, dict[str, torch.Tensor]]()
        self.tuner: AdversarialFinetuner | None = None

    def observe(self, step: int, model: Any, tested: Any) -> dict[str, Any]:
        assert self.tuner is not None
        if step - 1 == self.stop:
            raise RuntimeError("power cut")
        named = self.tuner.model.named_parameters()
        self.weights[step] = {name: parameter.detach().clone() for name, parameter in named}
        return {}


@dataclass(frozen=True)
class Scored:
    """A report of one number."""

    accuracy: float

    def scores(self) -> dict[str, float]:
        return {"accuracy": self.accuracy}


@contextmanager
def scripted(tuner: AdversarialFinetuner, script: dict[int, tuple[float, float]]) -> Iterator[None]:
    """Evaluations give these scores on English dev and nuclear norms, by step."""

    def now() -> tuple[float, float]:
        return script[tuner.trainer.step_count]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EvaluationSet, "report", lambda *_: Scored(now()[0]))
        patch.setattr(target_signals, "batch_nuclear_norm", lambda _: now()[1])
        yield


def assert_is_model_of(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    best = AdversarialFinetuner.from_pretrained(folder / "best")
    for name, parameter in best.model.named_parameters():
        if not name.startswith("discriminator"):
            torch.testing.assert_close(parameter, weights[name], rtol=0, atol=0)


@pytest.mark.parametrize("selection", ["english_dev", "entropy"])
def test_an_untrained_head_is_never_the_best(
    selection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The same at every step, so that the earliest wins.
    monkeypatch.setattr(EvaluationSet, "report", lambda *_: Scored(0.5))
    monkeypatch.setattr(target_signals, "mean_entropy", lambda _: 0.5)
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
    with pytest.raises(ValueError, match=r"'english_dev\+nuclear_norm', expected a dev set"):
        fit(tuner_of(selection=BOTH))
