"""What tokenising gives: word-piece ids in a few flat arrays, and views of one example."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TokenSequence:
    """One input of the encoder: a document, or a window of a sentence.

    Attributes:
        input_ids: (n,) int32, special tokens included.
        label: The class of a document, None where unlabelled.
        word_positions: (w,) int32, the token of the first piece of each word scored here; None
            for documents.
        word_labels: (w,) int64, None where unlabelled.
        word_indices: (w,) int32, the index of each of these words in its sentence.
    """

    input_ids: np.ndarray
    label: int | None = None
    word_positions: np.ndarray | None = None
    word_labels: np.ndarray | None = None
    word_indices: np.ndarray | None = None


@dataclass(frozen=True)
class TokenizedDataset:
    """E examples with S sequences in all, as columns. `dataset[i]` gives views and copies nothing.

    Attributes:
        input_ids: (T,) int32, all sequences end to end, special tokens included.
        token_offsets: (S + 1,) int64, where each sequence begins in `input_ids`.
        example_offsets: (E + 1,) int64, the first sequence of each example.
        labels: (E,) int64 classes of documents, or None.
        num_words: (E,) int32 words of each sentence, those without a word-piece included; None
            for documents.
        word_offsets: (S + 1,) int64, where the words of each sequence begin in the arrays below.
        word_positions: (W,) int32, the index of each word's token in its sequence.
        word_indices: (W,) int32, the index of each word in its sentence.
        word_labels: (W,) int64, or None where unlabelled.
    """

    input_ids: np.ndarray
    token_offsets: np.ndarray
    example_offsets: np.ndarray
    labels: np.ndarray | None = None
    num_words: np.ndarray | None = None
    word_offsets: np.ndarray | None = None
    word_positions: np.ndarray | None = None
    word_indices: np.ndarray | None = None
    word_labels: np.ndarray | None = None

    def __len__(self) -> int:
        """E, the number of examples."""
        return len(self.example_offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """(E,) int64: the tokens of each example, over all its windows."""
        return np.diff(self.token_offsets[self.example_offsets])

    @property
    def guessing_loss(self) -> float:
        """The least mean loss of predictions that are the same for every text, in nats: of a
        document, or summed over a sentence's words (paper, 3.1). It is the entropy of the labels.

        Raises:
            ValueError: The examples are unlabelled.
        """
        labels = self.labels if self.word_labels is None else self.word_labels
        if labels is None:
            raise ValueError("found no labels, expected labelled examples")
        counts = np.unique(labels, return_counts=True)[1]
        return float((counts * np.log(counts.sum() / counts)).sum() / len(self))

    def __getitem__(self, index: int) -> list[TokenSequence]:
        """The sequences of one example: one for a document, one or more for a sentence."""
        index = range(len(self))[index]
        label = None if self.labels is None else int(self.labels[index])
        first, last = self.example_offsets[index], self.example_offsets[index + 1]
        return [self._sequence(place, label) for place in range(first, last)]

    def __iter__(self) -> Iterator[list[TokenSequence]]:
        """Every example in turn."""
        return (self[index] for index in range(len(self)))

    def _sequence(self, place: int, label: int | None) -> TokenSequence:
        tokens = slice(self.token_offsets[place], self.token_offsets[place + 1])
        if self.word_offsets is None or self.word_positions is None or self.word_indices is None:
            return TokenSequence(self.input_ids[tokens], label)
        words = slice(self.word_offsets[place], self.word_offsets[place + 1])
        return TokenSequence(
            self.input_ids[tokens],
            word_positions=self.word_positions[words],
            word_labels=None if self.word_labels is None else self.word_labels[words],
            word_indices=self.word_indices[words],
        )


def as_unlabeled(dataset: TokenizedDataset) -> TokenizedDataset:
    """The same tokens without labels and words, every window an example of its own.

    This is what the D and G phases draw from (Algorithm 1, lines 7 and 13). Arrays are shared.
    """
    sequences = len(dataset.token_offsets) - 1
    return TokenizedDataset(dataset.input_ids, dataset.token_offsets, np.arange(sequences + 1))
