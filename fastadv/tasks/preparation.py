"""From what a caller holds to tokens, as one task, tokenizer and configuration want them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastadv.batches.draws import Draws
from fastadv.batches.tokenization import (
    TokenizedDataset,
    as_unlabeled,
    tokenize_documents,
    tokenize_sentences,
)
from fastadv.config import ResolvedConfig, Task
from fastadv.data import Data, Document, Sentence, as_documents, as_sentences, as_texts, place
from fastadv.tasks.evaluation_set import EvaluationSet


class Preparation:
    """Reads and tokenises; each text once.

    Args:
        task: "classification" or "ner".
        labels: The names of the output's classes or tags, in their order.
        tokenizer: A fast tokenizer.
        config: `max_length`, `window_overlap`, `batch_size`, `tokens_per_batch`, `seed`,
            `source_language` and `adversarial` are read.
    """

    def __init__(
        self, task: Task, labels: Sequence[str], tokenizer: Any, config: ResolvedConfig
    ) -> None:
        self.task, self.tokenizer, self.config = task, tokenizer, config
        self.label_ids = {label: k for k, label in enumerate(labels)}

    def documents(self, documents: Sequence[Document], labels: bool = False) -> TokenizedDataset:
        """Documents cut at `max_length` pieces."""
        ids = self.label_ids if labels else None
        return tokenize_documents(self.tokenizer, documents, ids, self.config.max_length)

    def sentences(self, sentences: Sequence[Sentence], labels: bool = False) -> TokenizedDataset:
        """Sentences, the long ones in overlapping windows of `max_length` pieces."""
        ids = self.label_ids if labels else None
        config = self.config
        return tokenize_sentences(
            self.tokenizer, sentences, ids, config.max_length, config.window_overlap
        )

    def labeled(self, data: Data) -> TokenizedDataset:
        """Labelled examples for the task phase."""
        if self.task == "classification":
            return self.documents(as_documents(data), labels=True)
        return self.sentences(as_sentences(data), labels=True)

    def unlabeled(self, data: Data) -> TokenizedDataset:
        """Text for the D and G phases: every window of a long sentence an example of its own."""
        if self.task == "classification":
            return as_unlabeled(self.documents(as_texts(data, "classification")))
        return as_unlabeled(self.sentences(as_texts(data, "ner")))

    def evaluation_set(self, data: Data) -> EvaluationSet:
        """Labelled examples to score.

        Raises:
            ValueError: An example has no label, or a document one that was not trained on. (An
                entity type that was not trained on may well stand in a test set: it is missed.)
        """
        gold: list[Any]
        if self.task == "classification":
            documents = as_documents(data)
            gold = [document.label for document in documents]
            return EvaluationSet("classification", self.documents(documents, labels=True), gold)
        sentences = as_sentences(data)
        gold = [sentence.tags for sentence in sentences]
        if None in gold:
            number = gold.index(None)
            where = place(sentences[number], number)
            raise ValueError(f"{where}: found no tags, expected one a word")
        return EvaluationSet("ner", self.sentences(sentences), gold)

    def draws(self, labeled: Data, unlabeled: Mapping[str, Data]) -> Draws:
        """The data iterators of a run.

        Raises:
            ValueError: The adversary is on and there is no text of another language.
        """
        config = self.config
        dataset = self.labeled(labeled)
        english: list[TokenizedDataset] = []
        others: dict[str, TokenizedDataset] = {}
        if config.adversarial:
            others = {language: self.unlabeled(data) for language, data in unlabeled.items()}
            english.append(as_unlabeled(dataset))
            if config.source_language in others:
                english.append(others.pop(config.source_language))
            if not others:
                raise ValueError(
                    "unlabeled holds no text of another language, expected at least one, or "
                    "adversarial=False"
                )
        return Draws(
            dataset, english, others, config.batch_size, config.seed, config.tokens_per_batch
        )
