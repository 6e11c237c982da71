"""Attention over packed sequences that one block holds whole, in Triton.

One program is one head of one sequence. With all scores at hand, a softmax needs no running maximum
and its gradient no second pass: scores, probabilities and dropout's mask are computed once.
"""

# Annotations cannot express the Triton types of a kernel's arguments.
# mypy: allow-untyped-defs

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from .launch import block_of, dot, load_rows, rounded, steps, store_rows
from .philox import keep_block

# Numbers that change from call to call must not make Triton recompile.
VARYING = ("tokens", "batch", "blocks", "site", "leading")
LOG2_E = tl.constexpr(1.4426950408889634)


# What Triton 3.6 makes of the backward kernel, with dropout and heads of 64 (registers, bytes
# spilled, KiB of shared memory):
#
#                           sm_80           sm_90          sm_100
#   16 bit,  16 rows     79   0   6.5    75   0   6.5    72   0   6.5    1 warp
#            32 rows    112   0  14     106   0  14     105   0  14      2
#            64 rows    190   0  32     127   0  32     124   0  33      4
#           128 rows    255  16  80     219   0  80     182   0  80      8
#           128 rows                    255 1384 80     255 456  80      4
#   float32, 32 rows                     80   0  32                      4
#            64 rows                    255 688  64                      8
#   float64, 32 rows                    168   0  64                      4
#
# A warp group of Hopper, four warps, multiplies 64 rows; smaller blocks go to each warp's own
# tensor cores by 16 rows, and a sequence of 20 tokens has a quarter of the scores to compute.
# float32 has no tensor cores: its matrix products hold operands in registers, and 64 rows are too
# many.
def one_block(
    dtype: torch.dtype, max_seqlen: int, block_d: int, mean: float = math.inf
) -> dict[str, int] | None:
    """Rows M of the block that holds a sequence, and its warps; None where that is too large, or
    sequences of `mean` tokens leave most of it empty.
    """
    narrow = dtype.itemsize == 2
    # Wider heads leave room for fewer rows: with 128 of each, shared memory would be 128 KiB.
    limit = min(128, 8192 // block_d) if narrow else min(32, 2048 // block_d)
    size = block_of(max_seqlen, 1 << 20)
    # A sequence of 64 would use a quarter of the scores of a block of 128 rows: blocks of 64 and
    # two kernels are less arithmetic.
    if size > limit or (size > 64 and mean < 64):
        return None
    return {"M": size, "num_warps": size // 16 if narrow else size // 8}


@triton.jit
def locate(cu_seqlens, tokens, batch, blocks):
    """The sequence of this program, where it begins, its length, and the number of its block.

    The tokens after the last offset are one more sequence, number `batch`.
    """
    b = tl.program_id(0) // blocks
    begin = tl.minimum(tl.maximum(tl.load(cu_seqlens + b), 0), tokens)
    end = tl.load(cu_seqlens + tl.minimum(b + 1, batch))
    end = tl.where(b < batch, tl.maximum(tl.minimum(end, tokens), begin), tokens)
    return b, begin, end - begin, tl.program_id(0) % blocks


@triton.jit
def clear(
    x, length, block, blocks,
    STRIDE: tl.constexpr, D: tl.constexpr, M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Writes zeros to this program's part of the rows that belong to no sequence, M at a time."""
    for start in steps(block * M, length, blocks * M):
        i = start + tl.arange(0, M)
        # The number of these rows is not bounded: offsets in 32 bits could overflow.
        zeros = tl.zeros((M, BLOCK_D), x.dtype.element_ty)
        store_rows(x, zeros, i.to(tl.int64), length, STRIDE, D, BLOCK_D)


@triton.jit(do_not_specialize=VARYING)
def forward_kernel(
    qkv, cu_seqlens, seed, out, lse, tokens, batch, site,
    HEADS: tl.constexpr, D: tl.constexpr, SCALE: tl.constexpr, THRESHOLD: tl.constexpr,
    ACC: tl.constexpr, M: tl.constexpr, BLOCK_D: tl.constexpr, HAS_LSE: tl.constexpr,
):  # fmt: skip
    b, begin, length, _ = locate(cu_seqlens, tokens, batch, 1)
    head = tl.program_id(1)
    WIDTH: tl.constexpr = HEADS * D
    out += begin.to(tl.int64) * WIDTH + head * D
    lse += begin.to(tl.int64) * HEADS + head
    if b == batch:
        clear(out, length, 0, 1, WIDTH, D, M, BLOCK_D)
        if HAS_LSE:
            clear(lse, length, 0, 1, HEADS, 1, M, 1)
        return
    if length == 0:
        return
    qkv += begin.to(tl.int64) * (3 * WIDTH) + head * D
    i = tl.arange(0, M)
    q = load_rows(qkv, i, length, 3 * WIDTH, D, BLOCK_D)
    k = load_rows(qkv + WIDTH, i, length, 3 * WIDTH, D, BLOCK_D)
    v = load_rows(qkv + 2 * WIDTH, i, length, 3 * WIDTH, D, BLOCK_D)
    s = dot(q, tl.trans(k), ACC) * (SCALE * LOG2_E)
    s = tl.where((i < length)[None, :], s, float("-inf"))
    top = tl.max(s, 1)
    p = tl.exp2(s - top[:, None])
    total = tl.sum(p, 1)
    if THRESHOLD > 0:
        rows = (begin + i) * HEADS + head
        p = tl.where(keep_block(seed, site, rows, 0, M, M, THRESHOLD), p, 0.0)
    acc = dot(rounded(p, v.dtype), v, ACC)
    acc *= (65536.0 / (65536 - THRESHOLD)) / total[:, None]
    store_rows(out, acc, i, length, WIDTH, D, BLOCK_D)
    if HAS_LSE:
        tl.store(lse + i * HEADS, (top + tl.log2(total)) / LOG2_E, mask=i < length)


@triton.jit(do_not_specialize=VARYING)
def backward_kernel(
    grad, qkv, lse, cu_seqlens, seed, grad_qkv, tokens, batch, site, leading,
    HEADS: tl.constexpr, D: tl.constexpr, SCALE: tl.constexpr, THRESHOLD: tl.constexpr,
    ACC: tl.constexpr, M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    b, begin, length, _ = locate(cu_seqlens, tokens, batch, 1)
    head = tl.program_id(1)
    WIDTH: tl.constexpr = HEADS * D
    first = begin.to(tl.int64)
    grad_qkv += first * (3 * WIDTH) + head * D
    if b == batch:
        for part in tl.static_range(3):
            clear(grad_qkv + part * WIDTH, length, 0, 1, 3 * WIDTH, D, M, BLOCK_D)
        return
    if length == 0:
        return
    qkv += first * (3 * WIDTH) + head * D
    i = tl.arange(0, M)
    q = load_rows(qkv, i, length, 3 * WIDTH, D, BLOCK_D)
    k = load_rows(qkv + WIDTH, i, length, 3 * WIDTH, D, BLOCK_D)
    row_lse = tl.load(lse + (first + i) * HEADS + head, mask=i < length, other=0.0) * LOG2_E
    s = dot(q, tl.trans(k), ACC) * (SCALE * LOG2_E)
    # Keys beyond the length, of score 0, would get exp(-lse), which may be infinite.  Queries
    # beyond it do no harm: their gradients are 0.
    p = tl.exp2(tl.where((i < length)[None, :], s - row_lse[:, None], float("-inf")))
    v = load_rows(qkv + 2 * WIDTH, i, length, 3 * WIDTH, D, BLOCK_D)
    g = load_rows(grad + first * WIDTH + head * D, i, length, WIDTH, D, BLOCK_D)
    dp = dot(g, tl.trans(v), ACC)
    dropped = p
    if THRESHOLD > 0:
        rows = (leading + begin + i) * HEADS + head
        kept = keep_block(seed, site, rows, 0, M, M, THRESHOLD)
        factor: tl.constexpr = 65536.0 / (65536 - THRESHOLD)
        dropped = tl.where(kept, p * factor, 0.0)
        dp = tl.where(kept, dp * factor, 0.0)
    dv = dot(tl.trans(rounded(dropped, g.dtype)), g, ACC)
    store_rows(grad_qkv + 2 * WIDTH, dv, i, length, 3 * WIDTH, D, BLOCK_D)
    # The row sums of grad * out, without reading out: they equal the sums of probability times
    # gradient.
    delta = tl.sum(p * dp, 1)
    ds = rounded(p * (dp - delta[:, None]) * SCALE, q.dtype)
    dq = dot(ds, k, ACC)
    store_rows(grad_qkv, dq, i, length, 3 * WIDTH, D, BLOCK_D)
    dk = dot(tl.trans(ds), q, ACC)
    store_rows(grad_qkv + WIDTH, dk, i, length, 3 * WIDTH, D, BLOCK_D)
