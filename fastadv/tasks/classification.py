"""Classification of documents (Keung, Lu and Bhardwaj, EMNLP 2019, section 3.2)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastadv.batches.tokenization import TokenizedDataset, tokenize_documents
from fastadv.config import SCORE, TASK_SETTINGS, ResolvedConfig, TaskName
from fastadv.data import Data, Document, as_documents, iter_texts
from fastadv.nn.heads import AdversarialModel
from fastadv.tasks.inference import document_probabilities
from fastadv.tasks.labels import different_labels, shown_data
from fastadv.tasks.metrics import DocumentReport, document_report
from fastadv.tasks.task import Outputs


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
    one_class = TASK_SETTINGS[name].one_class
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

    def outputs(
        self, model: AdversarialModel, dataset: TokenizedDataset, batch_size: int
    ) -> NDArray[np.float32]:
        """(N, K) float32: p(Y | x) of N documents."""
        return document_probabilities(model, dataset, batch_size)

    def rows(self, outputs: Outputs) -> NDArray[Any]:
        """The same."""
        return np.asarray(outputs)

    def groups(self, labels: Sequence[str]) -> tuple[str, ...]:
        """Every label is a class."""
        return tuple(labels)

    def apart(self) -> frozenset[str]:
        """None is."""
        return frozenset()

    def counts(self, examples: Sequence[Document]) -> Counter[str]:
        """Documents of each label."""
        return Counter(document.label for document in examples if document.label is not None)

    def classes(self, gold: Sequence[Any]) -> set[str]:
        """The labels in it."""
        return set(gold)

    def known(
        self, outputs: Outputs, gold: Sequence[Any], labels: Sequence[str]
    ) -> tuple[NDArray[Any], list[str]]:
        """p(Y | x) and the label of each document."""
        return self.rows(outputs), list(gold)

    def report(
        self, outputs: Outputs, gold: Sequence[Any], labels: Sequence[str]
    ) -> DocumentReport:
        """Accuracy, macro-F1, the confusion matrix and each class.

        Macro-F1 is over the labels of the model, whether a data set holds them all or not.
        """
        best = np.asarray(outputs).argmax(axis=1)
        return document_report(gold, [labels[k] for k in best], labels)

    def predictions(
        self, outputs: Outputs, examples: Sequence[Document], labels: Sequence[str]
    ) -> list[DocumentPrediction]:
        """The likeliest label of each document, and the probabilities of all."""
        return [
            DocumentPrediction(
                document.text,
                labels[int(row.argmax())],
                dict(zip(labels, row.tolist(), strict=True)),
            )
            for document, row in zip(examples, outputs, strict=True)
        ]
