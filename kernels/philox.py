"""Philox4x32-7, the counter-based generator that dropout draws from, in Triton.

Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
fastadv/ops/philox.py says by which rule an element gets its 16 bits.
"""

# Annotations cannot express the Triton types of a kernel's arguments.
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def philox(key0, key1, c0, c1, c2):
    """The four words of counters (c0, c1, c2, 0), uint32 blocks that broadcast."""
    c3 = c0 * 0
    for _ in tl.static_range(7):
        low0, high0 = c0 * 0xD2511F53, tl.umulhi(c0, 0xD2511F53)
        low1, high1 = c2 * 0xCD9E8D57, tl.umulhi(c2, 0xCD9E8D57)
        c0 = high1 ^ c1 ^ key0
        c2 = high0 ^ c3 ^ key1
        c1 = low1
        c3 = low0
        key0 += 0x9E3779B9
        key1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def keep(seed, site, rows, counters, lanes, THRESHOLD: tl.constexpr):
    """Which elements are kept: a bool block of the shape that rows, counters and lanes make.

    seed points to an int64.  Column c has counter (c // 128) * 16 + c % 16 and lane c % 128 // 16.
    They come apart, because a block whose counters have size 1 along the axis of the lanes draws
    once for all of its lanes.
    """
    value = tl.load(seed)
    key0 = (value & 0xFFFFFFFF).to(tl.uint32)
    key1 = (value >> 32).to(tl.uint32)
    c0 = counters.to(tl.uint32)
    w0, w1, w2, w3 = philox(key0, key1, c0, rows.to(tl.uint32), site.to(tl.uint32))
    lanes = lanes.to(tl.uint32)
    pair = tl.where(lanes < 4, tl.where(lanes < 2, w0, w1), tl.where(lanes < 6, w2, w3))
    return ((pair >> (lanes % 2 * 16)) & 0xFFFF) >= THRESHOLD


@triton.jit
def keep_block(seed, site, rows, start, M: tl.constexpr, N: tl.constexpr, THRESHOLD: tl.constexpr):
    """keep (M, N) for rows (M,) and the N columns from start on; N divides 128, and start by N.

    In the layout of a matrix product a thread holds the same counters of every lane, so that here
    too one draw serves several columns.
    """
    counters = start // 128 * 16 + tl.arange(0, 16)[None, None, :]
    lanes = start % 128 // 16 + tl.arange(0, N // 16)[None, :, None]
    kept = keep(seed, site, rows[:, None, None], counters, lanes, THRESHOLD)
    return tl.reshape(kept, (M, N))


@triton.jit
def drop(x, seed, site, rows, counters, lanes, THRESHOLD: tl.constexpr):
    """x, where it is kept, times 65536 / (65536 - THRESHOLD); 0 elsewhere."""
    if THRESHOLD > 0:
        kept = keep(seed, site, rows, counters, lanes, THRESHOLD)
        x = tl.where(kept, x * (65536.0 / (65536 - THRESHOLD)), 0.0)
    return x


def threshold_of(p: float, seed: Tensor | None) -> int:
    """The number, out of 65536, from which on 16 random bits mean "kept"; 0 for no dropout."""
    return 0 if seed is None else min(round(p * 65536), 65535)
