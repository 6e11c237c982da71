"""BERT's masking: how many tokens, which, and what becomes of them."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fastadv.batches.packing import PackedBatch
from fastadv.pretraining.masking import MaskedBatch, mask_tokens

CLS, SEP, MASK = 2, 3, 4
# Texts hold ids from 1000 on, so that a random piece is told from what was there.
VOCABULARY = np.arange(100, 200)


def tokens(count: int, size: int = 20) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Sequences of `size` tokens with their special ones, and which are ordinary."""
    ids = np.random.default_rng(1).integers(1000, 2000, count)
    ids[::size], ids[size - 1 :: size] = CLS, SEP
    return ids, ids >= 1000


def masked(
    ids: NDArray[np.int64], ordinary: NDArray[np.bool_], rate: float = 0.15, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    return mask_tokens(ids, ordinary, rate, VOCABULARY, MASK, np.random.default_rng(seed))


def assert_binomial(count: int, trials: int, rate: float) -> None:
    """Within 5 standard deviations, beyond which fewer than one count in a million lies."""
    assert abs(count - trials * rate) <= 5 * sqrt(trials * rate * (1 - rate))


@pytest.mark.parametrize("rate", [0.15, 0.4])
def test_rates(rate: float) -> None:
    ids, ordinary = tokens(200_000)
    read, places, labels = masked(ids, ordinary, rate)
    assert_binomial(len(places), int(ordinary.sum()), rate)
    now = read[places]
    hidden, kept = now == MASK, now == labels
    swapped = np.isin(now, VOCABULARY)
    assert (hidden.astype(int) + kept + swapped == 1).all()
    for what, share in ((hidden, 0.8), (swapped, 0.1), (kept, 0.1)):
        assert_binomial(int(what.sum()), len(places), share)


def test_places_are_spread_evenly() -> None:
    ids, ordinary = tokens(200_000)
    _, places, _ = masked(ids, ordinary)
    for column in range(1, 19):
        assert_binomial(int((places % 20 == column).sum()), 10_000, 0.15)
    first = int((places < 100_000).sum())
    assert_binomial(first, int(ordinary[:100_000].sum()), 0.15)


def test_random_pieces_are_even() -> None:
    ids, ordinary = tokens(400_000)
    read, places, _ = masked(ids, ordinary, 0.5)
    swapped = read[places][np.isin(read[places], VOCABULARY)]
    counts = np.bincount(swapped - 100, minlength=100)
    assert len(counts) == 100
    for count in counts:
        assert_binomial(int(count), len(swapped), 0.01)


def test_only_the_chosen_change() -> None:
    ids, ordinary = tokens(10_000)
    before = ids.copy()
    read, places, labels = masked(ids, ordinary)
    assert (ids == before).all() and read is not ids
    assert (labels == before[places]).all()
    rest = np.setdiff1d(np.arange(len(ids)), places)
    assert (read[rest] == before[rest]).all()
    assert (np.diff(places) > 0).all()
    assert ordinary[places].all()
    assert {a.dtype for a in (read, places, labels)} == {np.dtype(np.int64)}


@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_special_tokens_stay(rate: float) -> None:
    ids, ordinary = tokens(5000, size=4)
    read, places, _ = masked(ids, ordinary, rate)
    assert (read[~ordinary] == ids[~ordinary]).all()
    assert not np.isin(read, [0, 1]).any()
    if rate == 1:
        assert (places == np.flatnonzero(ordinary)).all()


def test_random_pieces_come_from_the_vocabulary() -> None:
    ids, ordinary = tokens(50_000)
    read, places, labels = masked(ids, ordinary, 1.0)
    changed = read[places][read[places] != labels]
    assert set(changed.tolist()) == {MASK, *VOCABULARY.tolist()}


def test_one_at_least() -> None:
    ids, ordinary = tokens(20)
    found = []
    for seed in range(200):
        _, places, labels = masked(ids, ordinary, 0.0, seed)
        assert len(places) == len(labels) == 1 and labels[0] == ids[places[0]]
        found.append(int(places[0]))
    # Any of the 18: that one is never drawn in 200 has a probability of 18 * (17 / 18)^200 = 2e-4.
    assert set(found) == set(range(1, 19))


def test_nothing_ordinary() -> None:
    ids = np.array([CLS, 1, SEP])
    read, places, labels = masked(ids, np.zeros(3, bool))
    assert (read == ids).all() and len(places) == len(labels) == 0


def test_chance_is_the_generators() -> None:
    ids, ordinary = tokens(1000)
    one, again, other = (masked(ids, ordinary, seed=seed) for seed in (3, 3, 4))
    assert all((a == b).all() for a, b in zip(one, again, strict=True))
    assert set(one[1].tolist()) != set(other[1].tolist())


@pytest.fixture
def batch() -> MaskedBatch:
    return MaskedBatch(
        input_ids=torch.tensor([CLS, MASK, 7, SEP]),
        position_ids=torch.arange(4),
        cu_seqlens=torch.tensor([0, 4], dtype=torch.int32),
        max_seqlen=4,
        labels=torch.tensor([9]),
        english=None,
        num_examples=1,
        masked=torch.tensor([1]),
    )


def test_a_batch_moves_as_a_whole(batch: MaskedBatch) -> None:
    moved = batch.to("meta")
    assert isinstance(moved, MaskedBatch) and moved.masked is not None
    tensors = (moved.masked, moved.labels, moved.input_ids, moved.position_ids, moved.cu_seqlens)
    assert all(t is not None and t.device.type == "meta" for t in tensors)
    assert moved.masked.shape == (1,) and moved.masked.dtype == torch.int64
    here = batch.to("cpu")
    assert isinstance(here, MaskedBatch) and here.masked is not None
    assert here.masked.tolist() == [1]


def test_a_changed_batch_keeps_its_places(batch: MaskedBatch) -> None:
    changed = replace(batch, seed=torch.tensor([5]))
    assert isinstance(changed, MaskedBatch) and isinstance(changed, PackedBatch)
    assert changed.masked is batch.masked and changed.labels is batch.labels
