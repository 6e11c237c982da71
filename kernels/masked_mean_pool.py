"""Mean over the counted rows of each sequence, in Triton."""

# Annotations cannot express the Triton types of a kernel's arguments.
# mypy: allow-untyped-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import acc_dtype, block_of, on_device


@triton.jit
def _mean_kernel(
    x, cu_seqlens, mask, mean, counts, tokens, hidden, length,
    HAS_OFFSETS: tl.constexpr, HAS_MASK: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    # One program: one sequence, BLOCK_H columns.
    b = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    if HAS_OFFSETS:
        # Clamped, so that a wrong offset cannot read outside x.
        begin = tl.maximum(tl.load(cu_seqlens + b), 0)
        end = tl.minimum(tl.load(cu_seqlens + b + 1), tokens)
    else:
        begin = b * length
        end = begin + length
    acc_type = mean.dtype.element_ty
    total = tl.zeros((BLOCK_T, BLOCK_H), acc_type)
    counted = tl.zeros((BLOCK_T,), tl.int32)
    # `while`, because the interpreter of triton 3.6 takes no tensors in range() under NumPy 2.4.
    start = begin
    while start < end:
        rows = start + tl.arange(0, BLOCK_T)
        keep = rows < end
        if HAS_MASK:
            keep = keep & (tl.load(mask + rows, mask=keep, other=0) != 0)
        at = rows[:, None].to(tl.int64) * hidden + columns[None, :]
        inside = keep[:, None] & (columns < hidden)[None, :]
        total += tl.load(x + at, mask=inside, other=0.0).to(acc_type)
        counted += keep.to(tl.int32)
        start += BLOCK_T
    count = tl.sum(counted, 0)
    result = tl.sum(total, 0) / tl.maximum(count, 1).to(acc_type)
    tl.store(mean + b.to(tl.int64) * hidden + columns, result, mask=columns < hidden)
    if tl.program_id(1) == 0:
        tl.store(counts + b, count.to(acc_type))


@triton.jit
def _grad_kernel(
    grad, counts, cu_seqlens, mask, grad_x, tokens, hidden, length, batch,
    STEPS: tl.constexpr, HAS_OFFSETS: tl.constexpr, HAS_MASK: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    # One program: BLOCK_T rows, BLOCK_H columns.  Every row is written, whatever the offsets say.
    rows = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    columns = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    inside = rows < tokens
    if HAS_OFFSETS:
        # Bisection for the first sequence that ends after the row.
        low = tl.zeros((BLOCK_T,), tl.int32)
        high = low + batch
        for _ in range(STEPS):
            middle = (low + high) // 2
            open_ = low < high
            ended = tl.load(cu_seqlens + middle + 1, mask=open_, other=0) <= rows
            low = tl.where(open_ & ended, middle + 1, low)
            high = tl.where(open_ & (ended == 0), middle, high)
        b = low
    else:
        b = rows // length
    keep = inside & (b < batch)
    if HAS_MASK:
        keep = keep & (tl.load(mask + rows, mask=inside, other=0) != 0)
    count = tl.load(counts + b, mask=keep, other=1.0)
    at = b[:, None].to(tl.int64) * hidden + columns[None, :]
    value = tl.load(grad + at, mask=keep[:, None] & (columns < hidden)[None, :], other=0.0)
    value = value / count[:, None]
    out = rows[:, None].to(tl.int64) * hidden + columns[None, :]
    tl.store(
        grad_x + out,
        value.to(grad_x.dtype.element_ty),
        mask=inside[:, None] & (columns < hidden)[None, :],
    )


def masked_mean_pool(
    x: Tensor, cu_seqlens: Tensor | None, mask: Tensor | None, batch: int
) -> tuple[Tensor, Tensor]:
    """Means (B, H) and numbers of counted rows (B,) of x (T, H).

    cu_seqlens (B + 1,) int32, or None for `batch` sequences of equal length; mask (T,) bool.
    """
    x = x.contiguous()
    tokens, hidden = x.shape
    mean = x.new_empty(batch, hidden, dtype=acc_dtype(x.dtype))
    counts = x.new_zeros(batch, dtype=mean.dtype)
    if batch == 0:
        return mean, counts
    block_h = block_of(hidden, 128)
    grid = (batch, max(1, triton.cdiv(hidden, block_h)))
    with on_device(x):
        _mean_kernel[grid](
            x,
            x if cu_seqlens is None else cu_seqlens.contiguous(),
            x if mask is None else mask.contiguous().view(torch.uint8),
            mean,
            counts,
            tokens,
            hidden,
            tokens // batch,
            HAS_OFFSETS=cu_seqlens is not None,
            HAS_MASK=mask is not None,
            BLOCK_T=32,
            BLOCK_H=block_h,
        )
    return mean, counts


def masked_mean_pool_backward(
    grad: Tensor,
    counts: Tensor,
    cu_seqlens: Tensor | None,
    mask: Tensor | None,
    tokens: int,
    dtype: torch.dtype,
) -> Tensor:
    """Gradient (T, H) of x, of type `dtype`, from the gradient of the means (B, H)."""
    grad = grad.contiguous()
    batch, hidden = grad.shape
    grad_x = grad.new_empty(tokens, hidden, dtype=dtype)
    if grad_x.numel() == 0:
        return grad_x
    block_h = block_of(hidden, 256)
    block_t = 16
    grid = (triton.cdiv(tokens, block_t), triton.cdiv(hidden, block_h))
    with on_device(grad):
        _grad_kernel[grid](
            grad,
            counts.contiguous(),
            grad if cu_seqlens is None else cu_seqlens.contiguous(),
            grad if mask is None else mask.contiguous().view(torch.uint8),
            grad_x,
            tokens,
            hidden,
            tokens // max(batch, 1),
            batch,
            STEPS=batch.bit_length(),
            HAS_OFFSETS=cu_seqlens is not None,
            HAS_MASK=mask is not None,
            BLOCK_T=block_t,
            BLOCK_H=block_h,
        )
    return grad_x
