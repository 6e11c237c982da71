import collections

import numpy as np
import pytest

from fastadv.batches.sampling import MixedSampler, Sampler


@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_each_epoch_is_a_permutation_and_another_one(size: int) -> None:
    sampler = Sampler(size, seed=3, stream="task")
    epochs = [sampler.draw(size) for _ in range(4)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(size))
    # With 100! orders two alike are impossible in practice; below that they may well be.
    if size == 100:
        assert len({tuple(epoch) for epoch in epochs}) == 4


def test_resuming_at_every_position_equals_the_unbroken_run() -> None:
    size, total = 5, 17
    unbroken = Sampler(size, seed=1, stream="x").draw(total)
    for position in range(total + 1):
        resumed = Sampler(size, seed=1, stream="x")
        resumed.position = position
        assert resumed.draw(total - position).tolist() == unbroken[position:].tolist()
        assert resumed.position == total


def test_the_size_of_the_draws_does_not_matter() -> None:
    whole = Sampler(6, seed=0, stream="x").draw(40)
    sampler = Sampler(6, seed=0, stream="x")
    parts = [sampler.draw(n) for n in (1, 0, 5, 6, 20, 8)]
    assert np.concatenate(parts).tolist() == whole.tolist()
    assert whole.dtype == np.int64 and sampler.position == 40


def test_one_sampler_goes_back() -> None:
    sampler = Sampler(6, seed=0, stream="x")
    first = sampler.draw(20).tolist()
    sampler.position = 3
    assert sampler.draw(17).tolist() == first[3:]


def test_seeds_and_streams_differ() -> None:
    draws = {
        tuple(Sampler(50, seed, stream).draw(50))
        for seed in (0, 1, 2**40)
        for stream in ("task", "discriminator", "")
    }
    assert len(draws) == 9


def test_the_order_is_pinned() -> None:
    # A run must resume under another version of NumPy: these numbers must never change.
    assert Sampler(8, seed=42, stream="task").draw(8).tolist() == [7, 2, 6, 1, 0, 4, 3, 5]


def test_the_first_place_is_uniform() -> None:
    size, epochs = 4, 4000
    draws = Sampler(size, seed=7, stream="x").draw(size * epochs)
    counts = np.bincount(draws.reshape(epochs, size)[:, 0], minlength=size)
    # Binomial with a standard deviation of sqrt(4000 * 3 / 16) = 27: five of them.
    assert abs(counts - epochs / size).max() < 137


def test_refuses() -> None:
    with pytest.raises(ValueError, match="size 0, expected at least 1"):
        Sampler(0, seed=0, stream="x")
    with pytest.raises(ValueError, match="seed -1"):
        Sampler(3, seed=-1, stream="x")
    sampler = Sampler(3, seed=0, stream="x")
    with pytest.raises(ValueError, match="position -1"):
        sampler.position = -1
    with pytest.raises(ValueError, match="draw of -1"):
        sampler.draw(-1)
    with pytest.raises(ValueError, match="no language"):
        MixedSampler({}, seed=0, stream="x")
    with pytest.raises(ValueError, match="size 0"):
        MixedSampler({"de": 3, "fr": 0}, seed=0, stream="x")


SIZES = {"fr": 3, "de": 10, "zh": 1}


def test_mixed_shares_are_equal_within_one_over_any_window() -> None:
    drawn = [language for language, _ in MixedSampler(SIZES, seed=0, stream="x").draw(60)]
    for start in range(0, 60, 7):
        for stop in range(start + 1, 61):
            counts = collections.Counter(drawn[start:stop])
            shares = [counts[language] for language in SIZES]
            assert max(shares) - min(shares) <= 1


def test_the_remainder_rotates_over_batches() -> None:
    sampler = MixedSampler(SIZES, seed=0, stream="x")
    batches = [collections.Counter(language for language, _ in sampler.draw(4)) for _ in range(3)]
    extra = [batch.most_common(1)[0][0] for batch in batches]
    assert sorted(extra) == ["de", "fr", "zh"]


def test_mixed_goes_through_each_language_as_its_own_sampler_does() -> None:
    drawn = MixedSampler(SIZES, seed=0, stream="x").draw(60)
    for language, size in SIZES.items():
        indices = [index for name, index in drawn if name == language]
        assert indices == Sampler(size, 0, f"x/{language}").draw(20).tolist()


def test_mixed_resumes_at_every_position() -> None:
    unbroken = MixedSampler(SIZES, seed=4, stream="x").draw(25)
    for position in range(26):
        resumed = MixedSampler(SIZES, seed=4, stream="x")
        resumed.position = position
        assert resumed.draw(25 - position) == unbroken[position:]
        assert resumed.position == 25


def test_mixed_does_not_hang_on_the_order_of_the_sizes() -> None:
    one = MixedSampler({"de": 4, "fr": 5}, seed=0, stream="x").draw(12)
    assert one == MixedSampler({"fr": 5, "de": 4}, seed=0, stream="x").draw(12)
    assert all(type(index) is int for _, index in one)
