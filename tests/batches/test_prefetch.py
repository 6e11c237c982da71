"""Work done ahead on another thread."""

from __future__ import annotations

import itertools
import threading
import time

import pytest

from fastadv.batches.prefetch import Prefetch


def test_in_order_and_only_so_far_ahead() -> None:
    made: list[int] = []
    numbers = itertools.count()

    def make() -> int:
        made.append(next(numbers))
        return made[-1]

    with Prefetch(make, ahead=2) as found:
        for wanted in range(5):
            assert next(found) == wanted
        time.sleep(0.05)
        # Two wait, and one is in hand.
        assert len(made) <= 5 + 3
    assert not any(thread.name == "prefetch" for thread in threading.enumerate())


def test_errors_come_where_the_result_would_have() -> None:
    numbers = iter([1, 2])

    def make() -> int:
        number = next(numbers, None)
        if number is None:
            raise OSError("the disk is gone")
        return number

    with Prefetch(make) as found:
        assert [next(found), next(found)] == [1, 2]
        with pytest.raises(OSError, match="the disk is gone"):
            next(found)
        with pytest.raises(StopIteration):
            next(found)


def test_an_end_that_nobody_waits_for() -> None:
    """Leaving early ends a thread that waits for room."""
    with pytest.raises(KeyboardInterrupt), Prefetch(lambda: 1, ahead=1) as found:
        next(found)
        raise KeyboardInterrupt
    assert not any(thread.name == "prefetch" for thread in threading.enumerate())
