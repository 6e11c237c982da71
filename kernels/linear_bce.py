"""Linear score, sigmoid and binary cross-entropy in one, in Triton."""

# Annotations cannot express the Triton types of a kernel's arguments.
# mypy: allow-untyped-defs

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import acc_dtype, block_of, on_device


@triton.jit
def _log1p(e):
    # log(u) e / (u - 1) with u = 1 + e undoes the rounding of u: as good as a library's log1p, for
    # e >= -1 / 2 at least.
    u = 1.0 + e
    exact = u == 1.0
    return tl.where(exact, e, tl.log(u) * (e / tl.where(exact, 1.0, u - 1.0)))


@triton.jit
def _loss_kernel(
    h, weight, bias, targets, sample_weights, losses, logits, dz, rows,
    HIDDEN: tl.constexpr, HAS_WEIGHTS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr,
    RELAXED: tl.constexpr, BOUND: tl.constexpr, LOG_BOUND: tl.constexpr,
):  # fmt: skip
    # BOUND and LOG_BOUND are constants because Triton passes a number as float32.
    i = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = i < rows
    acc_type = logits.dtype.element_ty
    total = tl.zeros((BLOCK_N, BLOCK_H), acc_type)
    for start in range(0, HIDDEN, BLOCK_H):
        columns = start + tl.arange(0, BLOCK_H)
        w = tl.load(weight + columns, mask=columns < HIDDEN, other=0.0)
        at = i[:, None].to(tl.int64) * HIDDEN + columns[None, :]
        value = tl.load(h + at, mask=inside[:, None] & (columns < HIDDEN)[None, :], other=0.0)
        total += value.to(acc_type) * w[None, :]
    z = tl.sum(total, 1) + tl.load(bias)
    y = tl.load(targets + i, mask=inside, other=0.0)
    if HAS_WEIGHTS:
        c = tl.load(sample_weights + i, mask=inside, other=0.0)
    else:
        c = tl.full((BLOCK_N,), 1.0, acc_type) / rows.to(acc_type)
    # With e = exp(-|z|) nothing overflows, and no small value is lost next to a large one.
    e = tl.exp(-tl.abs(z))
    large = 1.0 / (1.0 + e)
    small = e / (1.0 + e)
    positive = tl.where(z >= 0, large, small)
    negative = tl.where(z >= 0, small, large)
    if RELAXED:
        # p <= 1 / 2, from where log1p(-p) is as good as p.
        p = tl.full((BLOCK_N,), BOUND, acc_type) * positive
        minus_log_p = tl.maximum(-z, 0.0) + _log1p(e) - tl.full((BLOCK_N,), LOG_BOUND, acc_type)
        loss = c * (y * minus_log_p - (1.0 - y) * _log1p(-p))
        slope = c * negative * ((1.0 - y) * (p / (1.0 - p)) - y)
    else:
        loss = c * (tl.maximum(z, 0.0) - y * z + _log1p(e))
        slope = c * ((1.0 - y) * positive - y * negative)
    tl.store(losses + i, loss, mask=inside)
    tl.store(logits + i, z, mask=inside)
    tl.store(dz + i, slope, mask=inside)


@triton.jit
def _grad_input_kernel(
    grad, dz, weight, grad_h, rows, hidden, BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr
):
    i = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    scale = tl.load(grad) * tl.load(dz + i, mask=i < rows, other=0.0)
    w = tl.load(weight + columns, mask=columns < hidden, other=0.0)
    at = i[:, None].to(tl.int64) * hidden + columns[None, :]
    value = (scale[:, None] * w[None, :]).to(grad_h.dtype.element_ty)
    tl.store(grad_h + at, value, mask=(i < rows)[:, None] & (columns < hidden)[None, :])


@triton.jit
def _grad_params_kernel(
    grad, dz, h, grad_weight, grad_bias, rows, hidden,
    BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    # One program: BLOCK_H columns, all rows, in order: no atomics.
    columns = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    acc_type = grad_weight.dtype.element_ty
    total = tl.zeros((BLOCK_N, BLOCK_H), acc_type)
    bias_total = tl.zeros((BLOCK_N,), acc_type)
    # `while`, because the interpreter of triton 3.6 takes no tensors in range() under NumPy 2.4.
    start = 0
    while start < rows:
        i = start + tl.arange(0, BLOCK_N)
        scale = tl.load(dz + i, mask=i < rows, other=0.0)
        at = i[:, None].to(tl.int64) * hidden + columns[None, :]
        inside = (i < rows)[:, None] & (columns < hidden)[None, :]
        total += scale[:, None] * tl.load(h + at, mask=inside, other=0.0).to(acc_type)
        bias_total += scale
        start += BLOCK_N
    scale = tl.load(grad)
    tl.store(grad_weight + columns, scale * tl.sum(total, 0), mask=columns < hidden)
    if tl.program_id(0) == 0:
        tl.store(grad_bias, scale * tl.sum(bias_total, 0))


def linear_bce(
    h: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    sample_weights: Tensor | None,
    relaxation: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss (), logits (N,) and d loss / d logits (N,) of h (N, H).

    weight (H,), bias (1,), targets (N,) and sample_weights (N,) in the type of the sums.
    """
    h = h.contiguous()
    rows, hidden = h.shape
    losses = h.new_empty(rows, dtype=acc_dtype(h.dtype))
    logits, dz = torch.empty_like(losses), torch.empty_like(losses)
    if rows:
        block_n = 4
        with on_device(h):
            _loss_kernel[(triton.cdiv(rows, block_n),)](
                h,
                weight.contiguous(),
                bias,
                targets.contiguous(),
                weight if sample_weights is None else sample_weights.contiguous(),
                losses,
                logits,
                dz,
                rows,
                HIDDEN=hidden,
                HAS_WEIGHTS=sample_weights is not None,
                BLOCK_N=block_n,
                BLOCK_H=block_of(hidden, 256),
                RELAXED=relaxation != 0,
                BOUND=1 / (2 + relaxation),
                LOG_BOUND=-math.log(2 + relaxation),
            )
    return losses.sum(), logits, dz


def linear_bce_grad_input(grad: Tensor, dz: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Gradient (N, H) of h, of type `dtype`; grad () is the gradient of the loss."""
    rows, hidden = dz.shape[0], weight.shape[0]
    grad_h = dz.new_empty(rows, hidden, dtype=dtype)
    if grad_h.numel():
        block_n, block_h = 4, block_of(hidden, 256)
        with on_device(dz):
            _grad_input_kernel[(triton.cdiv(rows, block_n), triton.cdiv(hidden, block_h))](
                grad,
                dz.contiguous(),
                weight.contiguous(),
                grad_h,
                rows,
                hidden,
                BLOCK_N=block_n,
                BLOCK_H=block_h,
            )
    return grad_h


def linear_bce_grad_params(grad: Tensor, dz: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of weight (H,) and bias (1,), in the type of the sums."""
    h = h.contiguous()
    rows, hidden = h.shape
    grad_weight, grad_bias = dz.new_empty(hidden), dz.new_empty(1)
    block_h = block_of(hidden, 64)
    with on_device(dz):
        _grad_params_kernel[(max(1, triton.cdiv(hidden, block_h)),)](
            grad,
            dz.contiguous(),
            h,
            grad_weight,
            grad_bias,
            rows,
            hidden,
            BLOCK_N=16,
            BLOCK_H=block_h,
        )
    return grad_weight, grad_bias
