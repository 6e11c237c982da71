"""Batches of several languages in given proportions, each from its number alone."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastadv.batches.packing import PackedBatch
from fastadv.pretraining.corpus import LEAST_LENGTH, Corpus, Sequences
from fastadv.pretraining.masking import MaskedBatch, mask_tokens

HELD_OUT_RATE = 0.15


class LanguageBatches:
    """Draws batches.

    What a batch holds depends on seed, stream and step alone, so that a run can resume at any step.
    Sequences are drawn with replacement: an order without it would be state to keep, and with
    hundreds of thousands of them, each masked anew, the difference is small.

    Args:
        corpus: The corpus to draw from.
        tokens_per_batch: Pieces, special ones counted, that a batch may hold.
        seed: The seed of all draws.
        exponent: Tokens of a language are drawn in proportion to its share to this power.
        mask_rate: As in `mask_tokens`.
        source: The language that `PackedBatch.english` is True for.

    Raises:
        ValueError: `tokens_per_batch` is less than the longest sequence.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokens_per_batch: int,
        seed: int,
        exponent: float = 0.7,
        mask_rate: float = 0.15,
        source: str = "en",
    ) -> None:
        if tokens_per_batch < corpus.max_length:
            raise ValueError(
                f"tokens_per_batch is {tokens_per_batch}, expected at least the corpus's "
                f"max_length, {corpus.max_length}"
            )
        self.corpus, self.tokens_per_batch, self.seed = corpus, tokens_per_batch, seed
        self.mask_rate, self.source = mask_rate, source
        self._shares = corpus.shares(exponent)
        self._weights_by_length: dict[int, NDArray[np.float64]] = {}
        ordinary = np.ones(corpus.vocabulary, bool)
        ordinary[corpus.special["all"]] = False
        self._pieces = np.flatnonzero(ordinary)

    def masked_batch(self, step: int, max_length: int | None = None) -> MaskedBatch:
        """The batch of step `step`; a longer sequence gives a random window of `max_length` pieces.

        Raises:
            ValueError: `max_length` is less than `LEAST_LENGTH`.
        """
        rng = self._rng("masked", step)
        longest = min(max_length or self.corpus.max_length, self.corpus.max_length)
        if longest < LEAST_LENGTH:
            raise ValueError(f"max_length is {longest}, expected at least {LEAST_LENGTH}")
        everything = np.arange(len(self.corpus.languages))
        drawn = self._draw(rng, everything, self.tokens_per_batch, longest)
        return self._masked(*drawn, self.mask_rate, rng)

    def plain_batch(self, step: int, stream: str, tokens: int) -> PackedBatch:
        """Texts without masks for the discriminator or the generator: half of the tokens in the
        source language, half in the others, if there are both.

        Args:
            stream: The name of the draw; each name gives another.
            tokens: Pieces that the batch may hold; a side holds at least one longest sequence.
        """
        rng = self._rng(stream, step)
        own = np.array([name == self.source for name in self.corpus.languages])
        sides = [np.flatnonzero(side) for side in (~own, own) if side.any()]
        half = max(tokens // len(sides), self.corpus.max_length)
        drawn = [self._draw(rng, side, half, self.corpus.max_length) for side in sides]
        languages, starts, lengths = (np.concatenate(x) for x in zip(*drawn, strict=True))
        ids, fields = self._packed(languages, starts, lengths)
        fields["english"] = torch.from_numpy(own[languages])
        return PackedBatch(
            input_ids=torch.from_numpy(ids), labels=None, languages=torch.from_numpy(languages),
            **fields,
        )  # fmt: skip

    def held_out_batches(self, language: str, tokens: int) -> list[MaskedBatch]:
        """Every held-out sequence of a language, 15% of its tokens masked, always the same ones;
        batches in which nothing was masked are left out.
        """
        number = self.corpus.languages.index(language)
        held: Sequences = self.corpus.held_out[language]
        rng = np.random.Generator(np.random.Philox(zlib.crc32(language.encode())))
        # All at once, so that the masks do not depend on how the sequences are cut into batches.
        every = self._masked(
            np.full(len(held), number), held.starts, held.ends - held.starts, HELD_OUT_RATE, rng
        )
        cu_seqlens = every.cu_seqlens.numpy()
        found, begin = [], 0
        while begin < len(held):
            most = cu_seqlens[begin] + tokens
            end = max(begin + 1, int(np.searchsorted(cu_seqlens, most, side="right")) - 1)
            found.append(_part(every, begin, end))
            begin = end
        return [batch for batch in found if batch.masked is not None and len(batch.masked)]

    def _weights(self, longest: int) -> NDArray[np.float64]:
        """By language, how often its sequences are drawn: long ones less often, so that tokens
        come in proportion.
        """
        if longest not in self._weights_by_length:
            found = []
            for language in self.corpus.languages:
                own = self.corpus.training[language]
                mean = np.minimum(own.ends - own.starts, longest - 2).mean()
                found.append(self._shares[language] / mean)
            self._weights_by_length[longest] = np.array(found)
        return self._weights_by_length[longest]

    def _rng(self, stream: str, step: int) -> np.random.Generator:
        key = np.random.SeedSequence([self.seed, zlib.crc32(stream.encode()), step])
        return np.random.Generator(np.random.Philox(key))

    def _draw(
        self, rng: np.random.Generator, chosen: NDArray[np.int64], tokens: int, longest: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Sequences of some languages until the next would be too much: (B,) languages, starts in
        their ids, and lengths.
        """
        weights = self._weights(longest)[chosen]
        weights = weights / weights.sum()
        # More than can fit: no sequence has fewer than six pieces with the special ones.
        count = tokens // 6 + 1
        languages = chosen[np.searchsorted(np.cumsum(weights)[:-1], rng.random(count))]
        which, shift = rng.random(count), rng.random(count)
        starts, lengths = np.empty(count, np.int64), np.empty(count, np.int64)
        for number in chosen:
            mine = languages == number
            sequences = self.corpus.training[self.corpus.languages[number]]
            rows = (which[mine] * len(sequences)).astype(np.int64)
            sizes = sequences.ends[rows] - sequences.starts[rows]
            kept = np.minimum(sizes, longest - 2)
            window = (shift[mine] * (sizes - kept + 1)).astype(np.int64)
            starts[mine], lengths[mine] = sequences.starts[rows] + window, kept
        fits = int(np.searchsorted(np.cumsum(lengths + 2), tokens, side="right"))
        return languages[:fits], starts[:fits], lengths[:fits]

    def _packed(
        self, languages: NDArray[np.int64], starts: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], dict[str, Any]]:
        """(T,) ids with [CLS] and [SEP] around each sequence, and a batch's other fields."""
        corpus, sizes = self.corpus, lengths + 2
        ends = np.cumsum(sizes)
        ids = np.empty(ends[-1], np.int64)
        for language, start, size, end in zip(languages, starts, lengths, ends, strict=True):
            ids[end - size - 1 : end - 1] = corpus.input_ids[corpus.languages[language]][
                start : start + size
            ]
        ids[ends - sizes], ids[ends - 1] = corpus.special["cls"], corpus.special["sep"]
        positions = np.arange(len(ids)) - np.repeat(ends - sizes, sizes)
        return ids, {
            "position_ids": torch.from_numpy(positions),
            "cu_seqlens": torch.from_numpy(np.concatenate([[0], ends]).astype(np.int32)),
            "max_seqlen": int(sizes.max()),
            "english": None,
            "num_examples": len(sizes),
        }

    def _masked(
        self,
        languages: NDArray[np.int64],
        starts: NDArray[np.int64],
        lengths: NDArray[np.int64],
        rate: float,
        rng: np.random.Generator,
    ) -> MaskedBatch:
        ids, fields = self._packed(languages, starts, lengths)
        ordinary = ~np.isin(ids, self.corpus.special["all"])
        read, masked, labels = mask_tokens(
            ids, ordinary, rate, self._pieces, self.corpus.special["mask"], rng
        )
        return MaskedBatch(
            input_ids=torch.from_numpy(read), labels=torch.from_numpy(labels),
            masked=torch.from_numpy(masked), **fields,
        )  # fmt: skip


def _part(batch: MaskedBatch, begin: int, end: int) -> MaskedBatch:
    """Sequences [begin, end) of a batch."""
    assert batch.masked is not None and batch.labels is not None
    first, last = int(batch.cu_seqlens[begin]), int(batch.cu_seqlens[end])
    masked = (batch.masked >= first) & (batch.masked < last)
    cu_seqlens = batch.cu_seqlens[begin : end + 1] - first
    return MaskedBatch(
        input_ids=batch.input_ids[first:last],
        position_ids=batch.position_ids[first:last],
        cu_seqlens=cu_seqlens,
        max_seqlen=int(cu_seqlens.diff().max()),
        labels=batch.labels[masked],
        english=None,
        num_examples=end - begin,
        masked=batch.masked[masked] - first,
    )
