"""The same batch for the library (packed) and for the reference (padded, sides apart)."""

from __future__ import annotations

import torch

from fastadv.batches.packing import IGNORE_INDEX, PackedBatch
from fastadv.reference import PaddedBatch


def padded(batch: PackedBatch, rows: list[int] | None = None, pad_id: int = 0) -> PaddedBatch:
    """Sequences `rows` (all by default) padded to the longest of them, one at a time."""
    starts = batch.cu_seqlens.tolist()
    chosen = range(len(batch)) if rows is None else rows
    spans = [(starts[b], starts[b + 1]) for b in chosen]
    longest = max(end - begin for begin, end in spans)
    ids = torch.full((len(spans), longest), pad_id)
    mask = torch.zeros_like(ids)
    words = torch.full_like(ids, IGNORE_INDEX)
    per_token = batch.labels is not None and len(batch.labels) == batch.num_tokens
    for row, (begin, end) in enumerate(spans):
        ids[row, : end - begin] = batch.input_ids[begin:end]
        mask[row, : end - begin] = 1
        if per_token:
            words[row, : end - begin] = batch.labels[begin:end]
    labels = words if per_token else batch.labels
    device = batch.input_ids.device
    return PaddedBatch(
        ids.to(device),
        mask.to(device),
        None if labels is None else labels.to(device),
        batch.num_examples,
    )


def sides(batch: PackedBatch) -> tuple[PaddedBatch, PaddedBatch]:
    """(other language, English), as the reference takes a draw."""
    flags = batch.english.tolist()
    other = [b for b, english in enumerate(flags) if not english]
    english = [b for b, english in enumerate(flags) if english]
    return padded(batch, other), padded(batch, english)
