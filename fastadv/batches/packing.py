"""Sequences laid end to end without padding, with the borders between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from fastadv.batches.tokenized import TokenSequence

IGNORE_INDEX = -100
"""The label of a token that is not scored; PyTorch's own default for `cross_entropy`."""


@dataclass(frozen=True)
class TableRows:
    """Which rows of the word table a batch reads.

    Attributes:
        ids: (U,) int64, ascending, each once; on the host.
        inverse: (T,) int64, the index of each token's id among them (torch.unique's word).
        device_ids: The ids where the tokens are, -1 for none after them; None where they were not
            brought there ahead of time.
        segments: (T,), (U + 1,), (T,) and (L + 1,) int32, where known: tokens by row, and where
            each row's begin, of the words, and the same of the positions in a sequence.
    """

    ids: Tensor
    inverse: Tensor
    device_ids: Tensor | None = None
    segments: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    @classmethod
    def of(cls, input_ids: Tensor) -> TableRows:
        """The rows of ids (T,); on a GPU this waits for them."""
        ids, inverse = np.unique(input_ids.cpu().numpy(), return_inverse=True)
        return cls(torch.from_numpy(ids), torch.from_numpy(inverse).to(input_ids.device))

    def on(self, device: torch.device) -> Tensor:
        """The ids on `device`; a GPU that does not have them waits for the host."""
        return self.ids.to(device) if self.device_ids is None else self.device_ids

    def to(self, device: torch.device | str, non_blocking: bool = False) -> TableRows:
        """The same with `inverse` on `device`."""
        return replace(self, inverse=self.inverse.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> TableRows:
        """The same in page-locked host memory."""
        return TableRows(self.ids.pin_memory(), self.inverse.pin_memory())


@dataclass(frozen=True)
class PackedBatch:
    """B sequences of T tokens in all, one after the other.

    Sequence b holds the tokens `cu_seqlens[b]` up to, not including, `cu_seqlens[b + 1]`.

    Attributes:
        input_ids: (T,) int64, word-piece ids.
        position_ids: (T,) int64, counted from 0 in each sequence.
        cu_seqlens: (B + 1,) int32, where each sequence begins, and last T.
        max_seqlen: The longest sequence in tokens, on the host.
        labels: None where unlabelled; (B,) int64 for classification; (T,) int64 for named
            entities, `IGNORE_INDEX` on every token but the first piece of a word scored here.
        english: None, or (B,) bool: True where the sequence is English (the paper's y_A).
        languages: None, or (B,) int64: the number of the language that a sequence is in.
        num_examples: Documents or sentences in the batch. A sentence cut into several windows
            counts once, so this is what a loss "per sentence" is averaged over. () float32 where
            the host's number would be that of another batch, in a CUDA graph.
        rows: The word table's rows that are read, as `pack` finds them; None where unknown.
        counted: None, or (B,) bool: False where a sequence only fills the batch up.
        seed: None, or (1,) int64, which dropout is drawn from.
    """

    input_ids: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    labels: Tensor | None
    english: Tensor | None
    num_examples: int | Tensor
    rows: TableRows | None = None
    counted: Tensor | None = None
    seed: Tensor | None = None
    languages: Tensor | None = None

    def __len__(self) -> int:
        """B, the number of sequences."""
        return self.cu_seqlens.numel() - 1

    @property
    def num_tokens(self) -> int:
        """T, the number of tokens."""
        return self.input_ids.numel()

    def _map(self, change: str, /, *args: object, **kwargs: object) -> PackedBatch:
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {
            name: getattr(value, change)(*args, **kwargs)
            for name, value in tensors.items()
            if isinstance(value, Tensor | TableRows)
        }
        return replace(self, **moved)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedBatch:
        """The same batch with every tensor on `device`."""
        return self._map("to", device, non_blocking=non_blocking)

    def pin_memory(self) -> PackedBatch:
        """The same batch in page-locked host memory; PyTorch raises where there is no GPU."""
        return self._map("pin_memory")

    def padded_indices(self) -> Tensor:
        """(T,) int64: where each token lies in a padded (B, L, ...) tensor seen as (B * L, ...).

        `padded.flatten(0, 1)[batch.padded_indices()]` is the packed tensor, which is
        `padded[attention_mask.bool()]` without the wait for the device that a mask costs.
        """
        sizes = self.cu_seqlens.diff().long()
        rows = torch.arange(len(self), device=sizes.device)
        rows = rows.repeat_interleave(sizes, output_size=self.num_tokens)
        return rows * self.max_seqlen + self.position_ids

    def pad(self, pad_id: int) -> tuple[Tensor, Tensor]:
        """The batch as models with padding read it, each sequence padded on the right.

        Returns:
            input_ids (B, L) int64 and attention_mask (B, L) int64, 1 on tokens and 0 on padding,
            with L = `max_seqlen`.
        """
        shape = (len(self), self.max_seqlen)
        where = self.padded_indices()
        ids = self.input_ids.new_full(shape, pad_id)
        ids.view(-1)[where] = self.input_ids
        mask = self.input_ids.new_zeros(shape)
        # index_fill_ takes its value from the host; `mask[where] = 1` would copy it to the device.
        mask.view(-1).index_fill_(0, where, 1)
        return ids, mask


def pack(
    sequences_per_example: Sequence[Sequence[TokenSequence]],
    english: Sequence[bool] | None = None,
) -> PackedBatch:
    """Lay the sequences of some examples end to end, in the order given.

    Args:
        sequences_per_example: For each example its sequences, as `TokenizedDataset[i]` gives
            them: one for a document, one or more windows for a sentence.
        english: One bool an example, or None; every window takes that of its example.

    Raises:
        ValueError: There is no example, some sequences are labelled and others are not, or
            `english` is not as long as the examples.
    """
    sequences = [sequence for example in sequences_per_example for sequence in example]
    if not sequences:
        raise ValueError("found no sequence to pack, expected at least one")
    arrays = [sequence.input_ids for sequence in sequences]
    lengths = np.fromiter(map(len, arrays), np.int64, len(arrays))
    cu_seqlens = np.zeros(len(arrays) + 1, np.int64)
    np.cumsum(lengths, out=cu_seqlens[1:])
    total = int(cu_seqlens[-1])
    positions = np.arange(total) - np.repeat(cu_seqlens[:-1], lengths)
    languages = None
    if english is not None:
        if len(english) != len(sequences_per_example):
            raise ValueError(
                f"found {len(english)} entries in english, "
                f"expected {len(sequences_per_example)}, one an example"
            )
        windows = [len(example) for example in sequences_per_example]
        languages = torch.from_numpy(np.repeat(np.asarray(english, bool), windows))
    input_ids = torch.from_numpy(np.concatenate(arrays).astype(np.int64))
    return PackedBatch(
        input_ids=input_ids,
        position_ids=torch.from_numpy(positions),
        cu_seqlens=torch.from_numpy(cu_seqlens.astype(np.int32)),
        max_seqlen=int(lengths.max()),
        labels=_pack_labels(sequences, total),
        english=languages,
        num_examples=len(sequences_per_example),
        rows=TableRows.of(input_ids),
    )


def concat(first: PackedBatch, second: PackedBatch) -> PackedBatch:
    """One batch of the sequences of two, those of `first` before those of `second`.

    Both are of one task and on one device, which nothing waits for. Labels, and `english`, stay
    where both have them; `rows`, `counted` and the seed do not.
    """

    def joined(a: Tensor | None, b: Tensor | None) -> Tensor | None:
        return None if a is None or b is None else torch.cat([a, b])

    ends = second.cu_seqlens[1:] + first.num_tokens
    return PackedBatch(
        input_ids=torch.cat([first.input_ids, second.input_ids]),
        position_ids=torch.cat([first.position_ids, second.position_ids]),
        cu_seqlens=torch.cat([first.cu_seqlens, ends]),
        max_seqlen=max(first.max_seqlen, second.max_seqlen),
        labels=joined(first.labels, second.labels),
        english=joined(first.english, second.english),
        num_examples=first.num_examples + second.num_examples,
    )


def _scored_tokens(sequences: Sequence[TokenSequence]) -> np.ndarray:
    """(W,) int64: where in the packed tokens the first piece of each scored word lies."""
    indices = []
    start = 0
    for sequence in sequences:
        if sequence.word_positions is None:
            raise ValueError("found a sequence without words, expected one cut from a sentence")
        indices.append(sequence.word_positions.astype(np.int64) + start)
        start += len(sequence.input_ids)
    return np.concatenate(indices) if indices else np.zeros(0, np.int64)


def _pack_labels(sequences: Sequence[TokenSequence], total: int) -> Tensor | None:
    """(B,) labels of documents, (total,) labels of words, or None where there is neither."""
    labels = [s.label for s in sequences if s.label is not None]
    word_labels = [s.word_labels for s in sequences if s.word_labels is not None]
    if not labels and not word_labels:
        return None
    if len(sequences) not in (len(labels), len(word_labels)):
        raise ValueError(
            f"found {len(labels) + len(word_labels)} labelled sequences among {len(sequences)}, "
            "expected all or none, and of one task"
        )
    if labels:
        return torch.tensor(labels, dtype=torch.int64)
    packed = np.full(total, IGNORE_INDEX, np.int64)
    packed[_scored_tokens(sequences)] = np.concatenate(word_labels)
    return torch.from_numpy(packed)
