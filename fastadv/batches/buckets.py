"""Batches brought to one of few sizes, in one piece of memory, as a CUDA graph needs them.

A batch is filled up with sequences that count for nothing: their tokens have no label, their means
no part in a loss, and so no gradient. What depends on the batch and is not a size is a tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastadv.batches.packing import IGNORE_INDEX, PackedBatch, TableRows

# Tokens go up by 64, and from 1,024 on by sixteenths of a power of two: at most a sixteenth is
# filled up, and 2% on average. Attention's blocks of keys and queries are of 64.
STEP_TOKENS, STEP_SEQUENCES, STEP_LENGTH = 64, 8, 64
_ALIGNMENT = 16


@dataclass(frozen=True)
class Bucket:
    """A size of batches.

    Attributes:
        tokens: T.
        sequences: B.
        max_seqlen: What no sequence is longer than.
        labels: "documents" for (B,), "tokens" for (T,), None for none.
        languages: Whether sequences are English or not.
    """

    tokens: int
    sequences: int
    max_seqlen: int
    labels: str | None
    languages: bool

    @cached_property
    def fields(self) -> dict[str, tuple[torch.dtype, int, int]]:
        """dtype, elements and first byte of each tensor, by name."""
        tokens, sequences, length = self.tokens, self.sequences, self.max_seqlen
        kinds: dict[str, tuple[torch.dtype, int]] = {
            "input_ids": (torch.int64, tokens),
            "position_ids": (torch.int64, tokens),
            "inverse": (torch.int64, tokens),
            "rows": (torch.int64, tokens),
            "seed": (torch.int64, 1),
            "cu_seqlens": (torch.int32, sequences + 1),
            "word_order": (torch.int32, tokens),
            "word_starts": (torch.int32, tokens + 1),
            "position_order": (torch.int32, tokens),
            "position_starts": (torch.int32, length + 1),
            "num_examples": (torch.float32, 1),
            "counted": (torch.bool, sequences),
        }
        if self.labels:
            kinds["labels"] = (torch.int64, tokens if self.labels == "tokens" else sequences)
        if self.languages:
            kinds["english"] = (torch.bool, sequences)
        found, offset = {}, 0
        for name, (dtype, count) in kinds.items():
            found[name] = (dtype, count, offset)
            offset += -(-count * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
        return found

    @property
    def size(self) -> int:
        """Bytes of a batch."""
        dtype, count, offset = list(self.fields.values())[-1]
        return offset + -(-count * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT

    def views(self, buffer: Tensor) -> dict[str, Tensor]:
        """The tensors in a buffer (size,) uint8."""
        return {
            name: buffer[offset : offset + count * dtype.itemsize].view(dtype)
            for name, (dtype, count, offset) in self.fields.items()
        }

    def batch(self, buffer: Tensor) -> PackedBatch:
        """The batch in a buffer (size,) uint8 that `fill` wrote, on any device."""
        found = self.views(buffer)
        segments = (
            found["word_order"],
            found["word_starts"],
            found["position_order"],
            found["position_starts"],
        )
        rows = TableRows(found["rows"], found["inverse"], found["rows"], segments)
        return PackedBatch(
            found["input_ids"],
            found["position_ids"],
            found["cu_seqlens"],
            self.max_seqlen,
            found.get("labels"),
            found.get("english"),
            found["num_examples"][0],
            rows,
            found["counted"],
            found["seed"],
        )


def bucket_of(batch: PackedBatch, longest: int) -> Bucket:
    """The smallest bucket that holds a batch.

    Args:
        batch: A batch on any device; nothing waits for it.
        longest: The longest sequence that the encoder takes; no bucket's bound is above it.
    """
    tokens, length = batch.num_tokens, batch.max_seqlen
    step = max(STEP_TOKENS, (1 << (tokens.bit_length() - 1)) // 16)
    bound = min(longest, max(STEP_LENGTH, 1 << (length - 1).bit_length()))
    # As many fillers as the widest gap needs, whatever this batch's is.
    sequences = len(batch) + -(-(step - 1) // bound)
    labels = None
    if batch.labels is not None:
        labels = "tokens" if len(batch.labels) == tokens != len(batch) else "documents"
    return Bucket(
        -(-tokens // step) * step,
        -(-sequences // STEP_SEQUENCES) * STEP_SEQUENCES,
        bound,
        labels,
        batch.english is not None,
    )


def fill(
    bucket: Bucket,
    batch: PackedBatch,
    seed: int,
    buffer: Tensor,
    padding_idx: int | None = None,
    skips_padding: bool = False,
) -> None:
    """Writes a batch, filled up, to a buffer (bucket.size,) uint8; both on the CPU.

    Args:
        seed: What dropout is drawn from.
        padding_idx: The id whose row of the word table is not trained.
        skips_padding: Whether tokens of this id have no position, as in RoBERTa.

    Raises:
        ValueError: The batch does not fit.
    """
    tokens, sequences = batch.num_tokens, len(batch)
    gap = bucket.tokens - tokens
    fillers = -(-gap // bucket.max_seqlen)
    if gap < 0 or sequences + fillers > bucket.sequences or batch.max_seqlen > bucket.max_seqlen:
        raise ValueError(
            f"found {sequences} sequences of {tokens} tokens, the longest of {batch.max_seqlen}, "
            f"expected what fits {bucket}"
        )
    to = {name: view.numpy() for name, view in bucket.views(buffer).items()}
    ids = batch.input_ids.numpy()
    rows = batch.rows or TableRows.of(batch.input_ids)
    _put(to["input_ids"], ids, int(ids[0]))
    _put(to["position_ids"], batch.position_ids.numpy(), 0)
    to["position_ids"][tokens:] = np.arange(gap) % bucket.max_seqlen
    _put(to["inverse"], rows.inverse.numpy(), int(rows.inverse[0]))
    _put(to["rows"], rows.ids.numpy(), -1)
    starts = tokens + np.minimum(np.arange(1, fillers + 1) * bucket.max_seqlen, gap)
    _put(to["cu_seqlens"], np.concatenate([batch.cu_seqlens.numpy(), starts]), bucket.tokens)
    _put(to["counted"], np.ones(sequences, bool), False)
    to["seed"][0], to["num_examples"][0] = seed, float(batch.num_examples)
    if "labels" in to and batch.labels is not None:
        _put(to["labels"], batch.labels.numpy(), IGNORE_INDEX)
    if "english" in to and batch.english is not None:
        _put(to["english"], batch.english.numpy(), False)
    every, real = np.arange(tokens), ids != (-1 if padding_idx is None else padding_idx)
    _segments(rows.inverse.numpy(), every[real], to["word_order"], to["word_starts"])
    positions = batch.position_ids.numpy()
    if skips_padding:
        counted = np.cumsum(real)
        positions = counted - (counted - real)[every - positions] - 1
        every = every[real]
    _segments(positions, every, to["position_order"], to["position_starts"])


def _put(to: NDArray, values: NDArray, rest: int | bool) -> None:
    to[: len(values)] = values
    to[len(values) :] = rest


def _segments(rows: NDArray, tokens: NDArray, order: NDArray, starts: NDArray) -> None:
    """Which of `tokens` are of each row, in order, and where each row's begin."""
    by_row = np.argsort(rows[tokens], kind="stable")
    _put(order, tokens[by_row], 0)
    starts[0] = 0
    np.cumsum(np.bincount(rows[tokens], minlength=len(starts) - 1), out=starts[1:])
