"""`AdversarialFinetuner` as its users meet it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from transformers import XLMRobertaConfig, XLMRobertaModel

from fastadv import AdversarialFinetuner, Document, FinetuneConfig, Sentence
from fastadv.nn.architectures import DropoutRates
from fastadv.nn.packed_encoder import PackedBert
from fastadv.nn.padded_encoder import PaddedEncoder

pytestmark = pytest.mark.usefixtures("one_thread")
ENGLISH = [text for text, _ in tiny.ENGLISH]


def finetuner(task: str = "classification", **changes: object) -> AdversarialFinetuner:
    settings = {"steps": 4, "batch_size": 3, "max_length": 32, "window_overlap": 8} | changes
    labels = tiny.LABELS if task == "classification" else tiny.TAGS
    return AdversarialFinetuner(
        tiny.tiny_bert(),
        task,
        labels,
        FinetuneConfig(**settings),
        tokenizer=tiny.tiny_tokenizer(),
        device="cpu",
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("task", ["classification", "ner"])
def test_training_learns_the_training_set(task: str, precision: str) -> None:
    data = tiny.ENGLISH if task == "classification" else tiny.SENTENCES
    tuner = finetuner(
        task, steps=120, batch_size=4, lr_task=3e-3, lr_generator=1e-5, precision=precision
    )
    before = tuner.evaluate({"train": data})["train"]
    history = tuner.fit(data, {"de": tiny.GERMAN, "fr": tiny.FRENCH}, dev=data, quiet=True)
    after = tuner.evaluate({"train": data})["train"]
    metric = "accuracy" if task == "classification" else "f1"
    assert before[metric] < 0.9 < after[metric] == 1.0
    assert history.best_score == 1.0 and history.best_step == 100
    losses = [r["loss_task"] for r in history.records if r["kind"] == "train"]
    assert losses[-1] < 0.2 * losses[0]


def test_discriminator_learns_and_the_generator_fools_it() -> None:
    """L_D falls when D alone learns; with G at a large rate, D's accuracy falls back."""
    accuracies = {}
    for rate in (0.0, 3e-3):
        tuner = finetuner(
            steps=300, batch_size=6, lr_task=0.0, lr_discriminator=1e-2, lr_generator=rate
        )
        records = tuner.fit(tiny.ENGLISH, {"de": tiny.GERMAN}, quiet=True).records
        last = [r["discriminator_accuracy"] for r in records][-10:]
        accuracies[rate] = sum(last) / len(last)
    assert accuracies[0.0] > 0.95
    assert accuracies[3e-3] < 0.75


def test_baseline_sees_the_same_task_batches() -> None:
    """With the generator at rate 0 the adversary changes nothing of the task's run, but when rows
    of the word table are made up: in two parts, rounded twice, instead of one. Other batches or
    other dropout would change displacements in whole.
    """
    start = finetuner().model.encoder.state_dict()
    weights = []
    for adversarial in (True, False):
        tuner = finetuner(adversarial=adversarial, lr_generator=0.0, dropout=0.1)
        tuner.fit(tiny.ENGLISH, {"de": tiny.GERMAN}, quiet=True)
        weights.append(tuner.model.encoder.state_dict())
    for name, first in weights[0].items():
        moved = (first - start[name]).abs().max()
        # An ulp of weights below 1, and a thousandth of what they moved.
        assert (first - weights[1][name]).abs().max() <= 6e-8 + 1e-3 * moved, name
    assert (weights[0]["layers.0.qkv.weight"] - start["layers.0.qkv.weight"]).abs().max() > 1e-6


def test_extra_english_text_joins_the_english_side() -> None:
    tuner = finetuner()
    draws = tuner.preparation.draws(
        tiny.ENGLISH, {"de": tiny.GERMAN, "en": ["a slow rain", "a song"]}
    )
    assert len(draws.english) == len(tiny.ENGLISH) + 2
    batch = draws.language_batch()
    assert batch.english.tolist() == [False] * 3 + [True] * 3
    assert batch.labels is None


def test_files_and_objects_are_the_same_data(tmp_path: Path) -> None:
    lines = "".join(f"{label}\t{text}\n" for text, label in tiny.ENGLISH)
    (tmp_path / "train").write_text(lines)
    (tmp_path / "de").write_text("\n".join(tiny.GERMAN) + "\n")
    forms = [
        (tmp_path / "train", tmp_path / "de"),
        (str(tmp_path / "train"), str(tmp_path / "de")),
        (tiny.ENGLISH, tiny.GERMAN),
        ([Document(t, label) for t, label in tiny.ENGLISH], [Document(t) for t in tiny.GERMAN]),
        ([{"text": t, "label": label} for t, label in tiny.ENGLISH], tuple(tiny.GERMAN)),
    ]
    ends = []
    for labeled, german in forms:
        tuner = finetuner(steps=1)
        tuner.fit(labeled, {"de": german}, quiet=True)
        ends.append(tuner.model.task_head.weight)
    assert all(torch.equal(end, ends[0]) for end in ends)


def test_metrics_file_holds_the_history(tmp_path: Path) -> None:
    tuner = finetuner(steps=5, eval_every=2, log_every=2, eval_at_start=True)
    history = tuner.fit(
        tiny.ENGLISH,
        {"de": tiny.GERMAN},
        dev=tiny.ENGLISH,
        test={"de": tiny.ENGLISH[:2]},
        output_dir=tmp_path,
        quiet=True,
    )
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == history.records
    assert [r["step"] for r in history.evaluations()] == [0, 2, 4, 5]
    assert [r["step"] for r in history.records if r["kind"] == "train"] == [2, 4, 5]
    # Before the first step no head was trained.
    trained = history.evaluations()[1:]
    scores = [r["dev"]["accuracy"] for r in trained]
    assert history.best_score == max(scores)
    assert history.best_step == trained[scores.index(max(scores))]["step"]
    for record in history.records:
        if record["kind"] == "train":
            assert record["tokens_per_second"] > record["examples_per_second"] > 0
            assert 0 <= record["discriminator_accuracy"] <= 1
    # The finetuner keeps the last step's weights.
    last = AdversarialFinetuner.from_pretrained(tmp_path / "last", device="cpu")
    assert torch.equal(last.model.task_head.weight, tuner.model.task_head.weight)


def test_losses_are_means_over_each_side() -> None:
    """L_D by hand (Algorithm 1, line 11) with 4 other texts and 2 English ones."""
    tuner = finetuner(dropout=0.0, precision="fp32")
    others, english = tiny.GERMAN[:4], ENGLISH[:2]
    head = tuner.model.discriminator
    logits = {
        name: torch.from_numpy(tuner.embed(texts)) @ head.weight.detach()[0] + head.bias.item()
        for name, texts in (("other", others), ("english", english))
    }
    expected_d = sum(math.log1p(math.exp(z)) for z in logits["other"].tolist()) / 4
    expected_d += sum(math.log1p(math.exp(-z)) for z in logits["english"].tolist()) / 2
    draw = tuner.collate(others, english)
    trainer = tuner.trainer
    pooled, for_g = trainer.pooled_draws(draw, draw)
    # float32 sums of six numbers near 0.7
    assert float(trainer.discriminator_gradients(draw, pooled)[0]) == pytest.approx(
        expected_d, abs=1e-6
    )
    expected_g = sum(math.log1p(math.exp(-z)) for z in logits["other"].tolist()) / 4
    expected_g += sum(math.log1p(math.exp(z)) for z in logits["english"].tolist()) / 2
    assert float(trainer.generator_gradients(draw, for_g)[0]) == pytest.approx(expected_g, abs=1e-6)


def test_ner_loss_sums_words_and_averages_sentences() -> None:
    """L_T of section 3.1 by hand; a sentence in several windows counts once."""
    tuner = finetuner("ner", max_length=8, window_overlap=2, dropout=0.0, precision="fp32")
    batch = tuner.collate(tiny.SENTENCES)
    assert len(batch) > batch.num_examples == len(tiny.SENTENCES)
    expected = 0.0
    words = 0
    for sentence, probabilities in zip(
        tiny.SENTENCES, word_rows(tuner, tiny.SENTENCES), strict=True
    ):
        for tag, row in zip(sentence[1], probabilities, strict=True):
            expected -= math.log(row[tiny.TAGS.index(tag)])
            words += 1
    assert words == int((batch.labels >= 0).sum())
    loss, _ = tuner.trainer.task_gradients(batch)
    # float32 sum of some twenty logarithms near 1.6
    assert float(loss) == pytest.approx(expected / len(tiny.SENTENCES), rel=1e-5)


def word_rows(tuner: AdversarialFinetuner, sentences: list) -> list[np.ndarray]:
    from fastadv.tasks.inference import word_probabilities

    data = tuner.evaluation_set(sentences)
    return word_probabilities(tuner.model, data.dataset, 2)


def test_predictions_and_embeddings_keep_the_order() -> None:
    tuner = finetuner()
    texts = [*ENGLISH, *tiny.GERMAN]
    together = tuner.embed(texts)
    assert together.shape == (len(texts), 32) and together.dtype == np.float32
    alone = np.concatenate([tuner.embed([text]) for text in texts])
    # Padding changes the order of sums, in float32 or bfloat16.
    tolerance = 1e-5 if tuner.config.precision == "fp32" else 3e-2
    np.testing.assert_allclose(together, alone, atol=tolerance)
    for text, prediction in zip(texts, tuner.predict(texts), strict=True):
        assert prediction.label == max(prediction.probabilities, key=prediction.probabilities.get)
        assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-5)
        [single] = tuner.predict([text])
        assert single.probabilities["music"] == pytest.approx(
            prediction.probabilities["music"], abs=tolerance
        )


def test_words_without_pieces_are_tagged_outside() -> None:
    tuner = finetuner("ner")
    [prediction] = tuner.predict([Sentence(("Anna", "\u200b", "left"))])
    assert prediction.words == ("Anna", "\u200b", "left")
    assert prediction.tags[1] == "O" and math.isnan(prediction.probabilities[1])
    assert not any(math.isnan(p) for p in prediction.probabilities[::2])


def test_predicting_restores_training_mode() -> None:
    tuner = finetuner()
    tuner.model.train()
    tuner.predict(["rain"])
    assert tuner.model.training and tuner.model.encoder.training


def test_dropout_option_reaches_every_dropout() -> None:
    tuner = finetuner(dropout=0.25, encoder="padded")
    rates = {m.p for m in tuner.model.modules() if isinstance(m, torch.nn.Dropout)}
    assert rates == {0.25}
    packed = finetuner(dropout=0.25, encoder="packed")
    assert packed.model.encoder.architecture.dropout == DropoutRates(0.25, 0.25, 0.25, 0.25)
    for made in (tuner, packed):
        config = made.model.encoder.config
        assert config.hidden_dropout_prob == config.attention_probs_dropout_prob == 0.25


def test_encoders_by_name() -> None:
    assert isinstance(finetuner().model.encoder, PackedBert)
    padded, packed = (finetuner(encoder=name, precision="fp32") for name in ("padded", "packed"))
    assert isinstance(padded.model.encoder, PaddedEncoder)
    # The same weights, through other code: float32 sums in another order.
    np.testing.assert_allclose(padded.embed(ENGLISH), packed.embed(ENGLISH), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ("weather",)}, "expected at least two different names"),
        ({"labels": ("a", "a")}, "expected at least two different names"),
        ({"labels": "ab"}, "expected at least two different names"),
        ({"task": "ner", "labels": ("B-PER", "I-PER")}, "expected the tag 'O'"),
        ({"task": "parsing"}, "expected one of classification, ner"),
        ({"tokenizer": None}, "came without a tokenizer"),
        ({"tokenizer": object()}, "expected a fast one"),
        ({"config": FinetuneConfig(max_length=65)}, "at most the 64 positions"),
    ],
)
def test_bad_arguments_are_refused_in_words(change: dict, message: str) -> None:
    arguments = {
        "task": "classification",
        "labels": tiny.LABELS,
        "config": FinetuneConfig(max_length=32),
        "tokenizer": tiny.tiny_tokenizer(),
    } | change
    with pytest.raises(ValueError, match=message):
        AdversarialFinetuner(tiny.tiny_bert(), **arguments)


def test_roberta_loses_positions_to_padding() -> None:
    config = XLMRobertaConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        vocab_size=len(tiny.tiny_tokenizer()),
        pad_token_id=1,
        max_position_embeddings=34,
    )

    def build(length: int) -> AdversarialFinetuner:
        return AdversarialFinetuner(
            XLMRobertaModel(config),
            labels=tiny.LABELS,
            config=FinetuneConfig(max_length=length),
            tokenizer=tiny.tiny_tokenizer(),
        )

    assert build(32).embed([" ".join(["rain"] * 50)]).shape == (1, 32)
    with pytest.raises(ValueError, match="at most the 32 positions"):
        build(33)


def test_bad_data_is_refused_in_words(tmp_path: Path) -> None:
    tuner = finetuner()
    with pytest.raises(ValueError, match="no text of another language"):
        tuner.fit(tiny.ENGLISH, {"en": ENGLISH}, quiet=True)
    with pytest.raises(ValueError, match="example 0: found the label 'sport'"):
        tuner.fit([("a", "sport")], {"de": tiny.GERMAN}, quiet=True)
    with pytest.raises(ValueError, match="example 1: found no label"):
        tuner.evaluate({"x": [("a", "music"), "b"]})
    with pytest.raises(ValueError, match="a discriminator or generator draw is missing"):
        tuner.step(tuner.collate(tiny.ENGLISH))
    with pytest.raises(ValueError, match=r"found no config\.json"):
        AdversarialFinetuner(tmp_path, labels=tiny.LABELS)
