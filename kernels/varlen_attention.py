"""Attention within each of many packed sequences, in Triton.

Dao, "FlashAttention-2", ICLR 2024: blocks of scores with a running maximum and sum, computed again
in the backward pass.
"""

# A kernel's arguments have types of Triton's, which annotations cannot say.
# mypy: allow-untyped-defs

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import block_of, dot, load_rows, on_device, rounded, steps, store_rows
from .philox import keep_block, threshold_of

# Numbers that change from call to call must not make Triton compile again.
_VARYING = ("tokens", "batch", "blocks", "site", "leading")
_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _place(cu_seqlens, tokens, batch, blocks):
    """The sequence of this program, where it begins, its length, and the number of its block.

    The tokens after the last offset are one more sequence, number `batch`.
    """
    b = tl.program_id(0) // blocks
    begin = tl.minimum(tl.maximum(tl.load(cu_seqlens + b), 0), tokens)
    end = tl.load(cu_seqlens + tl.minimum(b + 1, batch))
    end = tl.where(b < batch, tl.maximum(tl.minimum(end, tokens), begin), tokens)
    return b, begin, end - begin, tl.program_id(0) % blocks


@triton.jit
def _clear(
    x, length, block, blocks,
    STRIDE: tl.constexpr, D: tl.constexpr, M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Zeros in this program's part of the rows that belong to no sequence, M at a time."""
    for start in steps(block * M, length, blocks * M):
        i = start + tl.arange(0, M)
        # Their number has no bound that a product of 32 bits would keep to.
        zeros = tl.zeros((M, BLOCK_D), x.dtype.element_ty)
        store_rows(x, zeros, i.to(tl.int64), length, STRIDE, D, BLOCK_D)


@triton.jit(do_not_specialize=_VARYING)
def _forward_kernel(
    qkv, cu_seqlens, seed, out, lse, tokens, batch, blocks, site,
    HEADS: tl.constexpr, D: tl.constexpr, SCALE: tl.constexpr, THRESHOLD: tl.constexpr,
    ACC: tl.constexpr, M: tl.constexpr, N: tl.constexpr, BLOCK_D: tl.constexpr,
    HAS_LSE: tl.constexpr,
):  # fmt: skip
    # One program: M queries of one head of one sequence, all of its keys.
    b, begin, length, block = _place(cu_seqlens, tokens, batch, blocks)
    head = tl.program_id(1)
    WIDTH: tl.constexpr = HEADS * D
    out += begin.to(tl.int64) * WIDTH + head * D
    lse += begin.to(tl.int64) * HEADS + head
    if b == batch:
        _clear(out, length, block, blocks, WIDTH, D, M, BLOCK_D)
        if HAS_LSE:
            _clear(lse, length, block, blocks, HEADS, 1, M, 1)
        return
    if block * M >= length:
        return
    qkv += begin.to(tl.int64) * (3 * WIDTH) + head * D
    i = block * M + tl.arange(0, M)
    q = load_rows(qkv, i, length, 3 * WIDTH, D, BLOCK_D)
    top = tl.full((M,), float("-inf"), ACC)
    total = tl.zeros((M,), ACC)
    acc = tl.zeros((M, BLOCK_D), ACC)
    for start in steps(0, length, N):
        j = start + tl.arange(0, N)
        k = load_rows(qkv + WIDTH, j, length, 3 * WIDTH, D, BLOCK_D)
        v = load_rows(qkv + 2 * WIDTH, j, length, 3 * WIDTH, D, BLOCK_D)
        s = dot(q, tl.trans(k), ACC) * (SCALE * _LOG2_E)
        s = tl.where((j < length)[None, :], s, float("-inf"))
        higher = tl.maximum(top, tl.max(s, 1))
        p = tl.exp2(s - higher[:, None])
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(p, 1)
        if THRESHOLD > 0:
            rows = (begin + i) * HEADS + head
            p = tl.where(keep_block(seed, site, rows, start, M, N, THRESHOLD), p, 0.0)
        acc = acc * shrink[:, None] + dot(rounded(p, v.dtype), v, ACC)
        top = higher
    acc *= (65536.0 / (65536 - THRESHOLD)) / total[:, None]
    store_rows(out, acc, i, length, WIDTH, D, BLOCK_D)
    if HAS_LSE:
        tl.store(lse + i * HEADS, (top + tl.log2(total)) / _LOG2_E, mask=i < length)


@triton.jit
def _scores(
    q, k, v, grad, lse, delta, begin, i, start, length, head, seed, site, leading,
    HEADS: tl.constexpr, SCALE: tl.constexpr, THRESHOLD: tl.constexpr,
    ACC: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Probabilities after dropout (M, N) of queries i (M,) and the N keys from start on, and the
    gradients of q k^T.  lse is in units of log 2; what is beyond the length gives zeros."""
    s = dot(q, tl.trans(k), ACC) * (SCALE * _LOG2_E)
    inside = (i < length)[:, None] & (start + tl.arange(0, N) < length)[None, :]
    p = tl.exp2(tl.where(inside, s, float("-inf")) - lse[:, None])
    dp = dot(grad, tl.trans(v), ACC)
    dropped = p
    if THRESHOLD > 0:
        rows = (leading + begin + i) * HEADS + head
        kept = keep_block(seed, site, rows, start, M, N, THRESHOLD)
        factor: tl.constexpr = 65536.0 / (65536 - THRESHOLD)
        dropped = tl.where(kept, p * factor, 0.0)
        dp = tl.where(kept, dp * factor, 0.0)
    return dropped, p * (dp - delta[:, None]) * SCALE


@triton.jit(do_not_specialize=_VARYING)
def _backward_q_kernel(
    grad, qkv, out, lse, cu_seqlens, seed, delta, grad_qkv, tokens, batch, blocks, site, leading,
    HEADS: tl.constexpr, D: tl.constexpr, SCALE: tl.constexpr, THRESHOLD: tl.constexpr,
    ACC: tl.constexpr, M: tl.constexpr, N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    # One program: M queries of one head of one sequence, all of its keys; and their rows of delta.
    b, begin, length, block = _place(cu_seqlens, tokens, batch, blocks)
    head = tl.program_id(1)
    WIDTH: tl.constexpr = HEADS * D
    first = begin.to(tl.int64)
    grad_qkv += first * (3 * WIDTH) + head * D
    if b == batch:
        _clear(grad_qkv, length, block, blocks, 3 * WIDTH, D, M, BLOCK_D)
        return
    if block * M >= length:
        return
    qkv += first * (3 * WIDTH) + head * D
    i = block * M + tl.arange(0, M)
    q = load_rows(qkv, i, length, 3 * WIDTH, D, BLOCK_D)
    g = load_rows(grad + first * WIDTH + head * D, i, length, WIDTH, D, BLOCK_D)
    o = load_rows(out + first * WIDTH + head * D, i, length, WIDTH, D, BLOCK_D)
    row_delta = tl.sum(g.to(ACC) * o.to(ACC), 1)
    place = (first + i) * HEADS + head
    tl.store(delta + place, row_delta, mask=i < length)
    row_lse = tl.load(lse + place, mask=i < length, other=0.0) * _LOG2_E
    dq = tl.zeros((M, BLOCK_D), ACC)
    for start in steps(0, length, N):
        j = start + tl.arange(0, N)
        k = load_rows(qkv + WIDTH, j, length, 3 * WIDTH, D, BLOCK_D)
        v = load_rows(qkv + 2 * WIDTH, j, length, 3 * WIDTH, D, BLOCK_D)
        _, ds = _scores(
            q, k, v, g, row_lse, row_delta, begin, i, start, length, head, seed, site, leading,
            HEADS, SCALE, THRESHOLD, ACC, M, N,
        )  # fmt: skip
        dq += dot(rounded(ds, k.dtype), k, ACC)
    store_rows(grad_qkv, dq, i, length, 3 * WIDTH, D, BLOCK_D)


@triton.jit(do_not_specialize=_VARYING)
def _backward_kv_kernel(
    grad, qkv, lse, cu_seqlens, seed, delta, grad_qkv, tokens, batch, blocks, site, leading,
    HEADS: tl.constexpr, D: tl.constexpr, SCALE: tl.constexpr, THRESHOLD: tl.constexpr,
    ACC: tl.constexpr, M: tl.constexpr, N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    # One program: N keys of one head of one sequence, all of its queries.
    b, begin, length, block = _place(cu_seqlens, tokens, batch, blocks)
    head = tl.program_id(1)
    WIDTH: tl.constexpr = HEADS * D
    first = begin.to(tl.int64)
    grad_qkv += first * (3 * WIDTH) + head * D + WIDTH
    if b == batch:
        _clear(grad_qkv, length, block, blocks, 3 * WIDTH, D, N, BLOCK_D)
        _clear(grad_qkv + WIDTH, length, block, blocks, 3 * WIDTH, D, N, BLOCK_D)
        return
    if block * N >= length:
        return
    qkv += first * (3 * WIDTH) + head * D
    grad += first * WIDTH + head * D
    lse += first * HEADS + head
    delta += first * HEADS + head
    j = block * N + tl.arange(0, N)
    k = load_rows(qkv + WIDTH, j, length, 3 * WIDTH, D, BLOCK_D)
    v = load_rows(qkv + 2 * WIDTH, j, length, 3 * WIDTH, D, BLOCK_D)
    dk = tl.zeros((N, BLOCK_D), ACC)
    dv = tl.zeros((N, BLOCK_D), ACC)
    for start in steps(0, length, M):
        i = start + tl.arange(0, M)
        q = load_rows(qkv, i, length, 3 * WIDTH, D, BLOCK_D)
        g = load_rows(grad, i, length, WIDTH, D, BLOCK_D)
        row_lse = tl.load(lse + i * HEADS, mask=i < length, other=0.0) * _LOG2_E
        row_delta = tl.load(delta + i * HEADS, mask=i < length, other=0.0)
        p, ds = _scores(
            q, k, v, g, row_lse, row_delta, begin, i, block * N, length, head, seed, site, leading,
            HEADS, SCALE, THRESHOLD, ACC, M, N,
        )  # fmt: skip
        dv += dot(tl.trans(rounded(p, g.dtype)), g, ACC)
        dk += dot(tl.trans(rounded(ds, q.dtype)), q, ACC)
    store_rows(grad_qkv, dk, j, length, 3 * WIDTH, D, BLOCK_D)
    store_rows(grad_qkv + WIDTH, dv, j, length, 3 * WIDTH, D, BLOCK_D)


def _constants(
    qkv: Tensor, max_seqlen: int, heads: int, p: float, seed: Tensor | None
) -> dict[str, Any]:
    """What kernels are compiled for, with the queries M and the keys N of a block."""
    head_dim = qkv.shape[1] // (3 * heads)
    block_d = block_of(head_dim, 1 << 20)
    if qkv.element_size() == 2:
        # A warp group of Hopper multiplies 64 rows.  Short sequences waste more of a long block of
        # keys, and with wide heads it leaves too few registers.
        m, n = 64, 64 if max_seqlen > 32 and block_d <= 64 else 32
    else:
        m = n = 32 if qkv.dtype == torch.float32 and block_d <= 64 else 16
    return {
        "HEADS": heads,
        "D": head_dim,
        "SCALE": head_dim**-0.5,
        "THRESHOLD": threshold_of(p, seed),
        "ACC": tl.float64 if qkv.dtype == torch.float64 else tl.float32,
        "M": m,
        "N": n,
        "BLOCK_D": block_d,
    }


def varlen_attention(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    heads: int,
    p: float,
    seed: Tensor | None,
    site: int,
    out: Tensor,
    lse: Tensor | None,
) -> None:
    """Writes out (T, H) of qkv (T, 3H), and the log-sum-exp of the scaled scores, lse (T, heads).

    Rows after the last offset get zeros.  No sequence may be longer than max_seqlen.
    """
    if out.numel() == 0:
        return
    constants = _constants(qkv, max_seqlen, heads, p, seed)
    batch = cu_seqlens.shape[0] - 1
    blocks = max(1, triton.cdiv(max_seqlen, constants["M"]))
    seed = cu_seqlens if seed is None else seed
    has_lse, lse = lse is not None, out if lse is None else lse
    with on_device(qkv):
        _forward_kernel[((batch + 1) * blocks, heads)](
            qkv, cu_seqlens, seed, out, lse, out.shape[0], batch, blocks, site,
            HAS_LSE=has_lse, **constants,
        )  # fmt: skip


def varlen_attention_backward(
    grad: Tensor,
    qkv: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    heads: int,
    p: float,
    seed: Tensor | None,
    site: int,
    leading: int,
    grad_qkv: Tensor,
) -> None:
    """Writes the gradient of qkv (T, 3H) from that of out, zeros after the last offset.

    Row 0 of every tensor is token `leading` of the forward pass.
    """
    if out.numel() == 0:
        return
    constants = _constants(qkv, max_seqlen, heads, p, seed)
    batch = cu_seqlens.shape[0] - 1
    seed = cu_seqlens if seed is None else seed
    delta = torch.empty_like(lse)
    with on_device(qkv):
        # The first leaves delta, the row sums of grad * out, to the second.
        blocks = max(1, triton.cdiv(max_seqlen, constants["M"]))
        _backward_q_kernel[((batch + 1) * blocks, heads)](
            grad, qkv, out, lse, cu_seqlens, seed, delta, grad_qkv, out.shape[0], batch, blocks,
            site, leading, **constants,
        )  # fmt: skip
        blocks = max(1, triton.cdiv(max_seqlen, constants["N"]))
        _backward_kv_kernel[((batch + 1) * blocks, heads)](
            grad, qkv, lse, cu_seqlens, seed, delta, grad_qkv, out.shape[0], batch, blocks,
            site, leading, **constants,
        )  # fmt: skip
