"""How many examples make a batch when word pieces are counted instead of examples.

Texts differ in length by a factor of ten and more, and the cost of a batch is its word pieces. A
budget of word pieces makes batches of about equal cost, whose memory does not depend on which texts
came together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastadv.batches.class_sampling import ClassSampler
from fastadv.batches.sampling import MixedSampler, Sampler


@dataclass(frozen=True)
class Side:
    """A stream of examples.

    Attributes:
        sampler: Draws them.
        pieces: The word pieces of what was drawn, over all windows, special tokens included.
    """

    sampler: Sampler | MixedSampler | ClassSampler
    pieces: Callable[[Any], int]


def draw_within(budget: int, *sides: Side) -> list[list[Any]]:
    """The next examples of each side, equally many of each, as long as they fit.

    No side gets more than `budget` word pieces, unless its first example alone has more. Examples
    are taken in the order of their streams: one that does not fit starts the next batch and none is
    skipped. So an epoch still holds every example once, and the samplers' positions alone say where
    a run stands.

    Args:
        budget: Word pieces, for each side by itself.
        sides: One for task batches; two for D or G, whose losses are means over either side.

    Returns:
        What each side's sampler drew, in order.
    """
    chosen: list[list[Any]] = [[] for _ in sides]
    totals = [0] * len(sides)
    while True:
        before: list[Any] = [side.sampler.position for side in sides]
        for place, side in enumerate(sides):
            (example,) = side.sampler.draw(1)
            chosen[place].append(example)
            # At least one: otherwise any number of texts without a piece would fit.
            totals[place] += max(1, side.pieces(example))
        if max(totals) > budget and len(chosen[0]) > 1:
            for side, position, examples in zip(sides, before, chosen, strict=True):
                side.sampler.position = position
                examples.pop()
            return chosen


def similar_lengths(lengths: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Cuts sequences into batches of similar length, the longest first.

    Batches of shorter sequences hold more of them: padded to its own longest, none takes more
    tokens than `batch_size` of the longest sequence of all. So the first batch needs the most
    memory, and short sentences are not computed in tiny batches.

    Args:
        lengths: (N,) lengths in tokens.
        batch_size: Sequences in the first batch.

    Yields:
        (n,) int64: indices in `lengths`; among equals the earlier first.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        longest, here = int(lengths[order[0]]), int(lengths[order[start]])
        count = batch_size * max(1, longest) // max(1, here)
        yield order[start : start + count]
        start += count
