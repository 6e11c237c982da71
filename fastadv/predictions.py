"""What a model says of examples, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastadv.data import Sentence
from fastadv.evaluate import document_probabilities, tags_of, word_probabilities
from fastadv.heads import AdversarialModel
from fastadv.tokenization import TokenizedDataset


@dataclass(frozen=True)
class DocumentPrediction:
    """The likeliest label of a document, and p(Y | x) of every label."""

    label: str
    probabilities: dict[str, float]


@dataclass(frozen=True)
class SentencePrediction:
    """A sentence's words, the likeliest tag of each, and that tag's probability.

    A word that the tokenizer gives no word piece is tagged "O" with probability NaN.
    """

    words: tuple[str, ...]
    tags: tuple[str, ...]
    probabilities: tuple[float, ...]


def predict_documents(
    model: AdversarialModel, dataset: TokenizedDataset, labels: Sequence[str], batch_size: int
) -> list[DocumentPrediction]:
    """One prediction a document, in the order of the data set."""
    return [
        DocumentPrediction(labels[int(row.argmax())], dict(zip(labels, row.tolist(), strict=True)))
        for row in document_probabilities(model, dataset, batch_size)
    ]


def predict_sentences(
    model: AdversarialModel,
    dataset: TokenizedDataset,
    sentences: Sequence[Sentence],
    labels: Sequence[str],
    batch_size: int,
) -> list[SentencePrediction]:
    """One prediction a sentence; `dataset` holds the sentences' tokens."""
    rows = word_probabilities(model, dataset, batch_size)
    return [
        SentencePrediction(
            sentence.words, tuple(tags_of(row, labels)), tuple(row.max(axis=1).tolist())
        )
        for sentence, row in zip(sentences, rows, strict=True)
    ]
