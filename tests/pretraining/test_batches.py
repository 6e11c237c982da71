"""Batches of several languages: drawn from their number alone, in the proportions asked for."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import pairwise
from math import sqrt
from typing import Any

import numpy as np
import pytest
import torch

from fastadv.batches.packing import PackedBatch
from fastadv.pretraining.batches import LanguageBatches
from fastadv.pretraining.corpus import Corpus, Sequences
from fastadv.pretraining.masking import MaskedBatch

CLS, SEP, MASK = 2, 3, 4
MAX_LENGTH = 24
# By language, sequences in training and their longest, so that languages differ in both.
LANGUAGES = {"en": (400, 22), "de": (60, 22), "ru": (120, 8)}
HELD_OUT = 40


def made(languages: dict[str, tuple[int, int]] = LANGUAGES, shortest: int = 4) -> Corpus:
    """A corpus in which every place has an id of its own, which tells where a token is from."""
    rng = np.random.default_rng(0)
    ids, training, held_out, first = {}, {}, {}, 5
    for language, (count, longest) in languages.items():
        sizes = rng.integers(shortest, longest + 1, count + HELD_OUT)
        bounds = np.concatenate([[0], np.cumsum(sizes)])
        ids[language] = np.arange(first, first + bounds[-1]).astype(np.uint16)
        first += int(bounds[-1])
        held = np.zeros(count + HELD_OUT, bool)
        held[rng.choice(len(held), HELD_OUT, replace=False)] = True
        training[language] = Sequences(bounds[:-1][~held], bounds[1:][~held])
        held_out[language] = Sequences(bounds[:-1][held], bounds[1:][held])
    special = {"cls": CLS, "sep": SEP, "mask": MASK, "all": [0, 1, 2, 3, 4]}
    return Corpus(tuple(languages), ids, training, held_out, MAX_LENGTH, first, special)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return made()


def spans(corpus: Corpus, language: str, side: str = "training") -> set[tuple[int, int]]:
    """First and last id of every sequence."""
    own = getattr(corpus, side)[language]
    ids = corpus.input_ids[language].tolist()
    return {(ids[a], ids[b - 1]) for a, b in zip(own.starts, own.ends, strict=True)}


def language_of(corpus: Corpus, number: int) -> str:
    return next(n for n, ids in corpus.input_ids.items() if ids[0] <= number <= ids[-1])


def unmasked(batch: PackedBatch) -> torch.Tensor:
    """The ids before masking."""
    ids = batch.input_ids.clone()
    if isinstance(batch, MaskedBatch):
        assert batch.masked is not None and batch.labels is not None
        ids[batch.masked] = batch.labels
    return ids


def checked_sequences(batch: PackedBatch) -> list[list[int]]:
    """The texts of a batch, whose other fields are as they should be."""
    ids = unmasked(batch).tolist()
    ends = batch.cu_seqlens.tolist()
    assert ends[0] == 0 and ends[-1] == len(ids) and batch.num_examples == len(ends) - 1
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.input_ids.dtype == batch.position_ids.dtype == torch.int64
    found = []
    for begin, end in pairwise(ends):
        assert batch.position_ids[begin:end].tolist() == list(range(end - begin))
        whole = ids[begin:end]
        assert (whole[0], whole[-1]) == (CLS, SEP)
        found.append(whole[1:-1])
        assert found[-1] and min(found[-1]) >= 5
        assert found[-1] == list(range(found[-1][0], found[-1][0] + len(found[-1])))
    assert batch.max_seqlen == max(map(len, found)) + 2
    return found


def assert_same(a: PackedBatch, b: PackedBatch) -> None:
    assert type(a) is type(b)
    for field in fields(a):
        one, other = getattr(a, field.name), getattr(b, field.name)
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def assert_share(shares: list[float], expected: float, bias: float) -> None:
    """Within 5 standard errors of the mean, beyond which one in a million lies, and a bias."""
    error = float(np.std(shares, ddof=1)) / sqrt(len(shares))
    assert abs(float(np.mean(shares)) - expected) <= 5 * error + bias


def test_a_batch_depends_on_its_numbers_alone(corpus: Corpus) -> None:
    batches = LanguageBatches(corpus, 300, seed=1)
    forth = [batches.masked_batch(step) for step in range(5)]
    plain = [batches.plain_batch(step, "generator", 200) for step in range(5)]
    for step in (4, 0, 3):
        assert_same(LanguageBatches(corpus, 300, seed=1).masked_batch(step), forth[step])
        again = LanguageBatches(corpus, 300, seed=1).plain_batch(step, "generator", 200)
        assert_same(again, plain[step])


def test_other_numbers_give_other_batches(corpus: Corpus) -> None:
    one, other = LanguageBatches(corpus, 300, seed=1), LanguageBatches(corpus, 300, seed=2)
    drawn = [one.masked_batch(0), one.masked_batch(1), other.masked_batch(0)]
    drawn += [one.plain_batch(0, "a", 300), one.plain_batch(0, "b", 300)]
    drawn += [one.plain_batch(1, "a", 300), other.plain_batch(0, "a", 300)]
    texts = {tuple(unmasked(batch).tolist()) for batch in drawn}
    assert len(texts) == len(drawn)


def test_masked_batches_hold_training_sequences(corpus: Corpus) -> None:
    training = set().union(*(spans(corpus, n) for n in LANGUAGES))
    batches = LanguageBatches(corpus, 300, seed=0)
    for step in range(50):
        batch = batches.masked_batch(step)
        found = checked_sequences(batch)
        assert {(ids[0], ids[-1]) for ids in found} <= training
        # The next would not have fit.
        assert 300 - MAX_LENGTH < batch.num_tokens <= 300


def test_held_out_sequences_are_never_drawn(corpus: Corpus) -> None:
    held = {
        number
        for n in LANGUAGES
        for first, last in spans(corpus, n, "held_out")
        for number in range(first, last + 1)
    }
    batches = LanguageBatches(corpus, 4000, seed=0, exponent=0)
    seen: set[int] = set()
    for step in range(30):
        seen.update(unmasked(batches.masked_batch(step)).tolist())
        seen.update(unmasked(batches.masked_batch(step, 12)).tolist())
        seen.update(batches.plain_batch(step, "x", 4000).input_ids.tolist())
    assert not seen & held
    # Of the 10,000 sequences drawn hardly one in training is missing.
    total = sum(corpus.training[n].tokens for n in LANGUAGES)
    assert len(seen - {CLS, SEP}) > 0.99 * total


def test_short_windows(corpus: Corpus) -> None:
    whole = {first: last for n in LANGUAGES for first, last in spans(corpus, n)}
    firsts = np.array(sorted(whole))
    batches = LanguageBatches(corpus, 300, seed=0)
    shifts = set()
    for step in range(100):
        batch = batches.masked_batch(step, max_length=12)
        assert 300 - 12 < batch.num_tokens <= 300
        for ids in checked_sequences(batch):
            first = int(firsts[np.searchsorted(firsts, ids[0], side="right") - 1])
            size = whole[first] - first + 1
            assert ids[-1] <= whole[first] and len(ids) == min(size, 10)
            if size == 22:
                shifts.add(ids[0] - first)
    # A window of 10 begins anywhere from the first to the last place it can.
    assert shifts == set(range(13))


def test_windows_no_longer_than_the_corpus(corpus: Corpus) -> None:
    batches = LanguageBatches(corpus, 300, seed=0)
    assert_same(batches.masked_batch(3, max_length=1000), batches.masked_batch(3))
    assert_same(batches.masked_batch(3, max_length=MAX_LENGTH), batches.masked_batch(3))


def test_too_short_windows(corpus: Corpus) -> None:
    with pytest.raises(ValueError, match=r"^max_length is 9, expected at least 10$"):
        LanguageBatches(corpus, 300, seed=0).masked_batch(0, max_length=9)


def test_a_budget_of_shortest_sequences_is_filled() -> None:
    """100 of four pieces and two special ones."""
    batches = LanguageBatches(made({"en": (50, 4)}), 605, seed=0)
    assert [batches.masked_batch(step).num_tokens for step in range(3)] == [600] * 3


def counted(corpus: Corpus, batch: PackedBatch) -> dict[str, int]:
    """By language, tokens without the special ones."""
    ids = unmasked(batch).numpy()
    return {n: int(((ids >= own[0]) & (ids <= own[-1])).sum()) for n, own in
            corpus.input_ids.items()}  # fmt: skip


@pytest.mark.parametrize("exponent", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("max_length", [None, 12])
def test_tokens_of_languages(corpus: Corpus, exponent: float, max_length: int | None) -> None:
    powers = {n: corpus.training[n].tokens ** exponent for n in LANGUAGES}
    batches = LanguageBatches(corpus, 3000, seed=5, exponent=exponent)
    counts = [counted(corpus, batches.masked_batch(step, max_length)) for step in range(200)]
    for language, power in powers.items():
        # By Wald's identity shares are exact with the sequence that did not fit: of these 24 of
        # 3000 tokens they may be wrong.
        shares = [count[language] / sum(count.values()) for count in counts]
        assert_share(shares, power / sum(powers.values()), bias=MAX_LENGTH / 3000)


def test_mask_rate(corpus: Corpus) -> None:
    for rate in (0.15, 0.4):
        batches = LanguageBatches(corpus, 3000, seed=0, mask_rate=rate)
        chosen = trials = hidden = 0
        for step in range(20):
            batch = batches.masked_batch(step)
            assert batch.masked is not None and batch.labels is not None
            chosen += len(batch.masked)
            trials += batch.num_tokens - 2 * len(batch)
            read = batch.input_ids[batch.masked]
            hidden += int((read == MASK).sum())
            # Random pieces are no special ones, nor are special ones predicted.
            assert (read >= MASK).all() and (batch.labels > MASK).all()
        for count, of, share in ((chosen, trials, rate), (hidden, chosen, 0.8)):
            # 5 standard deviations of the binomial distribution.
            assert abs(count - of * share) <= 5 * sqrt(of * share * (1 - share))


def test_a_language_batch_keeps_its_fields(corpus: Corpus) -> None:
    batch = LanguageBatches(corpus, 300, seed=0).plain_batch(0, "x", 200)
    moved = batch.to("meta")
    assert moved.languages is not None
    assert moved.languages.device.type == "meta"
    assert replace(batch, seed=torch.tensor([1])).languages is batch.languages


def test_plain_batches_are_half_the_source_language(corpus: Corpus) -> None:
    batches = LanguageBatches(corpus, 300, seed=0)
    training = set().union(*(spans(corpus, n) for n in LANGUAGES))
    for step in range(50):
        batch = batches.plain_batch(step, "discriminator", 200)
        assert batch.languages is not None and batch.labels is None
        assert batch.languages is not None and batch.english is not None
        texts = checked_sequences(batch)
        assert {(ids[0], ids[-1]) for ids in texts} <= training
        names = [language_of(corpus, ids[0]) for ids in texts]
        assert [corpus.languages[i] for i in batch.languages.tolist()] == names
        assert batch.english.tolist() == [name == "en" for name in names]
        assert batch.languages.dtype == torch.int64 and batch.english.dtype == torch.bool
        for side in (True, False):
            of = sum(len(t) + 2 for t, n in zip(texts, names, strict=True) if (n == "en") == side)
            assert 100 - MAX_LENGTH < of <= 100


def test_another_source_language(corpus: Corpus) -> None:
    batch = LanguageBatches(corpus, 300, seed=0, source="ru").plain_batch(0, "x", 200)
    assert batch.english is not None and batch.languages is not None
    assert batch.english.tolist() == (batch.languages == 2).tolist()
    assert 0 < int(batch.english.sum()) < len(batch)


def test_other_languages_of_plain_batches(corpus: Corpus) -> None:
    powers = {n: corpus.training[n].tokens ** 0.7 for n in ("de", "ru")}
    batches = LanguageBatches(corpus, 300, seed=0)
    counts = [counted(corpus, batches.plain_batch(step, "x", 4000)) for step in range(200)]
    shares = [count["de"] / (count["de"] + count["ru"]) for count in counts]
    assert_share(shares, powers["de"] / sum(powers.values()), bias=MAX_LENGTH / 2000)


@pytest.mark.parametrize("language", ["en", "de"])
def test_one_language(language: str) -> None:
    """A side that there is not leaves the whole budget to the other."""
    corpus = made({language: (50, 22)})
    batches = LanguageBatches(corpus, 300, seed=0)
    assert 300 - MAX_LENGTH < batches.masked_batch(0).num_tokens <= 300
    plain = batches.plain_batch(0, "x", 200)
    checked_sequences(plain)
    assert 200 - MAX_LENGTH < plain.num_tokens <= 200
    assert plain.english is not None and plain.english.tolist() == [language == "en"] * len(plain)
    assert len(batches.held_out_batches(language, 300)) > 1


def test_a_small_plain_batch_has_both_sides(corpus: Corpus) -> None:
    batch = LanguageBatches(corpus, 300, seed=0).plain_batch(0, "x", 1)
    assert batch.english is not None and set(batch.english.tolist()) == {True, False}
    assert batch.num_tokens <= 2 * MAX_LENGTH


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_held_out_token_once(corpus: Corpus, language: str) -> None:
    found = LanguageBatches(corpus, 300, seed=0).held_out_batches(language, 120)
    texts = [ids for batch in found for ids in checked_sequences(batch)]
    assert sorted((ids[0], ids[-1]) for ids in texts) == sorted(spans(corpus, language, "held_out"))
    assert all(batch.num_tokens <= 120 for batch in found)
    assert all(batch.num_tokens > 120 - MAX_LENGTH for batch in found[:-1])
    masked = sum(len(batch.masked) for batch in found if batch.masked is not None)
    tokens = corpus.held_out[language].tokens
    # 5 standard deviations of the binomial distribution.
    assert abs(masked - 0.15 * tokens) <= 5 * sqrt(tokens * 0.15 * 0.85)


def test_held_out_masks_are_always_the_same(corpus: Corpus) -> None:
    """Whatever the seed and the rate in training, and whatever was drawn before."""
    batches = LanguageBatches(corpus, 300, seed=0)
    other = LanguageBatches(corpus, 500, seed=7, exponent=0, mask_rate=0.6)
    first = batches.held_out_batches("de", 120)
    other.masked_batch(3)
    for again in (batches.held_out_batches("de", 120), other.held_out_batches("de", 120)):
        assert len(again) == len(first)
        for a, b in zip(first, again, strict=True):
            assert_same(a, b)


def predicted(batches: list[MaskedBatch]) -> list[Any]:
    """Which tokens are to be predicted, each known by its id, and what is read there."""
    found = []
    for batch in batches:
        assert batch.masked is not None and batch.labels is not None
        found += zip(batch.labels.tolist(), batch.input_ids[batch.masked].tolist(), strict=True)
    return found


def test_held_out_masks_do_not_depend_on_the_budget(corpus: Corpus) -> None:
    """A batch of one sequence may have nothing to predict, and is left out."""
    batches = LanguageBatches(corpus, 300, seed=0)
    one, many, whole = (batches.held_out_batches("de", tokens) for tokens in (1, 120, 10_000))
    assert predicted(one) == predicted(many) == predicted(whole)
    assert len(whole) == 1 and all(len(batch) == 1 and len(predicted([batch])) for batch in one)


def test_too_small_a_budget(corpus: Corpus) -> None:
    message = r"^tokens_per_batch is 23, expected at least the corpus's max_length, 24$"
    with pytest.raises(ValueError, match=message):
        LanguageBatches(corpus, MAX_LENGTH - 1, seed=0)
    assert 0 < LanguageBatches(corpus, MAX_LENGTH, seed=0).masked_batch(0).num_tokens <= 24
