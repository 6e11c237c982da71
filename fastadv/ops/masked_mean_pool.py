"""Mean over the tokens of each sequence, packed or padded: h(x) of the paper's Algorithm 1."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.library import register_fake

from fastadv import backends
from fastadv.ops.dtypes import acc_dtype, check_float, check_like


def masked_mean_pool_ref(
    x: Tensor, cu_seqlens: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """What `masked_mean_pool` computes, in plain PyTorch."""
    x = x.to(acc_dtype(x.dtype))
    if cu_seqlens is None:
        assert mask is not None
        counted = mask.bool()
        total = torch.where(counted[:, :, None], x, 0).sum(1)
        return total / counted.sum(1).clamp(min=1)[:, None]
    # Token t is in the sequence whose index is the number of sequences that end at or before t;
    # tokens after the last offset fall into an extra one, which is dropped.
    batch = cu_seqlens.shape[0] - 1
    tokens = torch.arange(x.shape[0], dtype=torch.int32, device=x.device)
    sequence = torch.bucketize(tokens, cu_seqlens[1:], right=True)
    counted = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
    total = x.new_zeros(batch + 1, x.shape[1])
    total = total.index_add(0, sequence, torch.where(counted[:, None], x, 0))
    count = x.new_zeros(batch + 1).index_add(0, sequence, counted.to(x.dtype))
    return (total / count.clamp(min=1)[:, None])[:batch]


def masked_mean_pool(
    x: Tensor,
    cu_seqlens: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """Mean over the counted tokens of each sequence, `h(x)` of Keung, Lu and Bhardwaj (2019).

    Packed: x (T, H), cu_seqlens (B + 1,) int32 offsets from 0 that never decrease, mask (T,) bool,
    True where a token counts, or None for all.  Tokens after the last offset belong to no
    sequence.  Padded: x (B, L, H), mask (B, L) bool or 0/1 integers, no cu_seqlens.  x is float32,
    bfloat16, float16 or float64.

    Returns:
        (B, H), float32 (float64 for float64 x), the type that the sum is kept in.  A sequence with
        no counted token gives zeros, and gets no gradient.  The gradient of x has x's dtype.

    Raises:
        ValueError: A shape, dtype or device does not fit.
        RuntimeError: The backend asked for cannot run.
    """
    batch = _check_padded(x, mask) if cu_seqlens is None else _check_packed(x, cu_seqlens, mask)
    chosen = backends.resolve("masked_mean_pool", x.device, backend)
    if chosen == "torch":
        return masked_mean_pool_ref(x, cu_seqlens, mask)
    if cu_seqlens is None:
        x = x.reshape(x.shape[0] * x.shape[1], x.shape[2])
        assert mask is not None
        mask = mask.to(torch.bool).reshape(-1)
    if torch.is_grad_enabled() and x.requires_grad:
        return _MaskedMeanPool.apply(x, cu_seqlens, mask, batch, chosen)
    return backends.kernels("masked_mean_pool", chosen).masked_mean_pool(
        x, cu_seqlens, mask, batch
    )[0]


def _check_padded(x: Tensor, mask: Tensor | None) -> int:
    check_float(x, "x")
    if x.dim() != 3:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected (B, L, H) without cu_seqlens")
    if mask is None:
        raise ValueError("mask is None, expected a mask (B, L) for padded x")
    if mask.is_floating_point() or mask.is_complex():
        raise ValueError(f"mask has dtype {mask.dtype}, expected bool or integers 0 and 1")
    check_like(mask, tuple(x.shape[:2]), x, "mask")
    return x.shape[0]


def _check_packed(x: Tensor, cu_seqlens: Tensor, mask: Tensor | None) -> int:
    check_float(x, "x")
    if x.dim() != 2:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected (T, H) with cu_seqlens")
    if cu_seqlens.dtype != torch.int32:
        raise ValueError(f"cu_seqlens has dtype {cu_seqlens.dtype}, expected int32")
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] == 0:
        raise ValueError(f"cu_seqlens has shape {tuple(cu_seqlens.shape)}, expected (B + 1,)")
    check_like(cu_seqlens, tuple(cu_seqlens.shape), x, "cu_seqlens")
    if mask is not None:
        if mask.dtype != torch.bool:
            raise ValueError(f"mask has dtype {mask.dtype}, expected bool")
        check_like(mask, (x.shape[0],), x, "mask")
    return cu_seqlens.shape[0] - 1


class _MaskedMeanPool(torch.autograd.Function):
    """x (T, H); cu_seqlens (B + 1,) or None for equal lengths; mask (T,) bool or None."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, cu_seqlens: Tensor | None, mask: Tensor | None, batch: int, chosen: str
    ) -> Tensor:
        mean, counts = backends.kernels("masked_mean_pool", chosen).masked_mean_pool(
            x, cu_seqlens, mask, batch
        )
        ctx.save_for_backward(counts, cu_seqlens, mask)
        ctx.tokens, ctx.dtype, ctx.chosen = x.shape[0], x.dtype, chosen
        return mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        counts, cu_seqlens, mask = ctx.saved_tensors
        grad_x = backends.kernels("masked_mean_pool", ctx.chosen).masked_mean_pool_backward(
            grad, counts, cu_seqlens, mask, ctx.tokens, ctx.dtype
        )
        return grad_x, None, None, None, None


if backends.extension is not None:

    @register_fake("fastadv::masked_mean_pool")
    def _fake(
        x: Tensor, cu_seqlens: Tensor | None, mask: Tensor | None, batch: int
    ) -> tuple[Tensor, Tensor]:
        dtype = acc_dtype(x.dtype)
        return x.new_empty(batch, x.shape[1], dtype=dtype), x.new_empty(batch, dtype=dtype)

    @register_fake("fastadv::masked_mean_pool_backward")
    def _fake_backward(
        grad: Tensor,
        counts: Tensor,
        cu_seqlens: Tensor | None,
        mask: Tensor | None,
        tokens: int,
        dtype: torch.dtype,
    ) -> Tensor:
        return grad.new_empty(tokens, grad.shape[1], dtype=dtype)
