"""English texts whose classes have the shares that a target language's have."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastadv.batches.sampling import Sampler

GOLDEN = (math.sqrt(5) - 1) / 2


class ClassSampler:
    """Draws indices of labelled examples, one for each text that `MixedSampler` draws beside it.

    Draw number k (from 0) goes with a text of language k modulo the number of languages, in the
    order of their names, and its class is drawn by that language's shares. Within a class every
    example comes once an epoch, in a new order every epoch.

    The classes of a language's draws follow the golden ratio's sequence, whose runs have every
    share to within about one text: batches differ less in their classes than independent draws.

    Args:
        classes: (N,) the class of each example.
        shares: (K,) shares of the classes by language.
        seed: Seed of the order.
        stream: The name of the stream.

    Attributes:
        position: A list: draws so far, then those of each class; set it to resume.

    Raises:
        ValueError: Shares ask for a class without examples, or are not shares.
    """

    def __init__(
        self,
        classes: Sequence[int] | np.ndarray,
        shares: Mapping[str, Sequence[float]],
        seed: int,
        stream: str,
    ) -> None:
        self.languages = tuple(sorted(shares))
        found = np.asarray(classes, np.int64)
        self._members = [np.flatnonzero(found == k) for k in range(len(shares[self.languages[0]]))]
        self._samplers = [
            Sampler(len(members), seed, f"{stream}/class {k}") if len(members) else None
            for k, members in enumerate(self._members)
        ]
        self._offsets = {
            name: zlib.crc32(f"{seed}/{stream}/{name}".encode()) / 2**32 for name in self.languages
        }
        self._drawn = 0
        self.set_shares(shares)

    def set_shares(self, shares: Mapping[str, Sequence[float]]) -> None:
        """Shares by language for the draws to come.

        Raises:
            ValueError: See the class.
        """
        self._limits: dict[str, np.ndarray] = {}
        for name in self.languages:
            wanted = np.asarray(shares[name], np.float64)
            for k, members in enumerate(self._members):
                if wanted[k] > 0 and not len(members):
                    raise ValueError(
                        f"found a share of {wanted[k]:g} of class number {k} in {name}, of which "
                        "the labelled examples hold none, expected 0"
                    )
            self._limits[name] = np.cumsum(wanted) / wanted.sum()

    @property
    def position(self) -> list[int]:
        """Draws so far, then those of each class."""
        return [self._drawn, *(0 if s is None else s.position for s in self._samplers)]

    @position.setter
    def position(self, value: Sequence[int]) -> None:
        self._drawn = int(value[0])
        for sampler, position in zip(self._samplers, value[1:], strict=True):
            if sampler is not None:
                sampler.position = position

    def draw(self, n: int) -> list[int]:
        """The next n indices."""
        drawn = []
        for slot in range(self._drawn, self._drawn + n):
            turn, place = divmod(slot, len(self.languages))
            name = self.languages[place]
            point = (self._offsets[name] + (turn + 1) * GOLDEN) % 1.0
            limits = self._limits[name]
            # The last limit is 1 but for rounding, and a class of share 0 is never met.
            k = int(np.searchsorted(limits, min(point, np.nextafter(limits[-1], 0)), side="right"))
            sampler: Any = self._samplers[k]
            drawn.append(int(self._members[k][int(sampler.draw(1)[0])]))
        self._drawn += n
        return drawn
