"""Which elements dropout keeps: counter-based random bits, the same in every backend.

Philox4x32 of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC
2011), with 7 rounds, the fewest that pass their Crush tests.  Nothing is stored for the backward:
a mask is a function of the seed, the site, the row and the column.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 7

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)


def philox_ref(counter: Tensor, key: Tensor, rounds: int = ROUNDS) -> Tensor:
    """Philox4x32 in plain integers.

    counter is (..., 4) and key (..., 2), int64 that hold 32-bit words; the result is (..., 4),
    32-bit words in int64.
    """
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key.unbind(-1)
    for _ in range(rounds):
        # 64-bit products wrap into the sign bit; shift and mask take the words out all the same.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        high0, high1 = (product0 >> 32) & _MASK, (product1 >> 32) & _MASK
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, product1 & _MASK, high0 ^ c3 ^ k1, product0 & _MASK
        k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK, (k1 + _KEY_STEPS[1]) & _MASK
    return torch.stack(torch.broadcast_tensors(c0, c1, c2, c3), -1)


def keep_mask_ref(seed: Tensor, site: int, rows: Tensor, columns: int, p: float) -> Tensor:
    """Which of `columns` elements of each of `rows` (R,) int64 are kept: (R, columns) bool.

    seed is (1,) int64.  The key is the seed's two words.  Columns go in blocks of 128: one counter
    (16 * block + c % 16, row, site, 0) gives the 16-bit numbers of columns c, c + 16, ..., c + 112
    of a block, low half of a word first; an element is kept if its number is at least
    `threshold_of(p)`.  So a vector of 16 counters gives 128 columns in order, without a shuffle.
    """
    c = torch.arange(columns, device=rows.device)
    lane = c % 128 // 16
    rows = rows[:, None].expand(rows.shape[0], columns)
    counter = torch.stack(
        [
            (c // 128 * 16 + c % 16).expand_as(rows),
            rows & _MASK,
            torch.full_like(rows, site),
            torch.zeros_like(rows),
        ],
        -1,
    )
    words = philox_ref(counter, torch.stack([seed & _MASK, (seed >> 32) & _MASK], -1))
    word = words.gather(-1, (lane // 2).expand_as(rows)[..., None])[..., 0]
    return (word >> (16 * (lane % 2)) & 0xFFFF) >= threshold_of(p)


def dropout_ref(x: Tensor, seed: Tensor | None, site: int, p: float) -> Tensor:
    """Dropout on x (R, C), whose rows are numbered from 0; x itself for p = 0 or seed None."""
    if seed is None or threshold_of(p) == 0:
        return x
    rows = torch.arange(x.shape[0], device=x.device)
    return torch.where(keep_mask_ref(seed, site, rows, x.shape[1], p), x * keep_scale(p), 0)


def threshold_of(p: float) -> int:
    """How many of 65536 equally likely numbers drop an element; at least one keeps it."""
    return min(round(p * 65536), 65535)


def keep_scale(p: float) -> float:
    """The factor of kept elements: one over the true probability of being kept."""
    return 1 / (1 - threshold_of(p) / 65536)


def check_dropout(
    p: float, seed: Tensor | None, site: int = 0, device: torch.device | None = None
) -> None:
    """ValueError unless p is in [0, 1), site fits 32 bits and seed is None or an int64 (1,)."""
    if not 0 <= p < 1:
        raise ValueError(f"p is {p}, expected a probability of at least 0 and below 1")
    if not 0 <= site <= _MASK:
        raise ValueError(f"site is {site}, expected a number of 32 bits that is not negative")
    if seed is None:
        return
    if seed.dtype != torch.int64:
        raise ValueError(f"seed has dtype {seed.dtype}, expected int64")
    if tuple(seed.shape) != (1,):
        raise ValueError(f"seed has shape {tuple(seed.shape)}, expected (1,)")
    if device is not None and seed.device != device:
        raise ValueError(f"seed is on {seed.device}, expected {device}")
