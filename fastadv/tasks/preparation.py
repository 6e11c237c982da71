"""From the caller's data to tokens, as one task, tokenizer and configuration need them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from fastadv.batches.draws import Draws
from fastadv.batches.tokenized import TokenizedDataset, as_unlabeled
from fastadv.config import ResolvedConfig
from fastadv.data import Data
from fastadv.tasks.evaluation_set import EvaluationSet
from fastadv.tasks.task import Task


class Preparation:
    """Reads and tokenises each text once.

    Args:
        task: What is predicted.
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

    def tokenized(self, examples: Sequence[Any]) -> TokenizedDataset:
        """Examples of the task, in their order, without their labels."""
        return self.task.tokenize(self.tokenizer, examples, None, self.config)

    def labeled(self, data: Data) -> TokenizedDataset:
        """Labelled examples for the task phase.

        Raises:
            ValueError: Malformed data, or a label that is missing or unknown.
        """
        examples = self.task.labeled(data)
        return self.task.tokenize(self.tokenizer, examples, self.label_ids, self.config)

    def unlabeled(
        self, data: Data, look: Callable[[Sequence[Any]], None] | None = None
    ) -> TokenizedDataset:
        """Text for the D and G phases; every window of a long sentence is an example by itself.

        Args:
            data: Text, with or without labels.
            look: Called with the examples of the task that it is read as.

        Raises:
            ValueError: Malformed data.
        """
        examples = list(self.task.texts(data))
        if look is not None:
            look(examples)
        return as_unlabeled(self.tokenized(examples))

    def evaluation_set(self, data: Data) -> EvaluationSet:
        """Labelled examples to score.

        Raises:
            ValueError: Malformed data, or an example that the task cannot score: one without
                labels, or a document whose label was not trained on.
        """
        task = self.task
        found = task.evaluation(self.tokenizer, task.labeled(data), self.label_ids, self.config)
        return EvaluationSet(task, *found)

    def draws(
        self,
        labeled: Data,
        unlabeled: Mapping[str, Data],
        class_shares: Mapping[str, Sequence[float]] | None = None,
        look: Callable[[str, Sequence[Any]], None] | None = None,
    ) -> Draws:
        """The data iterators of a run.

        Args:
            labeled: Labelled examples.
            unlabeled: Text by language.
            class_shares: See `Draws`; English text without labels is then not drawn.
            look: Called with each name in `unlabeled` and its examples of the task, which are not
                kept: what is to be known of them beyond their word pieces is found out here.

        Raises:
            ValueError: The adversary is on and there is no text of another language.
        """
        config = self.config
        dataset = self.labeled(labeled)
        english: list[TokenizedDataset] = []
        others: dict[str, TokenizedDataset] = {}
        if config.adversarial:
            for language, data in unlabeled.items():
                others[language] = self.unlabeled(data, look and partial(look, language))
            english.append(as_unlabeled(dataset))
            if config.source_language in others:
                text = others.pop(config.source_language)
                if class_shares is None:
                    english.append(text)
            if not others:
                raise ValueError(
                    "unlabeled holds no text of another language, expected at least one, or "
                    "adversarial=False"
                )
        return Draws(
            dataset,
            english,
            others,
            config.batch_size,
            config.seed,
            config.tokens_per_batch,
            class_shares,
        )
