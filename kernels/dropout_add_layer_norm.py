"""Bias, dropout, residual and layer norm in one, in Triton."""

# Annotations cannot express the Triton types of a kernel's arguments.
# mypy: allow-untyped-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import on_device, partition, rounded, row_mean, row_tile, row_tile_of, steps
from .philox import drop, threshold_of

# Numbers that change from call to call must not make Triton recompile.
_VARYING = ("rows", "size", "site", "leading")


@triton.jit(do_not_specialize=_VARYING)
def _forward_kernel(
    x, bias, residual, gain, beta, seed, y, y_low, z, stats, rows, site, leading,
    HIDDEN: tl.constexpr, EPS: tl.constexpr, THRESHOLD: tl.constexpr, HAS_LOW: tl.constexpr,
    HAS_SAVED: tl.constexpr, ROWS: tl.constexpr, COUNTERS: tl.constexpr,
):  # fmt: skip
    lanes, counters, columns = row_tile(COUNTERS)
    t = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None, None]
    inside = (t < rows) & (columns < HIDDEN)
    at = t.to(tl.int64) * HIDDEN + columns
    # Vectors are read as tiles of ROWS equal rows, in the layout that they are used in.
    vector = columns + t * 0
    u = tl.load(x + at, mask=inside, other=0.0).to(y.dtype.element_ty)
    u += tl.load(bias + vector, mask=inside, other=0.0)
    u = drop(u, seed, site, t, counters, lanes, THRESHOLD)
    u += tl.load(residual + at, mask=inside, other=0.0)
    mean = row_mean(u, HIDDEN)
    centred = tl.where(inside, u - mean, 0.0)
    rstd = tl.rsqrt(row_mean(centred * centred, HIDDEN) + EPS)
    result = centred * rstd * tl.load(gain + vector, mask=inside, other=0.0)
    result += tl.load(beta + vector, mask=inside, other=0.0)
    tl.store(y + at, result, mask=inside)
    if HAS_LOW:
        tl.store(y_low + at, rounded(result, y_low.dtype.element_ty), mask=inside)
    if HAS_SAVED:
        saved = t.to(tl.int64) - leading
        tl.store(
            z + saved * HIDDEN + columns, rounded(u, z.dtype.element_ty), inside & (saved >= 0)
        )
        one = (t < rows) & (saved >= 0)
        tl.store(stats + saved * 2, mean, mask=one)
        tl.store(stats + saved * 2 + 1, rstd, mask=one)


@triton.jit(do_not_specialize=_VARYING)
def _backward_kernel(
    grad, grad_low, z, stats, gain, seed, grad_x, grad_residual, partial, rows, size, site, leading,
    HIDDEN: tl.constexpr, THRESHOLD: tl.constexpr, HAS_LOW: tl.constexpr,
    ROWS: tl.constexpr, COUNTERS: tl.constexpr,
):  # fmt: skip
    # One program: `size` rows in order, and their part of the sums over rows.
    lanes, counters, columns = row_tile(COUNTERS)
    acc_type = grad_residual.dtype.element_ty
    grad_bias = tl.zeros((ROWS, 8, COUNTERS), acc_type)
    grad_gain = tl.zeros((ROWS, 8, COUNTERS), acc_type)
    grad_beta = tl.zeros((ROWS, 8, COUNTERS), acc_type)
    begin = tl.program_id(0) * size
    end = tl.minimum(begin + size, rows)
    for start in steps(begin, end, ROWS):
        t = (start + tl.arange(0, ROWS))[:, None, None]
        inside = (t < end) & (columns < HIDDEN)
        at = t.to(tl.int64) * HIDDEN + columns
        dy = tl.load(grad + at, mask=inside, other=0.0)
        if HAS_LOW:
            dy += tl.load(grad_low + at, mask=inside, other=0.0).to(acc_type)
        mean = tl.load(stats + t * 2, mask=t < end, other=0.0)
        rstd = tl.load(stats + t * 2 + 1, mask=t < end, other=0.0)
        normal = (tl.load(z + at, mask=inside, other=0.0).to(acc_type) - mean) * rstd
        normal = tl.where(inside, normal, 0.0)
        grad_beta += dy
        grad_gain += dy * normal
        dy *= tl.load(gain + columns + t * 0, mask=inside, other=0.0)
        dz = rstd * (dy - row_mean(dy, HIDDEN) - normal * row_mean(dy * normal, HIDDEN))
        dz = tl.where(inside, dz, 0.0)
        tl.store(grad_residual + at, dz, mask=inside)
        dz = drop(dz, seed, site, t + leading, counters, lanes, THRESHOLD)
        tl.store(grad_x + at, rounded(dz, grad_x.dtype.element_ty), mask=inside)
        grad_bias += dz
    to = partial + tl.program_id(0).to(tl.int64) * (3 * HIDDEN) + columns
    tl.store(to, tl.sum(grad_bias, 0)[None], mask=columns < HIDDEN)
    tl.store(to + HIDDEN, tl.sum(grad_gain, 0)[None], mask=columns < HIDDEN)
    tl.store(to + 2 * HIDDEN, tl.sum(grad_beta, 0)[None], mask=columns < HIDDEN)


def dropout_add_layer_norm(
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
    y: Tensor,
    y_low: Tensor | None,
    z: Tensor | None,
    stats: Tensor | None,
) -> None:
    """Writes y = LN(dropout(x + bias) + residual) (T, H) and its rounded copy y_low; also, for the
    rows from `leading` on, z, the sum before the norm, and stats, mean and 1 / standard
    deviation."""
    rows, hidden = x.shape
    if x.numel() == 0:
        return
    tile = row_tile_of(hidden, y.dtype)
    with on_device(x):
        _forward_kernel[(triton.cdiv(rows, tile["ROWS"]),)](
            x,
            bias,
            residual,
            gain,
            beta,
            x if seed is None else seed,
            y,
            y if y_low is None else y_low,
            y if z is None else z,
            y if stats is None else stats,
            rows,
            site,
            leading,
            HIDDEN=hidden,
            EPS=eps,
            THRESHOLD=threshold_of(p, seed),
            HAS_LOW=y_low is not None,
            HAS_SAVED=z is not None,
            **tile,
        )


def dropout_add_layer_norm_backward(
    grad: Tensor,
    grad_low: Tensor | None,
    z: Tensor,
    stats: Tensor,
    gain: Tensor,
    p: float,
    seed: Tensor | None,
    site: int,
    leading: int,
    grad_x: Tensor,
    grad_residual: Tensor,
    grad_vectors: Tensor,
) -> None:
    """Writes the gradients of x and residual (T, H), and of bias, gain and beta (3, H)."""
    rows, hidden = grad.shape
    if grad.numel() == 0:
        grad_vectors.zero_()
        return
    tile = row_tile_of(hidden, grad.dtype)
    parts, size = partition(rows, tile["ROWS"], 256)
    partial = grad.new_empty(parts, 3, hidden)
    with on_device(grad):
        _backward_kernel[(parts,)](
            grad,
            grad if grad_low is None else grad_low,
            z,
            stats,
            gain,
            z if seed is None else seed,
            grad_x,
            grad_residual,
            partial,
            rows,
            size,
            site,
            leading,
            HIDDEN=hidden,
            THRESHOLD=threshold_of(p, seed),
            HAS_LOW=grad_low is not None,
            **tile,
        )
    torch.sum(partial, 0, out=grad_vectors)
