"""What the launches of every kernel share."""

# Annotations cannot express the Triton types of a kernel's arguments.
# mypy: allow-untyped-defs

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl


def on_device(x: torch.Tensor) -> AbstractContextManager[object]:
    """Makes the device of x the current one, on which Triton launches."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def acc_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which sums over elements of `dtype` are kept and returned."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def block_of(size: int, limit: int) -> int:
    """The power of two that covers `size`, at least 16 and at most `limit`."""
    return max(16, min(limit, triton.next_power_of_2(size)))


def _interpreted_steps(start: Any, end: Any, step: Any) -> range:
    numbers = (x.handle.data.item() if isinstance(x, tl.tensor) else x for x in (start, end, step))
    return range(*map(int, numbers))


# The interpreter of triton 3.6 takes no tensors in range() under NumPy 2.4, and `while` loops,
# which it does take, are not pipelined by the compiler.
steps: Any = _interpreted_steps if triton.knobs.runtime.interpret else tl.range
_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def rounded(x, TYPE: tl.constexpr):
    """x in another type, rounded to nearest."""
    if _INTERPRETED and tl.bfloat16 == TYPE:
        # The interpreter truncates; hardware rounds to nearest even.
        bits = x.to(tl.float32).to(tl.uint32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        x = (bits & 0xFFFF0000).to(tl.float32, bitcast=True)
    return x.to(TYPE)


@triton.jit
def dot(a, b, ACC: tl.constexpr):
    """Matrix product of two blocks with sums in ACC, never by way of TF32."""
    if _INTERPRETED:
        # The interpreter multiplies the bits of bfloat16 as if they were integers.
        a, b = a.to(ACC), b.to(ACC)
    return tl.dot(a, b, input_precision="ieee", out_dtype=ACC)


@triton.jit
def load_rows(x, i, length, STRIDE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """D columns at x of rows i, STRIDE apart; 0 outside."""
    d = tl.arange(0, BLOCK_D)
    inside = (i < length)[:, None] & (d < D)[None, :]
    return tl.load(x + i[:, None] * STRIDE + d[None, :], mask=inside, other=0.0)


@triton.jit
def store_rows(x, value, i, length, STRIDE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Writes D columns at x of rows i, STRIDE apart."""
    d = tl.arange(0, BLOCK_D)
    inside = (i < length)[:, None] & (d < D)[None, :]
    tl.store(x + i[:, None] * STRIDE + d[None, :], rounded(value, x.dtype.element_ty), mask=inside)


@triton.jit
def row_tile(COUNTERS: tl.constexpr):
    """Lanes (1, 8, 1), counters (1, 1, COUNTERS) and columns (1, 8, COUNTERS) of whole rows.

    The lanes have an axis of their own, so that one draw of Philox serves eight columns.  With
    rows as the first axis a warp holds a row: sums over it need no shared memory.
    """
    lanes = tl.arange(0, 8)[None, :, None]
    counters = tl.arange(0, COUNTERS)[None, None, :]
    columns = counters // 16 * 128 + lanes * 16 + counters % 16
    # Four elements a thread for every type: otherwise 16-bit and 32-bit tensors would get layouts
    # of their own, and each conversion between them goes through shared memory.
    return lanes, counters, tl.max_contiguous(tl.multiple_of(columns, [1, 1, 4]), [1, 1, 4])


@triton.jit
def in_fours(SIZE: tl.constexpr):
    """The numbers below SIZE as (SIZE / 4, 4).

    Four elements a thread for every type: as one row, 16-bit and 32-bit tensors would get layouts
    of their own, and each conversion between them goes through shared memory.
    """
    return tl.arange(0, SIZE // 4)[:, None] * 4 + tl.arange(0, 4)[None, :]


@triton.jit
def row_mean(x, HIDDEN: tl.constexpr):
    """Mean (ROWS, 1, 1) of each row of a tile that is 0 outside."""
    return (tl.sum(tl.sum(x, 1), 1) * (1.0 / HIDDEN))[:, None, None]


def row_tile_of(hidden: int, dtype: torch.dtype) -> dict[str, int]:
    """ROWS and COUNTERS of a tile of whole rows that gives each of 128 threads about 32 numbers."""
    counters = block_of(triton.cdiv(hidden, 128) * 16, 1 << 20)
    elements = 2048 if dtype == torch.float64 else 4096
    return {"ROWS": max(1, elements // (8 * counters)), "COUNTERS": counters}


def partition(rows: int, block: int, parts: int) -> tuple[int, int]:
    """The number of parts that `rows` are cut into, and the rows of each, a multiple of `block`.

    Sums over rows are added up within each part and then over parts, in order: the same bits on
    every device, since the cut depends on the number of rows alone.
    """
    size = triton.cdiv(triton.cdiv(rows, parts), block) * block
    return triton.cdiv(rows, size), size
