"""Adam on rows of a table, and the steps that rows missed, in Triton.

The missed steps of a row are added up term by term: a GPU has the arithmetic for it, and a
quadrature would save no memory traffic (docs/adr/0009).
"""

# Annotations cannot express the Triton types of a kernel's arguments.
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .adam import IS_STEP, adam_update, make_step_scalars, move_weight
from .launch import block_of, in_fours, on_device, steps


@triton.jit
def _update_kernel(
    weight, compensation, exp_avg, exp_avg_sq, rows, grads, step_scalars, row_steps, counter,
    WIDTH: tl.constexpr, HAS_COMPENSATION: tl.constexpr, COUNTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # One program: a row.
    i = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + i)
    if (row >= 0) & (tl.load(step_scalars + IS_STEP) != 0):
        columns = in_fours(BLOCK)
        inside = columns < WIDTH
        at = row * WIDTH + columns
        g = tl.load(grads + i * WIDTH + columns, mask=inside, other=0.0)
        adam_update(
            weight, compensation, exp_avg, exp_avg_sq, at, g, inside, step_scalars, HAS_COMPENSATION
        )
        if COUNTS:
            tl.store(row_steps + row, tl.load(counter).to(tl.int32))


@triton.jit
def _catch_up_kernel(
    weight, compensation, exp_avg, exp_avg_sq, rows, starts, counter, base, log, powers, rates,
    capacity, terms,
    WIDTH: tl.constexpr, HAS_COMPENSATION: tl.constexpr, COUNTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # One program: a row, so that no other program reads or writes its start.
    acc_type = weight.dtype.element_ty
    i = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + i)
    if row >= 0:
        place = row if COUNTS else i
        start = tl.load(starts + place).to(tl.int64)
        step = tl.load(counter)
        if (start >= 0) & (start < step):
            columns = in_fours(BLOCK)
            inside = columns < WIDTH
            at = row * WIDTH + columns
            m = tl.load(exp_avg + at, mask=inside, other=0.0)
            v = tl.load(exp_avg_sq + at, mask=inside, other=0.0)
            root = tl.sqrt(v)
            eps = tl.load(rates + 2).to(acc_type)
            total = tl.zeros((BLOCK // 4, 4), acc_type)
            first = log + start - tl.load(base)
            for term in steps(0, tl.minimum(step - start, terms), 1):
                top = tl.load(first + term) * tl.load(powers + term)
                slope = tl.load(first + capacity + term) * tl.load(powers + terms + term)
                total += top.to(acc_type) / (root * slope.to(acc_type) + eps)
            missed = (step - start).to(tl.float64)
            decay1 = tl.exp(missed * tl.load(rates + 6)).to(acc_type)
            decay2 = tl.exp(missed * tl.load(rates + 7)).to(acc_type)
            tl.store(exp_avg + at, m * decay1, mask=inside)
            tl.store(exp_avg_sq + at, v * decay2, mask=inside)
            move_weight(weight, compensation, at, -m * total, inside, HAS_COMPENSATION)
            if COUNTS:
                # All threads read the start, and one may get here before another.
                tl.debug_barrier()
                tl.store(starts + place, step.to(tl.int32))


def embedding_adam(
    weight: Tensor,
    compensation: Tensor | None,
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
    step_scalars = make_step_scalars(weight, step, lr, beta1, beta2, eps, 0.0, grad_scale)
    embedding_adam_apply(
        weight, compensation, exp_avg, exp_avg_sq, rows, grads, step_scalars, None, step_scalars
    )


def embedding_adam_apply(
    weight: Tensor,
    compensation: Tensor | None,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    rows: Tensor,
    grads: Tensor,
    step_scalars: Tensor,
    row_steps: Tensor | None,
    counter: Tensor,
) -> None:
    """One step with the step_scalars (10,) of `adam_begin`; row -1 stands for none. row_steps (V,)
    int32, if given, is set to counter (1,) for these rows."""
    count, width = grads.shape
    if grads.numel() == 0:
        return
    with on_device(weight):
        _update_kernel[(count,)](
            weight,
            weight if compensation is None else compensation,
            exp_avg,
            exp_avg_sq,
            rows,
            grads,
            step_scalars,
            rows if row_steps is None else row_steps,
            counter,
            WIDTH=width,
            HAS_COMPENSATION=compensation is not None,
            COUNTS=row_steps is not None,
            BLOCK=block_of(width, 1 << 20),
        )


def embedding_adam_catch_up(
    weight: Tensor,
    compensation: Tensor | None,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    rows: Tensor,
    starts: Tensor,
    counter: Tensor,
    base: Tensor,
    log: Tensor,
    powers: Tensor,
    rates: Tensor,
    by_row: bool,
) -> None:
    """Takes the steps up to counter (1,) int64 that rows (U,) missed; row -1 stands for none.

    starts is (U,), or by row (V,) int32: there a negative number marks a row that never had a
    gradient, and the others are set to the counter. log (2, C) float64 holds lr / (1 - beta1^t) and
    1 / sqrt(1 - beta2^t) from step base + 1 on, base (1,) int64; powers (2, K) float64 hold beta1^i
    and beta2^(i / 2), for i from 1 to the last that counts; rates are the same as in `adam_begin`.
    """
    count, width = rows.shape[0], weight.shape[1]
    if count * width == 0:
        return
    with on_device(weight):
        _catch_up_kernel[(count,)](
            weight,
            weight if compensation is None else compensation,
            exp_avg,
            exp_avg_sq,
            rows,
            starts,
            counter,
            base,
            log,
            powers,
            rates,
            log.shape[1],
            powers.shape[1],
            WIDTH=width,
            HAS_COMPENSATION=compensation is not None,
            COUNTS=by_row,
            BLOCK=block_of(width, 1 << 20),
        )
