"""Named-entity recognition (Keung, Lu and Bhardwaj, EMNLP 2019, section 3.3)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import AutoModelForTokenClassification

from fastadv.batches.tokenization import TokenizedDataset, tokenize_sentences
from fastadv.config import SCORE, TASK_SETTINGS, ResolvedConfig, TaskName
from fastadv.data import Data, Sentence, as_sentences, iter_texts, place
from fastadv.nn.heads import AdversarialModel
from fastadv.tasks.inference import word_probabilities
from fastadv.tasks.labels import different_labels, shown_data
from fastadv.tasks.metrics import EntityScores, entities, entity_scores
from fastadv.tasks.task import Outputs

OUTSIDE = "O"


@dataclass(frozen=True)
class Entity:
    """A named entity: words `start` up to but not including `end`.

    Attributes:
        type: Such as "PER".
        start: The index of its first word in the sentence, from 0.
        end: One past the index of its last word.
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

    def as_json(self) -> dict[str, Any]:
        """{"text", "words", "tags", "entities": [{"type", "text", "start", "end", ...}]}

        start and end count words, start_char and end_char the characters of "text"; ends are
        exclusive. A probability is None where the model saw none of the entity's words.
        """
        begins = [0, *accumulate(len(word) + 1 for word in self.words)]
        return {
            "text": " ".join(self.words),
            "words": self.words,
            "tags": self.tags,
            "entities": [
                {
                    "type": entity.type,
                    "text": entity.text,
                    "start": entity.start,
                    "end": entity.end,
                    "start_char": begins[entity.start],
                    "end_char": begins[entity.end] - 1,
                    "probability": None if math.isnan(entity.probability) else entity.probability,
                }
                for entity in self.entities
            ],
        }


class NamedEntities:
    """One tag per word, which together spell entities; see `fastadv.tasks.task.Task`.

    Examples are `Sentence`s, the long ones in overlapping windows of `max_length` pieces.
    """

    name: TaskName = "ner"
    metric = SCORE[name]
    one_class = TASK_SETTINGS[name].one_class
    by_token = True
    auto_model = AutoModelForTokenClassification

    def checked_labels(self, labels: Sequence[str]) -> tuple[str, ...]:
        """The tags, if they are at least two different names, "O" among them."""
        found = different_labels(labels)
        if OUTSIDE not in found:
            raise ValueError(f"labels is {labels!r}, expected the tag 'O' among them for NER")
        return found

    def labels_of(self, data: Data) -> tuple[str, ...]:
        """The tag "O", then B- and I- of every entity type, in alphabetical order of the types.

        Both B- and I- are there for every type, seen or not: a small training set may lack a
        two-word entity that a test set has.

        Raises:
            ValueError: Malformed data, or no entity at all.
        """
        tags = {tag for sentence in as_sentences(data) for tag in sentence.tags or ()}
        types = sorted({tag[2:] for tag in tags if tag != OUTSIDE})
        if not types:
            raise ValueError(
                f"{shown_data(data)}: found no entity, expected tags such as B-PER beside O"
            )
        return (OUTSIDE, *(f"{prefix}-{kind}" for kind in types for prefix in "BI"))

    def labeled(self, data: Data) -> list[Sentence]:
        """As `as_sentences`."""
        return as_sentences(data)

    def texts(self, data: Data) -> Iterator[Sentence]:
        """As `iter_texts`: strings are split at white space."""
        return iter_texts(data, Sentence)

    def tokenize(
        self,
        tokenizer: Any,
        examples: Sequence[Sentence],
        label_ids: Mapping[str, int] | None,
        config: ResolvedConfig,
    ) -> TokenizedDataset:
        """As `tokenize_sentences`."""
        return tokenize_sentences(
            tokenizer, examples, label_ids, config.max_length, config.window_overlap
        )

    def evaluation(
        self,
        tokenizer: Any,
        examples: Sequence[Sentence],
        label_ids: Mapping[str, int],
        config: ResolvedConfig,
    ) -> tuple[TokenizedDataset, list[Any]]:
        """Sentences and their tags.

        A test set may hold an entity type that was not trained on, which then counts as missed. So
        the data set itself has no labels.

        Raises:
            ValueError: A sentence has no tags.
        """
        gold = [sentence.tags for sentence in examples]
        if None in gold:
            number = gold.index(None)
            where = place(examples[number], number)
            raise ValueError(f"{where}: found no tags, expected one a word")
        return self.tokenize(tokenizer, examples, None, config), list(gold)

    def outputs(
        self, model: AdversarialModel, dataset: TokenizedDataset, batch_size: int
    ) -> list[NDArray[np.float32]]:
        """p(Y_t | x) of every word, (words, K) float32 a sentence; NaN where no piece is seen."""
        return word_probabilities(model, dataset, batch_size)

    def rows(self, outputs: Outputs) -> NDArray[Any]:
        """(M, K): p(Y_t | x) of M words, those that the model sees a piece of."""
        words = np.concatenate(list(outputs))
        seen: NDArray[Any] = words[~np.isnan(words).any(axis=1)]
        return seen

    def groups(self, labels: Sequence[str]) -> tuple[str, ...]:
        """ "O", or the type of entity that a tag is of."""
        return tuple(map(_type, labels))

    def apart(self) -> frozenset[str]:
        """Words outside of entities: their number says how many there are, not of which type."""
        return frozenset((OUTSIDE,))

    def counts(self, examples: Sequence[Sentence]) -> Counter[str]:
        """Words of each type of entity, and those outside."""
        return Counter(_type(tag) for sentence in examples for tag in sentence.tags or ())

    def classes(self, gold: Sequence[Any]) -> set[str]:
        """Types of entities, and "O" where there is one."""
        return {_type(tag) for tags in gold for tag in tags}

    def known(
        self, outputs: Outputs, gold: Sequence[Any], labels: Sequence[str]
    ) -> tuple[NDArray[Any], list[str]]:
        """Of the words that the model sees: p(Y_t | x), and the type of entity they are of."""
        found = []
        for rows, tags in zip(outputs, gold, strict=True):
            unseen = np.isnan(rows).any(axis=1)
            found += [_type(tag) for tag, hidden in zip(tags, unseen, strict=True) if not hidden]
        return self.rows(outputs), found

    def report(self, outputs: Outputs, gold: Sequence[Any], labels: Sequence[str]) -> EntityScores:
        """Precision, recall and F1 of entities, micro-averaged and of each type."""
        return entity_scores(gold, [_tags(rows, labels) for rows in outputs])

    def predictions(
        self, outputs: Outputs, examples: Sequence[Sentence], labels: Sequence[str]
    ) -> list[SentencePrediction]:
        """The likeliest tag of each word, and its probability."""
        return [
            SentencePrediction(
                sentence.words, tuple(_tags(rows, labels)), tuple(rows.max(axis=1).tolist())
            )
            for sentence, rows in zip(examples, outputs, strict=True)
        ]


def _type(tag: str) -> str:
    return tag if tag == OUTSIDE else tag[2:]


def _tags(probabilities: NDArray[np.float32], labels: Sequence[str]) -> list[str]:
    """The likeliest tag of each word; "O" for a word the model never saw (a row of NaN)."""
    seen = ~np.isnan(probabilities).any(axis=1)
    best = np.where(seen, np.nan_to_num(probabilities).argmax(axis=1), -1)
    return [OUTSIDE if k < 0 else labels[k] for k in best]
