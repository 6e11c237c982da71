"""Self-attention among the tokens of each sequence, packed end to end without padding."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.library import register_fake

from fastadv import backends
from fastadv.ops.dtypes import acc_dtype, check_dtype, check_float, check_leading, check_like
from fastadv.ops.philox import check_dropout, keep_mask_ref, keep_scale, threshold_of


def varlen_attention_ref(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    heads: int,
    *,
    p: float = 0.0,
    seed: Tensor | None = None,
    site: int = 0,
    leading: int = 0,
) -> Tensor:
    """What `varlen_attention` computes, in plain PyTorch: one sequence after the other."""
    tokens, hidden = qkv.shape[0], qkv.shape[1] // 3
    q, k, v = qkv.to(acc_dtype(qkv.dtype)).view(tokens, 3, heads, hidden // heads).unbind(1)
    offsets = cu_seqlens.tolist()
    outputs = []
    for begin, end in pairwise(offsets):
        scores = torch.einsum("qhd,khd->hqk", q[begin:end], k[begin:end])
        probabilities = torch.softmax(scores / math.sqrt(hidden // heads), -1)
        if seed is not None and threshold_of(p) > 0:
            rows = torch.arange(begin * heads, end * heads, device=qkv.device)
            kept = keep_mask_ref(seed, site, rows, end - begin, p)
            kept = kept.view(end - begin, heads, end - begin).transpose(0, 1)
            probabilities = torch.where(kept, probabilities * keep_scale(p), 0)
        outputs.append(torch.einsum("hqk,khd->qhd", probabilities, v[begin:end]))
    out = torch.cat(outputs).reshape(tokens, hidden) if outputs else q.reshape(tokens, hidden)
    out = out.to(qkv.dtype)
    return torch.cat([out[:leading].detach(), out[leading:]])


def varlen_attention(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    heads: int,
    *,
    p: float = 0.0,
    seed: Tensor | None = None,
    site: int = 0,
    leading: int = 0,
    backend: str | None = None,
) -> Tensor:
    """softmax(q k^T / sqrt(D)) v of every head, each token with the tokens of its own sequence.

    qkv is (T, 3 H) float32, bfloat16, float16 or float64: queries, keys and values side by side,
    each of `heads` heads with D = H / heads columns; cu_seqlens (B + 1,) int32 are the sequences'
    offsets, from 0 to T; max_seqlen is the longest sequence, or more.  Dropout on the probabilities
    keeps what `philox.keep_mask_ref` says for seed (1,) int64, site, row token * heads + head and
    the column of the key in its sequence; there is none for p = 0 or seed None.

    Args:
        leading: The number of tokens at the start, whole sequences, that need no gradient.

    Returns:
        (T, H) of qkv's dtype; softmax and sums are float32 (float64 for float64 qkv).

    Raises:
        ValueError: A shape, dtype or device does not fit; `leading` ends within a sequence.
        RuntimeError: The backend asked for cannot run.
    """
    _check(qkv, cu_seqlens, heads, leading)
    check_dropout(p, seed, site, qkv.device)
    chosen = backends.resolve("varlen_attention", qkv.device, backend)
    if chosen == "torch":
        return varlen_attention_ref(
            qkv, cu_seqlens, max_seqlen, heads, p=p, seed=seed, site=site, leading=leading
        )
    qkv, cu_seqlens = qkv.contiguous(), cu_seqlens.contiguous()
    if torch.is_grad_enabled() and qkv.requires_grad:
        return _VarlenAttention.apply(
            qkv, cu_seqlens, max_seqlen, heads, p, seed, site, leading, chosen
        )
    out = qkv.new_empty(qkv.shape[0], qkv.shape[1] // 3)
    backends.kernels("varlen_attention", chosen).varlen_attention(
        qkv, cu_seqlens, max_seqlen, heads, p, seed, site, out, None
    )
    return out


def _check(qkv: Tensor, cu_seqlens: Tensor, heads: int, leading: int) -> None:
    check_float(qkv, "qkv")
    if heads < 1:
        raise ValueError(f"heads is {heads}, expected at least 1")
    if qkv.dim() != 2 or qkv.shape[1] % (3 * heads):
        raise ValueError(
            f"qkv has shape {tuple(qkv.shape)}, expected (T, 3 H) with H a multiple of {heads}"
        )
    check_dtype(cu_seqlens, torch.int32, "cu_seqlens")
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] == 0:
        raise ValueError(f"cu_seqlens has shape {tuple(cu_seqlens.shape)}, expected (B + 1,)")
    check_like(cu_seqlens, tuple(cu_seqlens.shape), qkv, "cu_seqlens")
    check_leading(leading, qkv.shape[0])
    # On a GPU the offsets are not read: the host would wait.
    if leading and cu_seqlens.device.type == "cpu" and leading not in cu_seqlens.tolist():
        raise ValueError(f"leading is {leading}, expected the end of a sequence")


class _VarlenAttention(torch.autograd.Function):
    """qkv (T, 3 H); cu_seqlens (B + 1,) int32; seed (1,) int64 or None."""

    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        heads: int,
        p: float,
        seed: Tensor | None,
        site: int,
        leading: int,
        chosen: str,
    ) -> Tensor:
        out = qkv.new_empty(qkv.shape[0], qkv.shape[1] // 3)
        lse = qkv.new_empty(qkv.shape[0], heads, dtype=acc_dtype(qkv.dtype))
        backends.kernels("varlen_attention", chosen).varlen_attention(
            qkv, cu_seqlens, max_seqlen, heads, p, seed, site, out, lse
        )
        ctx.save_for_backward(qkv, cu_seqlens, out, lse, seed)
        ctx.max_seqlen, ctx.heads, ctx.p, ctx.site = max_seqlen, heads, p, site
        ctx.leading, ctx.chosen = leading, chosen
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        qkv, cu_seqlens, out, lse, seed = ctx.saved_tensors
        rows = slice(ctx.leading, None)
        # Sequences of the leading tokens become empty and keep their index.
        offsets = (cu_seqlens - ctx.leading).clamp(min=0)
        grad_qkv = torch.empty_like(qkv)
        grad_qkv[: ctx.leading] = 0
        backends.kernels("varlen_attention", ctx.chosen).varlen_attention_backward(
            grad[rows].contiguous(), qkv[rows], out[rows], lse[rows], offsets, ctx.max_seqlen,
            ctx.heads, ctx.p, seed, ctx.site, ctx.leading, grad_qkv[rows],
        )  # fmt: skip
        return (grad_qkv, *[None] * 8)


if backends.extension is not None:

    @register_fake("fastadv::varlen_attention")
    def _fake(
        qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, heads: int, p: float,
        seed: Tensor | None, site: int, out: Tensor, lse: Tensor | None,
    ) -> None:  # fmt: skip
        return None

    @register_fake("fastadv::varlen_attention_backward")
    def _fake_backward(
        grad: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, cu_seqlens: Tensor, max_seqlen: int,
        heads: int, p: float, seed: Tensor | None, site: int, leading: int, grad_qkv: Tensor,
    ) -> None:  # fmt: skip
        return None
