"""Overlapping windows over a sentence that is too long for the encoder."""

from __future__ import annotations

import numpy as np


def window_borders(pieces: int, capacity: int, overlap: int) -> np.ndarray:
    """(windows, 2) int64: begin and end of the windows over `pieces` word pieces.

    Every window but the last is full, each begins `overlap` pieces before the last one's end, and
    the last ends with the sentence.
    """
    stride = capacity - overlap
    windows = 1 + max(0, -(-(pieces - capacity) // stride))
    begins = np.arange(windows) * stride
    return np.stack([begins, np.minimum(begins + capacity, pieces)], axis=1)


def scoring_windows(firsts: np.ndarray, ends: np.ndarray, borders: np.ndarray) -> np.ndarray:
    """(words,) int64: the window in which each word is scored.

    Among the windows that hold a word's first piece, it is the one with the most pieces on the side
    of the word where it has fewer; the earlier one of equals. A word cut off by the end of a window
    counts there with what it lacks, as a negative number.

    Args:
        firsts: (words,) the first piece of each word.
        ends: (words,) one past its last piece.
        borders: (windows, 2) as `window_borders` gives them.
    """
    begin, end = borders[:, 0], borders[:, 1]
    before = firsts[:, None] - begin
    nearer = np.minimum(before, end - ends[:, None])
    holds = (before >= 0) & (firsts[:, None] < end)
    return np.where(holds, nearer, np.iinfo(np.int64).min).argmax(axis=1)
