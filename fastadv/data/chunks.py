"""Long inputs a piece at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items in their order, the last one perhaps shorter, none empty.

    Raises:
        ValueError: `size` is less than 1.
    """
    if size < 1:
        raise ValueError(f"the chunk size is {size}, expected at least 1")
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
