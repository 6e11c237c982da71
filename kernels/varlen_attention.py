"""Attention within each of many packed sequences, in Triton.

Dao, "FlashAttention-2", ICLR 2024: blocks of scores with a running maximum and sum, recomputed in
the backward pass. Sequences that one block holds have kernels of their own, in short_attention.
"""

# Annotations cannot express the Triton types of a kernel's arguments.
# mypy: allow-untyped-defs

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import block_of, dot, load_rows, on_device, rounded, steps, store_rows
from .philox import keep_block, threshold_of
from .short_attention import (
    LOG2_E,
    VARYING,
    backward_kernel,
    clear,
    forward_kernel,
    locate,
    one_block,
)


@triton.jit(do_not_specialize=VARYING)
def _forward_kernel(
    qkv, cu_seqlens, seed, out, lse, tokens, batch, blocks, site,
    HEADS: tl.constexpr, D: tl.constexpr, SCALE: tl.constexpr, THRESHOLD: tl.constexpr,
    ACC: tl.constexpr, M: tl.constexpr, N: tl.constexpr, BLOCK_D: tl.constexpr,
    HAS_LSE: tl.constexpr,
):  # fmt: skip
    # One program: M queries of one head of one sequence, all of its keys.
    b, begin, length, block = locate(cu_seqlens, tokens, batch, blocks)
    head = tl.program_id(1)
    WIDTH: tl.constexpr = HEADS * D
    out += begin.to(tl.int64) * WIDTH + head * D
    lse += begin.to(tl.int64) * HEADS + head
    if b == batch:
        clear(out, length, block, blocks, WIDTH, D, M, BLOCK_D)
        if HAS_LSE:
            clear(lse, length, block, blocks, HEADS, 1, M, 1)
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
        s = dot(q, tl.trans(k), ACC) * (SCALE * LOG2_E)
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
        tl.store(lse + i * HEADS, (top + tl.log2(total)) / LOG2_E, mask=i < length)


@triton.jit
def _scores(
    q, k, v, grad, lse, delta, begin, i, start, length, head, seed, site, leading,
    HEADS: tl.constexpr, SCALE: tl.constexpr, THRESHOLD: tl.constexpr,
    ACC: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Probabilities after dropout (M, N) of queries i (M,) and the N keys from start on, and the
    gradients of q k^T.  lse is in units of log 2; what is beyond the length gives zeros."""
    s = dot(q, tl.trans(k), ACC) * (SCALE * LOG2_E)
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


@triton.jit(do_not_specialize=VARYING)
def _backward_q_kernel(
    grad, qkv, out, lse, cu_seqlens, seed, delta, grad_qkv, tokens, batch, blocks, site, leading,
    HEADS: tl.constexpr, D: tl.constexpr, SCALE: tl.constexpr, THRESHOLD: tl.constexpr,
    ACC: tl.constexpr, M: tl.constexpr, N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    # One program: M queries of one head of one sequence, all of its keys; and their rows of delta.
    b, begin, length, block = locate(cu_seqlens, tokens, batch, blocks)
    head = tl.program_id(1)
    WIDTH: tl.constexpr = HEADS * D
    first = begin.to(tl.int64)
    grad_qkv += first * (3 * WIDTH) + head * D
    if b == batch:
        clear(grad_qkv, length, block, blocks, 3 * WIDTH, D, M, BLOCK_D)
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
    row_lse = tl.load(lse + place, mask=i < length, other=0.0) * LOG2_E
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


@triton.jit(do_not_specialize=VARYING)
def _backward_kv_kernel(
    grad, qkv, lse, cu_seqlens, seed, delta, grad_qkv, tokens, batch, blocks, site, leading,
    HEADS: tl.constexpr, D: tl.constexpr, SCALE: tl.constexpr, THRESHOLD: tl.constexpr,
    ACC: tl.constexpr, M: tl.constexpr, N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    # One program: N keys of one head of one sequence, all of its queries.
    b, begin, length, block = locate(cu_seqlens, tokens, batch, blocks)
    head = tl.program_id(1)
    WIDTH: tl.constexpr = HEADS * D
    first = begin.to(tl.int64)
    grad_qkv += first * (3 * WIDTH) + head * D + WIDTH
    if b == batch:
        clear(grad_qkv, length, block, blocks, 3 * WIDTH, D, N, BLOCK_D)
        clear(grad_qkv + WIDTH, length, block, blocks, 3 * WIDTH, D, N, BLOCK_D)
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
        row_lse = tl.load(lse + i * HEADS, mask=i < length, other=0.0) * LOG2_E
        row_delta = tl.load(delta + i * HEADS, mask=i < length, other=0.0)
        p, ds = _scores(
            q, k, v, g, row_lse, row_delta, begin, i, block * N, length, head, seed, site, leading,
            HEADS, SCALE, THRESHOLD, ACC, M, N,
        )  # fmt: skip
        dv += dot(tl.trans(rounded(p, g.dtype)), g, ACC)
        dk += dot(tl.trans(rounded(ds, q.dtype)), q, ACC)
    store_rows(grad_qkv, dk, j, length, 3 * WIDTH, D, BLOCK_D)
    store_rows(grad_qkv + WIDTH, dv, j, length, 3 * WIDTH, D, BLOCK_D)


def _constants(qkv: Tensor, heads: int, p: float, seed: Tensor | None) -> dict[str, Any]:
    """The compile-time constants of every kernel."""
    head_dim = qkv.shape[1] // (3 * heads)
    return {
        "HEADS": heads,
        "D": head_dim,
        "SCALE": head_dim**-0.5,
        "THRESHOLD": threshold_of(p, seed),
        "ACC": tl.float64 if qkv.dtype == torch.float64 else tl.float32,
        "BLOCK_D": block_of(head_dim, 1 << 20),
    }


def _blocks(dtype: torch.dtype, block_d: int) -> dict[str, int]:
    """The queries M and the keys N of a block, and warps, for sequences of several blocks."""
    if dtype.itemsize == 2:
        # A warp group of Hopper, four warps, multiplies 64 rows.  With wide heads the warps have
        # too few registers: heads of 128 spilled 152 bytes on sm_100, and spill none with eight
        # warps.
        wide = block_d > 64
        return {"M": 64, "N": 32 if wide else 64, "num_warps": 8 if wide else 4}
    size = 32 if dtype == torch.float32 and block_d <= 64 else 16
    return {"M": size, "N": size, "num_warps": 4}


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
    constants = _constants(qkv, heads, p, seed)
    batch = cu_seqlens.shape[0] - 1
    seed = cu_seqlens if seed is None else seed
    constants["HAS_LSE"], lse = lse is not None, out if lse is None else lse
    mean = out.shape[0] / max(1, batch)
    whole = one_block(qkv.dtype, max_seqlen, constants["BLOCK_D"], mean)
    tensors, tokens = (qkv, cu_seqlens, seed, out, lse), out.shape[0]
    with on_device(qkv):
        if whole is not None:
            forward_kernel[(batch + 1, heads)](*tensors, tokens, batch, site, **constants, **whole)
            return
        size = _blocks(qkv.dtype, constants["BLOCK_D"])
        blocks = max(1, triton.cdiv(max_seqlen, size["M"]))
        _forward_kernel[((batch + 1) * blocks, heads)](
            *tensors, tokens, batch, blocks, site, **constants, **size
        )


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
    """Writes the gradient of qkv (T, 3H) from the gradient of out, zeros after the last offset.

    Row 0 of every tensor is token `leading` of the forward pass.
    """
    if out.numel() == 0:
        return
    constants = _constants(qkv, heads, p, seed)
    batch, tokens = cu_seqlens.shape[0] - 1, out.shape[0]
    seed = cu_seqlens if seed is None else seed
    whole = one_block(qkv.dtype, max_seqlen, constants["BLOCK_D"], tokens / max(1, batch))
    with on_device(qkv):
        if whole is not None:
            backward_kernel[(batch + 1, heads)](
                grad, qkv, lse, cu_seqlens, seed, grad_qkv, tokens, batch, site, leading,
                **constants, **whole,
            )  # fmt: skip
            return
        size = _blocks(qkv.dtype, constants["BLOCK_D"])
        # The first kernel leaves delta, the row sums of grad * out, to the second.
        delta = torch.empty_like(lse)
        rest = (cu_seqlens, seed, delta, grad_qkv, tokens, batch)
        blocks = max(1, triton.cdiv(max_seqlen, size["M"]))
        _backward_q_kernel[((batch + 1) * blocks, heads)](
            grad, qkv, out, lse, *rest, blocks, site, leading, **constants, **size
        )
        blocks = max(1, triton.cdiv(max_seqlen, size["N"]))
        _backward_kv_kernel[((batch + 1) * blocks, heads)](
            grad, qkv, lse, *rest, blocks, site, leading, **constants, **size
        )
