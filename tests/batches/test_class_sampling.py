"""English texts drawn by the class shares of another language."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from fastadv.batches.class_sampling import ClassSampler

CLASSES = np.array([0] * 10 + [1] * 30 + [2] * 5)
SHARES = {"de": [0.5, 0.3, 0.2], "ru": [0.0, 0.1, 0.9]}


def sampler(seed: int = 0, shares: dict[str, list[float]] | None = None) -> ClassSampler:
    return ClassSampler(CLASSES, shares or SHARES, seed, "english")


def test_every_run_of_draws_has_the_shares_to_within_a_few_texts() -> None:
    drawn = sampler().draw(2000)
    for place, (_, shares) in enumerate(sorted(SHARES.items())):
        classes = CLASSES[drawn[place::2]]
        assert len(classes) == 1000
        for length in (16, 64, 1000):
            for start in range(0, 1000 - length, 37):
                counts = np.bincount(classes[start : start + length], minlength=3)
                assert np.abs(counts - length * np.array(shares)).max() <= 3
        # Of a class without share there is none.
        assert (np.bincount(classes, minlength=3) > 0).tolist() == [s > 0 for s in shares]


def test_within_a_class_every_example_comes_once_an_epoch() -> None:
    drawn = [i for i in sampler(shares={"de": [0.0, 1.0, 0.0]}).draw(90)]
    for epoch in (drawn[:30], drawn[30:60], drawn[60:]):
        assert sorted(epoch) == list(range(10, 40))
    assert drawn[:30] != drawn[30:60]


def test_a_position_is_all_there_is_to_resume() -> None:
    whole = sampler()
    parts = [whole.draw(7) for _ in range(20)]
    for start in (0, 3, 19):
        again = sampler()
        for part in parts[:start]:
            assert again.draw(7) == part
        position = again.position
        resumed = sampler()
        resumed.position = position
        for part in parts[start:]:
            assert resumed.draw(7) == part


def test_other_shares_count_from_the_next_draw_on() -> None:
    one = sampler()
    one.draw(100)
    one.set_shares({"de": [1.0, 0.0, 0.0], "ru": [0.0, 0.0, 1.0]})
    assert CLASSES[one.draw(10)].tolist() == [0, 2] * 5


def test_seeds_and_languages_differ() -> None:
    assert sampler(0).draw(50) != sampler(1).draw(50)
    equal = sampler(shares={"de": [0.4, 0.3, 0.3], "fr": [0.4, 0.3, 0.3]})
    drawn = CLASSES[equal.draw(60)]
    assert drawn[::2].tolist() != drawn[1::2].tolist()
    assert Counter(drawn)[0] == pytest.approx(24, abs=3)


def test_a_share_of_a_class_without_examples_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a share of 0\.2 of class number 3 in de"):
        ClassSampler(CLASSES, {"de": [0.4, 0.2, 0.2, 0.2]}, 0, "english")
