"""Embeddings from any model, and predictions of inputs of any length."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from transformers import AutoModel, AutoTokenizer

from fastadv import AdversarialFinetuner, Embedder, Entity, FinetuneConfig, SentencePrediction
from fastadv.data.chunks import chunks
from fastadv.nn.packed_encoder import PackedBert
from fastadv.nn.padded_encoder import PaddedEncoder

pytestmark = pytest.mark.usefixtures("one_thread")
TEXTS = [text for text, _ in tiny.ENGLISH] + tiny.GERMAN


def finetuner(task: str = "classification") -> AdversarialFinetuner:
    return AdversarialFinetuner(
        tiny.tiny_bert(),
        task,
        tiny.LABELS if task == "classification" else tiny.TAGS,
        FinetuneConfig(max_length=32, precision="fp32", eval_batch_size=3),
        tokenizer=tiny.tiny_tokenizer(),
        device="cpu",
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tiny_folder(tmp_path_factory.mktemp("model"))


def test_any_folder_embeds_as_transformers_does(folder: Path) -> None:
    """The mean over a text's pieces, specials included, by transformers alone."""
    found = Embedder.from_pretrained(folder, precision="fp32", device="cpu").embed(TEXTS)
    assert found.dtype == np.float32
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for text, row in zip(TEXTS, found, strict=True):
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state
        # float32 sums of some ten numbers near 1, in another order
        np.testing.assert_allclose(row, hidden[0].mean(0), atol=1e-5)


@pytest.mark.parametrize("task", ["classification", "ner"])
def test_a_finetuned_folder_embeds_as_its_finetuner(task: str, tmp_path: Path) -> None:
    tuner = finetuner(task)
    tuner.save_pretrained(tmp_path)
    embedder = Embedder.from_pretrained(tmp_path, batch_size=3, precision="fp32", device="cpu")
    assert embedder.max_length == 32
    np.testing.assert_array_equal(embedder.embed(TEXTS), tuner.embed(TEXTS))


def test_either_encoder_embeds(folder: Path) -> None:
    packed, padded = (
        Embedder.from_pretrained(folder, precision="fp32", device="cpu", encoder=name)
        for name in ("packed", "padded")
    )
    assert isinstance(packed.encoder, PackedBert) and isinstance(padded.encoder, PaddedEncoder)
    # The same weights, through other code: float32 sums in another order.
    np.testing.assert_allclose(packed.embed(TEXTS), padded.embed(TEXTS), atol=1e-5)


def test_lengths_fit_the_encoder(folder: Path) -> None:
    assert Embedder.from_pretrained(folder).max_length == 64
    assert Embedder.from_pretrained(folder, max_length=8).max_length == 8
    with pytest.raises(ValueError, match="at most the 64 positions"):
        Embedder.from_pretrained(folder, max_length=65)


@pytest.mark.parametrize("size", [1, 4, 100])
def test_pieces_are_the_whole(size: int) -> None:
    tuner = finetuner()
    parts = list(tuner.embedder.iter_embed(iter(TEXTS), size))
    assert [len(part) for part in parts][:-1] == [size] * (len(parts) - 1)
    # Other neighbours, other padding: float32 sums in another order.
    np.testing.assert_allclose(np.concatenate(parts), tuner.embed(TEXTS), atol=1e-5)
    found = list(tuner.iter_predict(iter(TEXTS), size))
    assert [p.text for p in found] == TEXTS
    for one, other in zip(found, tuner.predict(TEXTS), strict=True):
        assert one.label == other.label
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


def test_no_more_is_read_than_a_piece_needs() -> None:
    """What comes later need not exist yet: an endless input gives its first answers."""

    def endless() -> Iterator[str]:
        for number in range(1000):
            assert number < 8, "read ahead of the piece asked for"
            yield "rain"

    for task in ("classification", "ner"):
        predictions = finetuner(task).iter_predict(endless(), 4)
        assert len([next(predictions) for _ in range(8)]) == 8


def test_pieces_by_hand() -> None:
    assert list(chunks(range(5), 2)) == [[0, 1], [2, 3], [4]]
    assert list(chunks([], 2)) == []
    with pytest.raises(ValueError, match="chunk size is 0, expected at least 1"):
        next(chunks([1], 0))


def test_entities_of_tags_by_hand() -> None:
    """An I- that continues nothing begins an entity, as in conlleval."""
    prediction = SentencePrediction(
        ("Anna", "Berg", "met", "Bo", "in", "New", "York"),
        ("B-PER", "I-PER", "O", "I-PER", "O", "B-LOC", "I-LOC"),
        (0.5, 1.0, 0.9, 0.25, 0.9, 0.75, 0.25),
    )
    assert prediction.entities == (
        Entity("PER", 0, 2, "Anna Berg", 0.75),
        Entity("PER", 3, 4, "Bo", 0.25),
        Entity("LOC", 5, 7, "New York", 0.5),
    )
    assert SentencePrediction((), (), ()).entities == ()
