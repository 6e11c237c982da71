"""Classification of documents (Keung, Lu and Bhardwaj, EMNLP 2019, section 3.2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastadv.batches.tokenization import TokenizedDataset, tokenize_documents
from fastadv.config import SCORE, ResolvedConfig, TaskName
from fastadv.data import Data, Document, as_documents, iter_texts
from fastadv.nn.heads import AdversarialModel
from fastadv.tasks.inference import document_probabilities
from fastadv.tasks.labels import different_labels, shown_data
from fastadv.tasks.metrics import DocumentReport, document_report


@dataclass(frozen=True)
class DocumentPrediction:
    """A document, its likeliest label, and p(Y | x) of every label."""

    text: str
    label: str
    probabilities: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """{"text", "label", "probabilities": {label: number}}"""
        return {"text": self.text, "label": self.label, "probabilities": self.probabilities}


class Classification:
    """One label per document; see `fastadv.tasks.task.Task`.

    Examples are `Document`s, cut at `max_length`. The head reads the mean over a text's pieces, for
    which transformers has no class.
    """

    name: TaskName = "classification"
    metric = SCORE[name]
    by_token = False
    auto_model = None

    def checked_labels(self, labels: Sequence[str]) -> tuple[str, ...]:
        """The classes, if they are at least two different names."""
        return different_labels(labels)

    def labels_of(self, data: Data) -> tuple[str, ...]:
        """The classes in alphabetical order.

        Raises:
            ValueError: Malformed data, or fewer than two classes.
        """
        classes = sorted({d.label for d in as_documents(data) if d.label is not None})
        if len(classes) < 2:
            found = f"the one label {classes[0]!r}" if classes else "no label"
            raise ValueError(
                f"{shown_data(data)}: found {found}, expected at least two different ones"
            )
        return tuple(classes)

    def labeled(self, data: Data) -> list[Document]:
        """As `as_documents`."""
        return as_documents(data)

    def texts(self, data: Data) -> Iterator[Document]:
        """As `iter_texts`."""
        return iter_texts(data, Document)

    def tokenize(
        self,
        tokenizer: Any,
        examples: Sequence[Document],
        label_ids: Mapping[str, int] | None,
        config: ResolvedConfig,
    ) -> TokenizedDataset:
        """As `tokenize_documents`."""
        return tokenize_documents(tokenizer, examples, label_ids, config.max_length)

    def evaluation(
        self,
        tokenizer: Any,
        examples: Sequence[Document],
        label_ids: Mapping[str, int],
        config: ResolvedConfig,
    ) -> tuple[TokenizedDataset, list[Any]]:
        """Documents and their labels.

        Raises:
            ValueError: A document has no label, or one that was not trained on.
        """
        dataset = self.tokenize(tokenizer, examples, label_ids, config)
        return dataset, [document.label for document in examples]

    def probabilities(
        self, model: AdversarialModel, dataset: TokenizedDataset, batch_size: int
    ) -> NDArray[np.float32]:
        """(N, K) float32: p(Y | x) of N documents."""
        return document_probabilities(model, dataset, batch_size)

    def report(
        self,
        model: AdversarialModel,
        dataset: TokenizedDataset,
        gold: Sequence[Any],
        labels: Sequence[str],
        batch_size: int,
    ) -> DocumentReport:
        """Accuracy, macro-F1, the confusion matrix and each class.

        Macro-F1 is over the labels of the model, whether a data set holds them all or not.
        """
        best = document_probabilities(model, dataset, batch_size).argmax(axis=1)
        return document_report(gold, [labels[k] for k in best], labels)

    def predictions(
        self,
        model: AdversarialModel,
        dataset: TokenizedDataset,
        examples: Sequence[Document],
        labels: Sequence[str],
        batch_size: int,
    ) -> list[DocumentPrediction]:
        """The likeliest label of each document, and the probabilities of all."""
        rows = document_probabilities(model, dataset, batch_size)
        return [
            DocumentPrediction(
                document.text,
                labels[int(row.argmax())],
                dict(zip(labels, row.tolist(), strict=True)),
            )
            for document, row in zip(examples, rows, strict=True)
        ]
