"""Shares by a count of few texts."""

from __future__ import annotations

import pytest

from fastadv.shares.counting import counted_shares, standard_error


def test_counts_become_shares_with_one_english_text_added() -> None:
    found = counted_shares({"a": 30, "b": 20}, ("a", "b", "c"), (0.2, 0.3, 0.5))
    assert found == pytest.approx((30.2 / 51, 20.3 / 51, 0.5 / 51))
    assert sum(found) == pytest.approx(1)


def test_what_cannot_be_counted_is_refused() -> None:
    with pytest.raises(ValueError, match="found the class 'x' in labelled texts to count"):
        counted_shares({"x": 1}, ("a", "b"), (0.5, 0.5))
    with pytest.raises(ValueError, match="found no labelled text"):
        counted_shares({}, ("a", "b"), (0.5, 0.5))


def test_the_error_that_fifty_texts_leave() -> None:
    assert standard_error(0.25, 50) == pytest.approx(0.0612, abs=1e-4)
    assert standard_error(0.25, 200) == pytest.approx(standard_error(0.25, 50) / 2)
