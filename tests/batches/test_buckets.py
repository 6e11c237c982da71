"""Batches that are filled up to one of few sizes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from fastadv.batches.buckets import Bucket, bucket_of, fill
from fastadv.batches.packing import IGNORE_INDEX, PackedBatch, pack
from fastadv.batches.tokenization import TokenSequence


def sequences(*lengths: int, first: int = 5) -> list[list[TokenSequence]]:
    """Examples of one sequence each; ids count up and repeat."""
    return [
        [TokenSequence(((np.arange(n) + first + k) % 11).astype(np.int32), label=k % 2)]
        for k, n in enumerate(lengths)
    ]


def filled(batch: PackedBatch, bucket: Bucket, **options: Any) -> PackedBatch:
    buffer = torch.full((bucket.size,), 0xA5, dtype=torch.uint8)
    fill(bucket, batch, 7, buffer, **options)
    return bucket.batch(buffer)


@pytest.mark.parametrize(
    ("lengths", "tokens", "sequences_", "bound"),
    [
        # 64 is the finest step; a gap of at most 63 needs one more sequence of up to 64.
        ((3, 5), 64, 8, 64),
        ((60, 4), 64, 8, 64),
        ((60, 5), 128, 8, 64),
        # Sixteenths of 4096 are 256, in which fillers of up to 256 fit once.
        ((250,) * 20, 5120, 24, 256),
        ((250,) * 21, 5376, 24, 256),
        # Of 1024 they are 64 again, and a bound of 128 holds them.
        ((100,) * 15, 1536, 16, 128),
    ],
)
def test_sizes(lengths: tuple[int, ...], tokens: int, sequences_: int, bound: int) -> None:
    bucket = bucket_of(pack(sequences(*lengths)), 512)
    assert (bucket.tokens, bucket.sequences, bucket.max_seqlen) == (tokens, sequences_, bound)


def test_no_bound_is_above_the_longest() -> None:
    assert bucket_of(pack(sequences(40, 3)), 50).max_seqlen == 50


def test_by_hand() -> None:
    """Ids 5 6 7 and 6 7; five tokens fill up, in sequences of at most three."""
    batch = pack(sequences(3, 2), english=[False, True])
    bucket = Bucket(10, 6, 3, "documents", True)
    found = filled(batch, bucket)
    assert found.input_ids.tolist() == [5, 6, 7, 6, 7, 5, 5, 5, 5, 5]
    assert found.position_ids.tolist() == [0, 1, 2, 0, 1, 0, 1, 2, 0, 1]
    assert found.cu_seqlens.tolist() == [0, 3, 5, 8, 10, 10, 10]
    assert found.labels is not None and found.english is not None and found.counted is not None
    assert found.labels.tolist() == [0, 1] + [IGNORE_INDEX] * 4
    assert found.english.tolist() == [False, True, False, False, False, False]
    assert found.counted.tolist() == [True, True, False, False, False, False]
    assert float(found.num_examples) == 2 and found.seed is not None and found.seed.tolist() == [7]
    rows = found.rows
    assert rows is not None and rows.segments is not None
    assert rows.ids.tolist() == [5, 6, 7] + [-1] * 7
    word_order, word_starts, position_order, position_starts = (x.tolist() for x in rows.segments)
    assert word_order[:5] == [0, 1, 3, 2, 4] and word_starts == [0, 1, 3] + [5] * 8
    assert position_order[:5] == [0, 3, 1, 4, 2] and position_starts == [0, 2, 4, 5]


def test_padding_tokens_are_in_no_segment() -> None:
    """Nor have they a position in RoBERTa, where what follows them has the one before."""
    example = [[TokenSequence(np.array([5, 0, 7], np.int32))]]
    bucket = Bucket(3, 1, 3, None, False)
    for skips, positions in ((False, [0, 1, 2]), (True, [0, 2])):
        rows = filled(pack(example), bucket, padding_idx=0, skips_padding=skips).rows
        assert rows is not None and rows.segments is not None
        order, starts, position_order, position_starts = (x.tolist() for x in rows.segments)
        assert [order[a:b] for a, b in pairwise(starts)] == [[], [0], [2]]
        assert position_order[: position_starts[-1]] == positions
        assert position_starts == ([0, 1, 2, 3] if not skips else [0, 1, 2, 2])


@pytest.mark.parametrize(
    "bucket",
    [Bucket(4, 8, 64, None, False), Bucket(64, 2, 64, None, False), Bucket(64, 8, 2, None, False)],
)
def test_what_does_not_fit_is_refused(bucket: Bucket) -> None:
    with pytest.raises(ValueError, match="found 2 sequences of 5 tokens, the longest of 3, expec"):
        filled(pack(sequences(3, 2)), bucket)


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("task", ["classification", "ner"])
def test_fillers_change_nothing(task: Any, backend: str) -> None:
    """Losses and gradients of all phases, with and without; only their order of summation."""
    from fastadv import AdversarialFinetuner, FinetuneConfig

    labels, examples = (tiny.LABELS, tiny.ENGLISH) if task == "classification" else (
        tiny.TAGS, tiny.SENTENCES)  # fmt: skip
    config = FinetuneConfig(precision="fp32", dropout=0.0, max_length=12, backend=backend)
    tuner = AdversarialFinetuner(
        tiny.tiny_bert(), task, labels, config, tokenizer=tiny.tiny_tokenizer(), device="cpu"
    )
    trainer = tuner.trainer
    tuner.model.train()
    plain = [tuner.collate(examples), tuner.collate(tiny.GERMAN, tiny.FRENCH)]
    full = [filled(batch, bucket_of(batch, 12), padding_idx=0) for batch in plain]
    assert all(b.num_tokens > a.num_tokens for a, b in zip(plain, full, strict=True))

    def phases(batches: list[PackedBatch]) -> list[torch.Tensor]:
        found = [*trainer.task_gradients(batches[0])]
        pooled_d, pooled_g = trainer.pooled_draws(batches[1], batches[1])
        found += trainer.discriminator_gradients(batches[1], pooled_d)
        found += trainer.generator_gradients(batches[1], pooled_g)
        flat = []
        for x in found:
            xs = x if isinstance(x, tuple) else (x,)
            flat += [y.to_dense() if y.is_sparse else y for y in xs if y is not None]
        return flat

    # Rows of id -1 are for kernels that know them; PyTorch's sparse tensors do not.
    for batch in full:
        assert batch.rows is not None
        object.__setattr__(batch, "rows", None)
    for first, second in zip(phases(plain), phases(full), strict=True):
        torch.testing.assert_close(second, first, rtol=2e-5, atol=2e-6)
