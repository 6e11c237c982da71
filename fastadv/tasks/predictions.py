"""What a model says of examples, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastadv.batches.tokenization import TokenizedDataset
from fastadv.data import Document, Sentence
from fastadv.nn.heads import AdversarialModel
from fastadv.tasks.evaluation_set import tags_of
from fastadv.tasks.inference import document_probabilities, word_probabilities
from fastadv.tasks.metrics import entities


@dataclass(frozen=True)
class DocumentPrediction:
    """A document, its likeliest label, and p(Y | x) of every label."""

    text: str
    label: str
    probabilities: dict[str, float]


@dataclass(frozen=True)
class Entity:
    """A named entity: words `start` up to but not including `end`.

    Attributes:
        type: Such as "PER".
        start: The place of its first word in the sentence, from 0.
        end: One past the place of its last word.
        text: Its words with a blank between them.
        probability: The mean of its words' tag probabilities.
    """

    type: str
    start: int
    end: int
    text: str
    probability: float


@dataclass(frozen=True)
class SentencePrediction:
    """A sentence's words, the likeliest tag of each, and that tag's probability.

    A word that the tokenizer gives no word piece is tagged "O" with probability NaN.
    """

    words: tuple[str, ...]
    tags: tuple[str, ...]
    probabilities: tuple[float, ...]

    @property
    def entities(self) -> tuple[Entity, ...]:
        """The entities that the tags spell, read as conlleval reads them, in their order."""
        found = sorted(entities(self.tags), key=lambda entity: entity[1])
        return tuple(
            Entity(
                kind,
                start,
                end,
                " ".join(self.words[start:end]),
                sum(self.probabilities[start:end]) / (end - start),
            )
            for kind, start, end in found
        )


def predict_documents(
    model: AdversarialModel,
    dataset: TokenizedDataset,
    documents: Sequence[Document],
    labels: Sequence[str],
    batch_size: int,
) -> list[DocumentPrediction]:
    """One prediction a document, in their order; `dataset` holds the documents' tokens."""
    rows = document_probabilities(model, dataset, batch_size)
    return [
        DocumentPrediction(
            document.text, labels[int(row.argmax())], dict(zip(labels, row.tolist(), strict=True))
        )
        for document, row in zip(documents, rows, strict=True)
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
