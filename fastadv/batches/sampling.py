"""Which examples come next: endless, shuffled, and resumable from one number.

The "DataIterator" of Algorithm 1, lines 2, 7 and 13 (Keung, Lu and Bhardwaj, EMNLP 2019). What a
sampler draws depends on its seed, its stream and its position alone, so a checkpoint holds the
position and nothing else.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np


def _check_count(n: int, what: str, least: int) -> int:
    if n < least:
        raise ValueError(f"found {what} {n}, expected at least {least}")
    return int(n)


def _permutation(size: int, seed: int, stream: str, epoch: int) -> np.ndarray:
    """(size,) int64: the order of one epoch, the same on every platform and version of NumPy."""
    sequence = np.random.SeedSequence([seed, zlib.crc32(stream.encode()), epoch])
    # NumPy keeps the raw output of a bit generator unchanged between versions, and says that it
    # may change Generator.permutation; a resumed run may meet another version.
    keys = np.random.Philox(sequence).random_raw(size)
    return np.argsort(keys, kind="stable").astype(np.int64, copy=False)


class Sampler:
    """Draws indices below `size`, every one once in each epoch, in a new order every epoch.

    Attributes:
        size: The number of examples.
        position: How many were drawn so far; set it to resume.

    Raises:
        ValueError: `size` is below 1, or the seed or a position is negative.
    """

    def __init__(self, size: int, seed: int, stream: str) -> None:
        self.size = _check_count(size, "a data set of size", 1)
        self._seed = _check_count(seed, "seed", 0)
        self._stream = stream
        self._position = 0
        self._epoch = -1
        self._order = np.zeros(0, np.int64)

    @property
    def position(self) -> int:
        """How many examples were drawn so far."""
        return self._position

    @position.setter
    def position(self, value: int) -> None:
        self._position = _check_count(value, "position", 0)

    def draw(self, n: int) -> np.ndarray:
        """(n,) int64: the next n indices, over as many epochs as it takes."""
        _check_count(n, "a draw of", 0)
        drawn = np.empty(n, np.int64)
        done = 0
        while done < n:
            epoch, start = divmod(self._position, self.size)
            if epoch != self._epoch:
                self._order = _permutation(self.size, self._seed, self._stream, epoch)
                self._epoch = epoch
            part = self._order[start : start + n - done]
            drawn[done : done + len(part)] = part
            done += len(part)
            self._position += len(part)
        return drawn


class MixedSampler:
    """Draws from several languages in equal shares.

    Draw number k (from 0) is for language k modulo the number of languages, in the order of their
    names. So the counts of the languages differ by at most one in any run of consecutive draws, the
    remainder of a batch moves on from language to language, and each language's own position
    follows from the one position of the mix.

    Attributes:
        languages: The names, sorted.
        position: How many were drawn so far, of all languages together; set it to resume.

    Raises:
        ValueError: There is no language, a size is below 1, or the seed or a position negative.
    """

    def __init__(self, sizes: Mapping[str, int], seed: int, stream: str) -> None:
        if not sizes:
            raise ValueError("found no language to draw from, expected at least one")
        self.languages = tuple(sorted(sizes))
        self._samplers = [Sampler(sizes[name], seed, f"{stream}/{name}") for name in self.languages]
        self._position = 0

    @property
    def position(self) -> int:
        """How many examples were drawn so far, of all languages together."""
        return self._position

    @position.setter
    def position(self, value: int) -> None:
        self._position = _check_count(value, "position", 0)
        count = len(self._samplers)
        for place, sampler in enumerate(self._samplers):
            sampler.position = (value + count - 1 - place) // count

    def draw(self, n: int) -> list[tuple[str, int]]:
        """The next n examples as (language, index in that language's data)."""
        _check_count(n, "a draw of", 0)
        drawn = []
        for slot in range(self._position, self._position + n):
            place = slot % len(self._samplers)
            index = int(self._samplers[place].draw(1)[0])
            drawn.append((self.languages[place], index))
        self._position += n
        return drawn
