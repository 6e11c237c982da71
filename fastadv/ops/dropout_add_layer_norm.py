"""Bias, dropout, residual sum and layer normalisation, which follow a layer's matrix products."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.library import register_fake

from fastadv import backends
from fastadv.ops.dtypes import acc_dtype, check_dtype, check_float, check_leading, check_like
from fastadv.ops.philox import check_dropout, dropout_ref


def dropout_add_layer_norm_ref(
    x: Tensor,
    bias: Tensor,
    residual: Tensor,
    gain: Tensor,
    beta: Tensor,
    *,
    eps: float,
    p: float = 0.0,
    seed: Tensor | None = None,
    site: int = 0,
    leading: int = 0,
) -> Tensor:
    """What `dropout_add_layer_norm` computes, in plain PyTorch."""
    z = dropout_ref(x.to(residual.dtype) + bias, seed, site, p) + residual
    y = F.layer_norm(z, z.shape[1:], gain, beta, eps)
    return torch.cat([y[:leading].detach(), y[leading:]])


def dropout_add_layer_norm(
    x: Tensor,
    bias: Tensor,
    residual: Tensor,
    gain: Tensor,
    beta: Tensor,
    *,
    eps: float,
    p: float = 0.0,
    seed: Tensor | None = None,
    site: int = 0,
    leading: int = 0,
    backend: str | None = None,
) -> Tensor:
    """LN(dropout(x + bias) + residual), the end of each half of a BERT layer (Devlin et al. 2019).

    x is (T, H) float32, bfloat16, float16 or float64, a matrix product without its bias; residual
    (T, H), bias, gain and beta (H,) float32 (float64 for float64 x).  LN(z) = (z - mean) /
    sqrt(var + eps) * gain + beta over the H columns of a row.  Dropout keeps what
    `philox.keep_mask_ref` says for seed (1,) int64, site and the row's number; there is none for
    p = 0 or seed None.  The first `leading` rows need no gradient.

    Returns:
        (T, H) in residual's dtype.  Every tensor argument but seed gets a gradient in its own
        dtype; x and residual get zeros in the leading rows.  For the backward, z is kept in x's
        dtype.

    Raises:
        ValueError: A shape, dtype or device does not fit; p is not in [0, 1).
        RuntimeError: The backend asked for cannot run.
    """
    _check(x, bias, residual, gain, beta, leading)
    check_dropout(p, seed, site, x.device)
    chosen = backends.resolve("dropout_add_layer_norm", x.device, backend)
    if chosen == "torch":
        return dropout_add_layer_norm_ref(
            x, bias, residual, gain, beta, eps=eps, p=p, seed=seed, site=site, leading=leading
        )
    tensors = [tensor.contiguous() for tensor in (x, bias, residual, gain, beta)]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return _DropoutAddLayerNorm.apply(*tensors, eps, p, seed, site, leading, chosen)
    y = torch.empty_like(tensors[2])
    backends.kernels("dropout_add_layer_norm", chosen).dropout_add_layer_norm(
        *tensors, eps, p, seed, site, leading, y, None, None, None
    )
    return y


def _check(
    x: Tensor, bias: Tensor, residual: Tensor, gain: Tensor, beta: Tensor, leading: int
) -> None:
    check_float(x, "x")
    if x.dim() != 2:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected (T, H)")
    check_dtype(residual, acc_dtype(x.dtype), "residual")
    check_like(residual, tuple(x.shape), x, "residual")
    for name, vector in (("bias", bias), ("gain", gain), ("beta", beta)):
        check_dtype(vector, residual.dtype, name)
        check_like(vector, (x.shape[1],), x, name)
    check_leading(leading, x.shape[0])


class _DropoutAddLayerNorm(torch.autograd.Function):
    """x (T, H); residual (T, H), bias, gain, beta (H,) in x's sum type; seed (1,) int64 or None."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        bias: Tensor,
        residual: Tensor,
        gain: Tensor,
        beta: Tensor,
        eps: float,
        p: float,
        seed: Tensor | None,
        site: int,
        leading: int,
        chosen: str,
    ) -> Tensor:
        y = torch.empty_like(residual)
        rows = x.shape[0] - leading
        z, stats = x.new_empty(rows, x.shape[1]), residual.new_empty(rows, 2)
        backends.kernels("dropout_add_layer_norm", chosen).dropout_add_layer_norm(
            x, bias, residual, gain, beta, eps, p, seed, site, leading, y, None, z, stats
        )
        ctx.save_for_backward(z, stats, gain, seed)
        ctx.p, ctx.site, ctx.leading, ctx.chosen = p, site, leading, chosen
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, stats, gain, seed = ctx.saved_tensors
        rows, hidden = ctx.leading + z.shape[0], z.shape[1]
        grad_x, grad_residual = z.new_empty(rows, hidden), stats.new_empty(rows, hidden)
        grad_x[: ctx.leading] = 0
        grad_residual[: ctx.leading] = 0
        vectors = stats.new_empty(3, hidden)
        backends.kernels("dropout_add_layer_norm", ctx.chosen).dropout_add_layer_norm_backward(
            grad[ctx.leading :].contiguous(), None, z, stats, gain, ctx.p, seed, ctx.site,
            ctx.leading, grad_x[ctx.leading :], grad_residual[ctx.leading :], vectors,
        )  # fmt: skip
        grad_bias, grad_gain, grad_beta = vectors
        return (grad_x, grad_bias, grad_residual, grad_gain, grad_beta, *[None] * 6)


if backends.extension is not None:

    @register_fake("fastadv::dropout_add_layer_norm")
    def _fake(
        x: Tensor, bias: Tensor, residual: Tensor, gain: Tensor, beta: Tensor, eps: float,
        p: float, seed: Tensor | None, site: int, leading: int, y: Tensor, y_low: Tensor | None,
        z: Tensor | None, stats: Tensor | None,
    ) -> None:  # fmt: skip
        return None

    @register_fake("fastadv::dropout_add_layer_norm_backward")
    def _fake_backward(
        grad: Tensor, grad_low: Tensor | None, z: Tensor, stats: Tensor, gain: Tensor, p: float,
        seed: Tensor | None, site: int, leading: int, grad_x: Tensor, grad_residual: Tensor,
        grad_vectors: Tensor,
    ) -> None:  # fmt: skip
        return None
