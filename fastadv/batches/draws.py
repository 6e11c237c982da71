"""The data iterators of Algorithm 1 (lines 2, 7 and 13): seeded, their positions numbers."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastadv.batches.class_sampling import ClassSampler
from fastadv.batches.packing import PackedBatch, pack
from fastadv.batches.sampling import MixedSampler, Sampler
from fastadv.batches.sizes import Side, draw_within
from fastadv.batches.tokenization import TokenizedDataset


class Draws:
    """Draws task batches and D or G batches.

    Args:
        labeled: Labelled examples of the source language.
        english: Unlabelled sequences of the source language, from one or more sources drawn from
            as one; none without the adversary.
        others: Unlabelled sequences by language; every D or G batch shares them out equally.
        batch_size: Labelled examples in a task batch; texts of each side in a D or G batch.
        seed: Seed of the order.
        tokens_per_batch: Instead of `batch_size`, the word pieces that a task batch, or each side
            of a D or G batch, may hold; an example with more makes a batch of one. D and G
            batches keep as many texts of one side as of the other, as the paper's losses do.
        class_shares: By language of `others` the shares of the classes, (K,): the English text
            beside a text of that language is a labelled example of a class drawn by them. None
            for English text as it comes, the paper's.

    Raises:
        ValueError: A share asks for a class of which there is no labelled example.
    """

    def __init__(
        self,
        labeled: TokenizedDataset,
        english: Sequence[TokenizedDataset],
        others: Mapping[str, TokenizedDataset],
        batch_size: int,
        seed: int,
        tokens_per_batch: int | None = None,
        class_shares: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        self.labeled, self.others = labeled, dict(others)
        self.english = [(dataset, i) for dataset in english for i in range(len(dataset))]
        self._named = {"labeled": [labeled], "english": list(english)}
        self._named |= {language: [dataset] for language, dataset in others.items()}
        self.batch_size, self.tokens_per_batch = batch_size, tokens_per_batch
        # Computed once: lengths of a data set are differences of all its offsets.
        self._pieces = {language: dataset.lengths for language, dataset in self.others.items()}
        self._pieces_labeled = labeled.lengths
        self._pieces_english = _joined([dataset.lengths for dataset in english])
        # Task draws have a stream of their own, so that a baseline run sees the same ones.
        self._task = Sampler(len(labeled), seed, "task")
        self._english: Sampler | ClassSampler | None = None
        self._others: MixedSampler | None = None
        if self.english and others:
            self._english = self._english_sampler(seed, class_shares)
            sizes = {language: len(dataset) for language, dataset in others.items()}
            self._others = MixedSampler(sizes, seed, "others")

    def _english_sampler(
        self, seed: int, class_shares: Mapping[str, Sequence[float]] | None
    ) -> Sampler | ClassSampler:
        if class_shares is None:
            return Sampler(len(self.english), seed, "english")
        if self.labeled.labels is None:
            raise ValueError("found examples without a class, expected one each for class shares")
        return ClassSampler(self.labeled.labels, class_shares, seed, "english")

    def set_class_shares(self, shares: Mapping[str, Sequence[float]]) -> None:
        """Other shares, for draws to come.

        Raises:
            ValueError: See the class.
        """
        assert isinstance(self._english, ClassSampler)
        self._english.set_shares(shares)

    def pieces(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The word pieces, specials included, of each sequence on the English side, (E,) int64, and
        of those of each other language. Without the adversary there are no sequences.
        """
        return self._pieces_english, dict(self._pieces)

    def task_batch(self) -> PackedBatch:
        """Line 2: labelled source-language text."""
        (indices,) = self._draw(Side(self._task, lambda i: int(self._pieces_labeled[i])))
        return pack([self.labeled[int(i)] for i in indices])

    def language_batch(self) -> PackedBatch | None:
        """Lines 7 and 13: fresh other-language text, then fresh English text; None if there is
        no adversary.
        """
        if self._english is None or self._others is None:
            return None
        others, english = self._draw(
            Side(self._others, lambda drawn: int(self._pieces[drawn[0]][drawn[1]])),
            Side(self._english, lambda i: int(self._pieces_english[i])),
        )
        sequences = [self.others[language][int(i)] for language, i in others]
        for chosen in english:
            dataset, i = self.english[int(chosen)]
            sequences.append(dataset[i])
        return pack(sequences, english=[False] * len(others) + [True] * len(english))

    def _draw(self, *sides: Side) -> list[Any]:
        """What each side's sampler drew for the next batch."""
        if self.tokens_per_batch is None:
            return [side.sampler.draw(self.batch_size) for side in sides]
        return draw_within(self.tokens_per_batch, *sides)

    @property
    def positions(self) -> dict[str, Any]:
        """Examples drawn so far from each stream; setting them resumes there."""
        positions: dict[str, Any] = {"task": self._task.position}
        if self._english is not None and self._others is not None:
            positions |= {"english": self._english.position, "others": self._others.position}
        return positions

    @positions.setter
    def positions(self, positions: Mapping[str, Any]) -> None:
        self._task.position = positions["task"]
        if self._english is not None and self._others is not None:
            self._english.position = positions["english"]
            self._others.position = positions["others"]

    def fingerprint(self) -> dict[str, Any]:
        """Size and checksum of every data set: a resumed run must be over the same data."""
        return {
            name: [[len(dataset), zlib.crc32(dataset.input_ids.tobytes())] for dataset in datasets]
            for name, datasets in self._named.items()
        }


def _joined(lengths: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(lengths) if lengths else np.zeros(0, np.int64)
