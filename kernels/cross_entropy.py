"""Softmax cross-entropy of a classifier with many classes, in Triton."""

# Annotations cannot express the Triton types of a kernel's arguments.
# mypy: allow-untyped-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import acc_dtype, block_of, on_device, rounded, steps


@triton.jit
def _forward_kernel(
    logits, targets, normalizers, losses,
    CLASSES: tl.constexpr, LOWEST: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    # One program: one row.  Each column of the block has its own maximum and sum, which are
    # combined at the end: threads exchange nothing before that.
    row = tl.program_id(0)
    acc_type = losses.dtype.element_ty
    x = logits + row.to(tl.int64) * CLASSES
    # Finite, because -inf minus -inf is NaN.
    largest = tl.full((BLOCK_V,), LOWEST, acc_type)
    total = tl.zeros((BLOCK_V,), acc_type)
    for start in steps(0, CLASSES, BLOCK_V):
        columns = start + tl.arange(0, BLOCK_V)
        value = tl.load(x + columns, mask=columns < CLASSES, other=float("-inf")).to(acc_type)
        # One of exp(value - new) and exp(old - new) is 1, so a single exponential is enough.  NaN
        # stays in the sum.
        above = value > largest
        e = tl.exp(-tl.abs(value - largest))
        total = tl.where(above, total * e + 1.0, total + e)
        largest = tl.where(above, value, largest)
    top = tl.max(largest, 0)
    log_sum = tl.log(tl.sum(total * tl.exp(largest - top), 0))
    target = tl.load(targets + row)
    # A target out of range gives NaN instead of a read outside the row.
    inside = (target >= 0) & (target < CLASSES)
    chosen = tl.load(x + target, mask=inside, other=float("nan")).to(acc_type)
    tl.store(normalizers + row, top + log_sum)
    # In this order large logits cost no precision.
    tl.store(losses + row, (top - chosen) + log_sum)


@triton.jit
def _backward_kernel(
    grad, logits, targets, normalizers, grad_logits, CLASSES: tl.constexpr, BLOCK_V: tl.constexpr
):
    # logits may be grad_logits: a program reads only the elements that it writes.
    row = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    inside = columns < CLASSES
    at = row.to(tl.int64) * CLASSES + columns
    normalizer = tl.load(normalizers + row)
    value = tl.load(logits + at, mask=inside, other=float("-inf")).to(normalizer.dtype)
    p = tl.exp(value - normalizer)
    p = tl.where(columns == tl.load(targets + row), p - 1.0, p)
    dx = tl.load(grad + row) * p
    tl.store(grad_logits + at, rounded(dx, grad_logits.dtype.element_ty), mask=inside)


def cross_entropy(logits: Tensor, targets: Tensor, normalizers: Tensor, losses: Tensor) -> None:
    """Writes normalizers (M,), the logsumexp of each row of logits (M, V), and losses (M,).

    targets is (M,) int64; normalizers and losses are of the type of the sums.
    """
    rows, classes = logits.shape
    if rows == 0:
        return
    with on_device(logits):
        _forward_kernel[(rows,)](
            logits,
            targets,
            normalizers,
            losses,
            CLASSES=classes,
            LOWEST=torch.finfo(acc_dtype(logits.dtype)).min,
            BLOCK_V=block_of(classes, 2048),
        )


def cross_entropy_backward(
    grad: Tensor,
    logits: Tensor | None,
    targets: Tensor,
    normalizers: Tensor,
    grad_logits: Tensor,
) -> None:
    """Writes the gradient of the logits (M, V); grad (M,) is the gradient of the losses.

    Without logits, grad_logits holds them and is overwritten.
    """
    rows, classes = grad_logits.shape
    if rows == 0:
        return
    block_v = block_of(classes, 2048)
    with on_device(grad_logits):
        _backward_kernel[(rows, triton.cdiv(classes, block_v))](
            grad,
            grad_logits if logits is None else logits,
            targets,
            normalizers,
            grad_logits,
            CLASSES=classes,
            BLOCK_V=block_v,
        )
