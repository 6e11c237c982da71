"""Batches of baseline B2, padded to one of a few sizes, so that graphs can be kept by size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from fastadv.batches.packing import IGNORE_INDEX, PackedBatch

# The fewest tokens of a bucket, and the number whose multiples bound a sequence's length.
LEAST = 64


def bucket_tokens(count: int) -> int:
    """Tokens rounded up to a sixteenth of the largest power of two in them, and to at least 64."""
    step = max(1 << (count.bit_length() - 1) >> 4, 1)
    return max(LEAST, -(-count // step) * step)


def bucket_sequences(count: int) -> int:
    """Room for that many sequences and the filler sequences of any bucket, a multiple of 8.

    A bucket adds less than a sixteenth to the tokens, and so to the sequences if all were full.
    """
    return -(-(count + count // 16 + 1) // 8) * 8


@dataclass(frozen=True)
class Bucket:
    """A packed batch, padded to the sizes of its bucket: T tokens, B sequences.

    Filler tokens come last, in their own sequences; sequences after those are empty. Neither has
    any effect: labels are IGNORE_INDEX, and `inverse`, `targets` and `shares` are zero.

    Attributes:
        input_ids, position_ids: (T,) int64.
        cu_seqlens: (B + 1,) int32.
        sequences: (T,) int64, the sequence of each token.
        places: (T,) int64, the index of each token in (B * longest), sequences padded to `longest`.
        inverse: (B,) float32, one over the length.
        labels: (B,) or (T,) int64; None in D and G.
        scale: () float32, one over the examples of T; None in D and G.
        targets: (B,) float32, 1 for English and -1 for other languages; None in T.
        shares: (B,) float32, the weight of each sequence's loss; None in T.
        longest: Bound on a sequence's length, a multiple of 64.
    """

    input_ids: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor
    sequences: Tensor
    places: Tensor
    inverse: Tensor
    labels: Tensor | None
    scale: Tensor | None
    targets: Tensor | None
    shares: Tensor | None
    longest: int

    @property
    def key(self) -> tuple[int, int, int]:
        """What a graph is captured for: T, B and `longest`."""
        return len(self.input_ids), len(self.inverse), self.longest

    def tensors(self) -> list[Tensor]:
        """All tensors that are not None, always in the same order."""
        values = (getattr(self, field.name) for field in fields(self))
        return [value for value in values if isinstance(value, Tensor)]

    def apply(self, change: Callable[[Tensor], Tensor]) -> Bucket:
        """The same with every tensor changed."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return Bucket(**{n: change(v) if isinstance(v, Tensor) else v for n, v in values.items()})


def fill(batch: PackedBatch) -> Bucket:
    """The batch in its bucket: T's if it has labels, else D's or G's with `english` set."""
    count, real = len(batch), batch.num_tokens
    tokens, sequences = bucket_tokens(real), bucket_sequences(count)
    longest = -(-batch.max_seqlen // LEAST) * LEAST
    lengths = batch.cu_seqlens.diff().tolist()
    added = tokens - real
    fillers = [min(longest, added - start) for start in range(0, added, longest)]
    sizes = torch.tensor([*lengths, *fillers] + [0] * (sequences - count - len(fillers)))
    starts = F.pad(sizes.cumsum(0), (1, 0))
    owners = torch.arange(sequences).repeat_interleave(sizes)
    offsets = torch.arange(tokens) - starts[owners]
    labels, scale, targets, shares = batch.labels, None, None, None
    if labels is not None:
        room = (tokens if len(labels) == real else sequences) - len(labels)
        labels = F.pad(labels, (0, room), value=IGNORE_INDEX)
        scale = torch.tensor(1 / batch.num_examples)
    else:
        assert batch.english is not None
        sides = torch.tensor([1 / int((~batch.english).sum()), 1 / int(batch.english.sum())])
        shares = F.pad(sides[batch.english.long()], (0, sequences - count))
        targets = F.pad(batch.english.float() * 2 - 1, (0, sequences - count))
    return Bucket(
        input_ids=F.pad(batch.input_ids, (0, added)),
        # A filler sequence may be longer than any text: no position may exceed the model's.
        position_ids=offsets % batch.max_seqlen,
        cu_seqlens=starts.int(),
        sequences=owners,
        places=owners * longest + offsets,
        inverse=F.pad(1 / sizes[:count].float(), (0, sequences - count)),
        labels=labels,
        scale=scale,
        targets=targets,
        shares=shares,
        longest=longest,
    )
