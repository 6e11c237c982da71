"""Class shares in a run: what is drawn, estimated, matched, kept and said."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from fastadv import AdversarialFinetuner, FinetuneConfig
from fastadv.run import target_shares
from fastadv.run.checkpoint import load_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS = {
    "steps": 6, "batch_size": 4, "max_length": 16, "eval_every": 3, "log_every": 3,
    "precision": "fp32",
}  # fmt: skip
TEXTS = {"de": tiny.GERMAN, "fr": tiny.FRENCH}


def finetuner(task: str = "classification", **changes: Any) -> AdversarialFinetuner:
    labels = tiny.LABELS if task == "classification" else tiny.TAGS
    return AdversarialFinetuner(
        tiny.tiny_bert(), task, labels, FinetuneConfig(**{**SETTINGS, **changes}),
        tokenizer=tiny.tiny_tokenizer(), device="cpu",
    )  # fmt: skip


def fit(tuner: AdversarialFinetuner, folder: Path | None = None, **options: Any) -> Any:
    examples = tiny.ENGLISH if tuner.task == "classification" else tiny.SENTENCES
    given = {"unlabeled": TEXTS, "dev": examples, "test": {"de": examples}, **options}
    return tuner.fit(examples, output_dir=folder, quiet=True, **given)


def weights(tuner: AdversarialFinetuner) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in tuner.model.named_parameters()}


def same(one: AdversarialFinetuner, other: AdversarialFinetuner) -> bool:
    return all(torch.equal(p, weights(other)[n]) for n, p in weights(one).items())


def test_english_is_drawn_by_the_shares_of_the_language_beside_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tuner = finetuner(class_shares={"de": {"weather": 1.0}, "fr": {"weather": 0.25, "music": 0.75}})
    by_tokens = {
        tuple(tuner.preparation.tokenized([_document(text)])[0][0].input_ids.tolist()): label
        for text, label in tiny.ENGLISH
    }
    seen: Counter[tuple[str, str]] = Counter()
    step = tuner.trainer.step

    def watched(labeled: Any, draw_d: Any, draw_g: Any) -> Any:
        for draw in (draw_d, draw_g):
            english = draw.english.nonzero().flatten().tolist()
            for place, sequence in enumerate(english):
                start, end = draw.cu_seqlens[sequence], draw.cu_seqlens[sequence + 1]
                label = by_tokens[tuple(draw.input_ids[start:end].tolist())]
                seen["de" if place % 2 == 0 else "fr", label] += 1
        return step(labeled, draw_d, draw_g)

    monkeypatch.setattr(tuner.trainer, "step", watched)
    fit(tuner)
    assert seen["de", "weather"] == 24 and seen["de", "music"] == 0
    assert seen["fr", "weather"] == pytest.approx(6, abs=1)
    assert seen["fr", "weather"] + seen["fr", "music"] == 24


def _document(text: str) -> Any:
    from fastadv.data import Document

    return Document(text)


def test_shares_change_the_adversary_and_nothing_else() -> None:
    """The task's batches, and a run that ignores shares, are as they were."""
    ignoring, again = finetuner(), finetuner(class_shares="ignore")
    drawn = finetuner(class_shares={"de": {"weather": 1.0}})
    histories = [fit(tuner) for tuner in (ignoring, again, drawn)]
    assert same(ignoring, again) and not same(ignoring, drawn)
    first = [history.records[0]["loss_discriminator"] for history in histories]
    assert first[0] == first[1] != first[2]
    matched = finetuner(match_shares="equal")
    fit(matched)
    assert same(ignoring, matched)


@pytest.mark.parametrize("every", [1, 2])
def test_a_run_that_estimates_resumes_exactly(
    every: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With estimates that follow the model: a tiny one's own are not trusted, and never move."""
    from fastadv.shares.estimate import Estimate

    def estimated(self: Any, dev: Any, gold: Any, target: Any, instead: str) -> Any:
        lead = float(np.clip(20 * (target.mean(axis=0)[0] - 0.5), -0.45, 0.45))
        found = np.array([0.5 + lead, 0.5 - lead])
        shares = dict(zip(tiny.LABELS, found.tolist(), strict=True))
        return shares, Estimate(found, found, found, found, 1.0, 0.0)

    monkeypatch.setattr(target_shares.ClassShares, "estimated", estimated)
    settings: dict[str, Any] = {"class_shares": {"de": "estimate", "fr": {"music": 1.0}}}
    settings |= {"shares_every": every, "checkpoint_every": 1}
    whole, first, second = (finetuner(**settings) for _ in range(3))
    fit(whole, tmp_path / "whole")
    # Between two estimates where there are any: what is drawn by must be taken over at once.
    cut = finetuner(**{**settings, "steps": 3})
    fit(cut, tmp_path / "parts")
    fit(second, tmp_path / "parts", resume=True)
    assert same(whole, second) and not same(whole, first)
    states = [
        load_checkpoint(tmp_path / name / "checkpoint.safetensors")[1]["run"]
        for name in ("whole", "parts")
    ]
    assert states[0]["positions"] == states[1]["positions"]
    assert states[0]["class_shares"] == states[1]["class_shares"]
    assert abs(states[0]["class_shares"]["de"]["music"] - 0.5) > 0.01
    told = [
        [r for r in map(json.loads, lines) if r["kind"] == "shares"]
        for lines in (
            (tmp_path / name / "metrics.jsonl").read_text().splitlines()
            for name in ("whole", "parts")
        )
    ]
    assert told[0] == told[1] and [r["step"] for r in told[0]] == [*range(every, 6, every)]
    assert told[0][0]["shares"].keys() == {"de"}


def test_an_estimate_is_taken_by_half(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And what is told is what is drawn by."""
    wanted = {"weather": 0.9, "music": 0.1}

    def estimated(self: Any, dev: Any, gold: Any, target: Any, instead: str) -> Any:
        found = np.array([0.9, 0.1])
        from fastadv.shares.estimate import Estimate

        return wanted, Estimate(found, found, found, found, 1.0, 0.0)

    monkeypatch.setattr(target_shares.ClassShares, "estimated", estimated)
    tuner = finetuner(class_shares="estimate", shares_every=2)
    fit(tuner, tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    told = [r["shares"] for r in map(json.loads, lines) if r["kind"] == "shares"]
    drawn = [one["de"]["drawn_by"]["weather"] for one in told]
    assert drawn == pytest.approx([0.7, 0.8]) and told[0].keys() == {"de", "fr"}
    assert not any(r["kind"] == "warning" for r in map(json.loads, lines))


def test_what_cannot_be_trusted_is_said_once_a_language() -> None:
    """A model of six steps knows nothing."""
    history = fit(finetuner(class_shares="estimate", shares_every=1))
    said = [r["message"] for r in history.records if r["kind"] == "warning"]
    found = [m for m in said if "cannot be estimated yet" in m]
    assert len(found) == 2 and {m.split()[3] for m in found} == {"de", "fr"}


@pytest.mark.parametrize("task", ["classification", "ner"])
def test_matched_predictions_are_scored_kept_and_used(task: str, tmp_path: Path) -> None:
    classes = tiny.LABELS if task == "classification" else ("PER", "LOC")
    shares = dict(zip(classes, (0.9, 0.1), strict=True))
    tuner = finetuner(task, match_shares={"de": shares, "fr": "equal"}, mean_weights=True)
    history = fit(tuner, tmp_path)
    last = history.evaluations()[-1]
    assert last["matched"].keys() == {"de"} and last["shares"]["de"] == shares
    assert [*last["shares"]["fr"].values()] == [0.5, 0.5]
    mean = next(r for r in history.records if r["kind"] == "mean")
    assert mean["matched"].keys() == {"de"}
    for name in ("last", "mean"):
        loaded = AdversarialFinetuner.from_pretrained(tmp_path / name, device="cpu")
        assert loaded.matched.keys() == {"de", "fr"} and loaded.class_counts
    loaded = AdversarialFinetuner.from_pretrained(tmp_path / "last", device="cpu")
    examples = tiny.ENGLISH if task == "classification" else tiny.SENTENCES
    assert loaded.evaluate({"de": examples}, matched=True)["de"] == last["matched"]["de"]
    # As the bias of the head they are there for everybody.
    loaded.save_pretrained(tmp_path / "german", language="de")
    german = AdversarialFinetuner.from_pretrained(tmp_path / "german", device="cpu")
    assert german.evaluate({"de": examples})["de"] == last["matched"]["de"]
    plain, ours = german.predict(tiny.GERMAN), loaded.predict(tiny.GERMAN, language="de")
    assert plain != loaded.predict(tiny.GERMAN)
    for one, other in zip(plain, ours, strict=True):
        for a, b in zip(_numbers(one), _numbers(other), strict=True):
            assert a == pytest.approx(b, abs=1e-5)
    # Its predictions' mean is what was asked for.
    if task == "classification":
        mean_of = np.mean([[*p.probabilities.values()] for p in ours], axis=0)
        np.testing.assert_allclose(mean_of, [0.9, 0.1], atol=2e-3)
    with pytest.raises(ValueError, match="no matched predictions in the language 'es', expected "):
        loaded.predict(tiny.GERMAN, language="es")


def _numbers(prediction: Any) -> list[float]:
    found = prediction.probabilities
    return [*found.values()] if isinstance(found, dict) else [*found]


def test_a_model_is_matched_after_training(tmp_path: Path) -> None:
    tuner = finetuner()
    fit(tuner, tmp_path)
    loaded = AdversarialFinetuner.from_pretrained(tmp_path / "last", device="cpu")
    matched = loaded.match({"de": tiny.GERMAN}, "equal")
    mean = np.mean(
        [[*p.probabilities.values()] for p in loaded.predict(tiny.GERMAN, language="de")], axis=0
    )
    np.testing.assert_allclose(mean, 0.5, atol=1e-3)
    assert matched["de"].shares == {"weather": 0.5, "music": 0.5}
    assert loaded.match({"de": tiny.GERMAN}, "estimate", dev=tiny.ENGLISH).keys() == {"de"}
    few = [(text, "music") for text in tiny.GERMAN]
    loaded.calibrate({"de": few})
    after = [p.probabilities["music"] for p in loaded.predict(tiny.GERMAN, language="de")]
    before = [p.probabilities["music"] for p in loaded.predict(tiny.GERMAN)]
    assert all(b < a for a, b in zip(after, before, strict=True))
    with pytest.raises(ValueError, match="match_shares is to be estimated and there is no dev"):
        loaded.match({"de": tiny.GERMAN}, "estimate")
    with pytest.raises(ValueError, match="match_shares is 'even', expected 'english', 'equal'"):
        loaded.match({"de": tiny.GERMAN}, "even")


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"class_shares": "estimate"}, {"dev": None}, "class_shares is to be estimated and there"),
        (
            {"class_shares": "estimate"},
            {"dev": tiny.ENGLISH[:1]},
            "class_shares is to be estimated and dev has no example of music",
        ),
        ({"class_shares": {"ru": "estimate"}}, {}, "class_shares names the language 'ru', expect"),
        ({"class_shares": {"de": {"sport": 1.0}}}, {}, "found a share of 'sport'"),
        ({"match_shares": {"ru": "equal"}}, {}, "match_shares names the language 'ru'"),
        ({"match_shares": {"de": {"music": 0.3}}}, {}, "class shares that sum to 0.3"),
        (
            {"match_shares": "equal", "adversarial": False},
            {"unlabeled": None},
            "match_shares needs unlabelled text of a target language",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_before_the_first_step(
    changes: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    tuner = finetuner(**changes)
    with pytest.raises(ValueError, match=message):
        fit(tuner, **options)
    assert tuner.trainer.step_count == 0


def test_entities_have_no_class_a_sentence() -> None:
    with pytest.raises(ValueError, match="class_shares is 'estimate' for ner, whose texts have no"):
        finetuner("ner", class_shares="estimate")


def test_english_text_without_labels_is_not_drawn_and_that_is_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tuner = finetuner(class_shares={"de": {"music": 1.0}})
    fit(tuner, unlabeled=TEXTS | {"en": ["more english text"]})
    assert "text of en without labels is not drawn" in capsys.readouterr().err


@pytest.mark.parametrize(("copies", "warned"), [(13, True), (12, False)])
def test_far_shares_are_warned_of_at_the_end_where_there_is_text_enough(
    copies: int, warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what `ignore` leaves alone; 8 English texts and 13 copies are more than a hundred."""
    from fastadv.shares.estimate import Estimate

    def estimated(self: Any, dev: Any, gold: Any, target: Any, instead: str) -> Any:
        found = np.array([0.9, 0.1])
        shares = {"weather": 0.9, "music": 0.1}
        return shares, Estimate(found, found, found - 0.1, found + 0.1, 1.0, 0.0)

    monkeypatch.setattr(target_shares.ClassShares, "estimated", estimated)
    text = [f"{line} {n}" for n in range(20) for line in tiny.GERMAN]
    history = fit(finetuner(), unlabeled={"de": text}, dev=tiny.ENGLISH * copies)
    said = [r["message"] for r in history.records if r["kind"] == "warning"]
    found = [m for m in said if m.startswith("class shares of de are estimated to be 0.40")]
    assert len(found) == warned
