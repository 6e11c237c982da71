"""Adam on rows of a table, and the steps that rows missed, in Triton."""

# A kernel's arguments have types of Triton's, which annotations cannot say.
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .adam import adam_update, move_weight, step_numbers
from .launch import block_of, on_device, steps


@triton.jit
def _update_kernel(
    weight, residual, exp_avg, exp_avg_sq, rows, grads, numbers,
    WIDTH: tl.constexpr, HAS_RESIDUAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < WIDTH
    at = tl.load(rows + i) * WIDTH + columns
    g = tl.load(grads + i * WIDTH + columns, mask=inside, other=0.0)
    adam_update(weight, residual, exp_avg, exp_avg_sq, at, g, inside, numbers, HAS_RESIDUAL)


@triton.jit
def _catch_up_kernel(
    weight, residual, exp_avg, exp_avg_sq, rows, rules, offsets, rule_weights, rule_nodes, decays,
    WIDTH: tl.constexpr, HAS_RESIDUAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    acc_type = weight.dtype.element_ty
    i = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < WIDTH
    at = tl.load(rows + i) * WIDTH + columns
    rule = tl.load(rules + i)
    m = tl.load(exp_avg + at, mask=inside, other=0.0)
    v = tl.load(exp_avg_sq + at, mask=inside, other=0.0)
    root = tl.sqrt(v)
    total = tl.zeros((BLOCK,), acc_type)
    for term in steps(tl.load(offsets + rule), tl.load(offsets + rule + 1), 1):
        top = tl.load(rule_weights + term).to(acc_type)
        total += top / (root + tl.load(rule_nodes + term).to(acc_type))
    tl.store(exp_avg + at, m * tl.load(decays + 2 * rule).to(acc_type), mask=inside)
    tl.store(exp_avg_sq + at, v * tl.load(decays + 2 * rule + 1).to(acc_type), mask=inside)
    move_weight(weight, residual, at, -m * total, inside, HAS_RESIDUAL)


def embedding_adam(
    weight: Tensor,
    residual: Tensor | None,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    rows: Tensor,
    grads: Tensor,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    grad_scale: float,
) -> None:
    """One step on rows (U,) of a table (V, H) with gradients (U, H)."""
    count, width = grads.shape
    if grads.numel() == 0:
        return
    block = block_of(width, 1024)
    with on_device(weight):
        _update_kernel[(count, triton.cdiv(width, block))](
            weight,
            weight if residual is None else residual,
            exp_avg,
            exp_avg_sq,
            rows,
            grads,
            step_numbers(weight, step, lr, beta1, beta2, eps, 0.0, grad_scale),
            WIDTH=width,
            HAS_RESIDUAL=residual is not None,
            BLOCK=block,
        )


def embedding_adam_catch_up(
    weight: Tensor,
    residual: Tensor | None,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    rows: Tensor,
    rules: Tensor,
    offsets: Tensor,
    rule_weights: Tensor,
    rule_nodes: Tensor,
    decays: Tensor,
) -> None:
    """The missed steps of rows (U,), by rules of `deferred_rules`."""
    count, width = rows.shape[0], weight.shape[1]
    if count * width == 0:
        return
    block = block_of(width, 1024)
    with on_device(weight):
        _catch_up_kernel[(count, triton.cdiv(width, block))](
            weight,
            weight if residual is None else residual,
            exp_avg,
            exp_avg_sq,
            rows,
            rules,
            offsets,
            rule_weights,
            rule_nodes,
            decays,
            WIDTH=width,
            HAS_RESIDUAL=residual is not None,
            BLOCK=block,
        )
