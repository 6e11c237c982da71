"""Bias and GELU in one, in Triton: the erf form, BERT's."""

# Annotations cannot express the Triton types of a kernel's arguments.
# mypy: allow-untyped-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import acc_dtype, block_of, on_device, partition, rounded, steps


@triton.jit
def _share(u):
    """Probability that a standard normal number is below u."""
    return 0.5 + 0.5 * tl.erf(u * 0.7071067811865476)


@triton.jit(do_not_specialize=("rows",))
def _forward_kernel(
    x, bias, y, rows, WIDTH: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_I: tl.constexpr
):
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    columns = tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)
    inside = (t < rows)[:, None] & (columns < WIDTH)[None, :]
    at = t[:, None].to(tl.int64) * WIDTH + columns[None, :]
    b = tl.load(bias + columns, mask=columns < WIDTH, other=0.0)
    u = tl.load(x + at, mask=inside, other=0.0).to(b.dtype) + b[None, :]
    tl.store(y + at, rounded(u * _share(u), y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=("rows", "size"))
def _backward_kernel(
    grad, x, bias, grad_x, y, partial, rows, size,
    WIDTH: tl.constexpr, HAS_Y: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    # One program: BLOCK_I columns of `size` rows, in order, and their part of the bias's gradient.
    columns = tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)
    b = tl.load(bias + columns, mask=columns < WIDTH, other=0.0)
    total = tl.zeros((BLOCK_T, BLOCK_I), b.dtype)
    begin = tl.program_id(0) * size
    end = tl.minimum(begin + size, rows)
    for start in steps(begin, end, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T)
        inside = (t < end)[:, None] & (columns < WIDTH)[None, :]
        at = t[:, None].to(tl.int64) * WIDTH + columns[None, :]
        u = tl.load(x + at, mask=inside, other=0.0).to(b.dtype) + b[None, :]
        share = _share(u)
        if HAS_Y:
            tl.store(y + at, rounded(u * share, y.dtype.element_ty), mask=inside)
        slope = share + u * (0.3989422804014327 * tl.exp(-0.5 * u * u))
        dx = slope * tl.load(grad + at, mask=inside, other=0.0).to(b.dtype)
        tl.store(grad_x + at, rounded(dx, grad_x.dtype.element_ty), mask=inside)
        total += dx
    to = partial + tl.program_id(0).to(tl.int64) * WIDTH + columns
    tl.store(to, tl.sum(total, 0), mask=columns < WIDTH)


def bias_gelu(x: Tensor, bias: Tensor, y: Tensor) -> None:
    """Writes y (T, I) = gelu(x + bias)."""
    rows, width = x.shape
    if x.numel() == 0:
        return
    block_t, block_i = 4, block_of(width, 1024)
    with on_device(x):
        _forward_kernel[(triton.cdiv(rows, block_t), triton.cdiv(width, block_i))](
            x, bias, y, rows, WIDTH=width, BLOCK_T=block_t, BLOCK_I=block_i
        )


def bias_gelu_backward(
    grad: Tensor, x: Tensor, bias: Tensor, grad_x: Tensor, y: Tensor | None, grad_bias: Tensor
) -> None:
    """Writes the gradients of x (T, I) and bias (I,), and y, recomputed, if given."""
    rows, width = x.shape
    if x.numel() == 0:
        grad_bias.zero_()
        return
    block_t, block_i = 8, block_of(width, 512)
    parts, size = partition(rows, block_t, 64)
    partial = bias.new_empty(parts, width, dtype=acc_dtype(x.dtype))
    with on_device(x):
        _backward_kernel[(parts, triton.cdiv(width, block_i))](
            grad,
            x,
            bias,
            grad_x,
            x if y is None else y,
            partial,
            rows,
            size,
            WIDTH=width,
            HAS_Y=y is not None,
            BLOCK_T=block_t,
            BLOCK_I=block_i,
        )
    torch.sum(partial, 0, out=grad_bias)
