"""Adam with compensated weights, which have more bits than float32, in Triton."""

# Annotations cannot express the Triton types of a kernel's arguments.
# mypy: allow-untyped-defs

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import in_fours, on_device, rounded

BLOCK = 1024

# Indices in step_scalars (10,) float64, those of `StepScalar` in fastadv/ops/adam.py.
BETA1 = tl.constexpr(0)
ONE_MINUS_BETA1 = tl.constexpr(1)
BETA2 = tl.constexpr(2)
ONE_MINUS_BETA2 = tl.constexpr(3)
CORRECTED_LR = tl.constexpr(4)
ROOT_CORRECTION = tl.constexpr(5)
EPS = tl.constexpr(6)
DECAY = tl.constexpr(7)
GRAD_SCALE = tl.constexpr(8)
IS_STEP = tl.constexpr(9)
STEP_SCALARS = tl.constexpr(10)


@triton.jit
def move_weight(weight, compensation, at, moved, inside, HAS_COMPENSATION: tl.constexpr):
    """weight + compensation += moved; the remainder of the sum is exact (Knuth's two-sum)."""
    w = tl.load(weight + at, mask=inside, other=0.0)
    if HAS_COMPENSATION:
        more = tl.load(compensation + at, mask=inside, other=0.0).to(w.dtype) + moved
        total = w + more
        part = total - w
        rest = (w - (total - part)) + (more - part)
        tl.store(compensation + at, rounded(rest, tl.bfloat16), mask=inside)
    else:
        total = w + moved
    tl.store(weight + at, total, mask=inside)
    return total


@triton.jit
def adam_update(
    weight,
    compensation,
    exp_avg,
    exp_avg_sq,
    at,
    grad,
    inside,
    step_scalars,
    HAS_COMPENSATION: tl.constexpr,
):
    """One step on the elements `at`, whose gradient is given, with the `step_scalars` of
    `make_step_scalars`. Returns the new weights."""
    acc_type = weight.dtype.element_ty
    g = grad * tl.load(step_scalars + GRAD_SCALE).to(acc_type)
    m = tl.load(step_scalars + BETA1).to(acc_type) * tl.load(exp_avg + at, mask=inside, other=0.0)
    m += tl.load(step_scalars + ONE_MINUS_BETA1).to(acc_type) * g
    beta2 = tl.load(step_scalars + BETA2).to(acc_type)
    v = beta2 * tl.load(exp_avg_sq + at, mask=inside, other=0.0)
    v += tl.load(step_scalars + ONE_MINUS_BETA2).to(acc_type) * g * g
    tl.store(exp_avg + at, m, mask=inside)
    tl.store(exp_avg_sq + at, v, mask=inside)
    root = tl.sqrt(v) * tl.load(step_scalars + ROOT_CORRECTION).to(acc_type)
    root += tl.load(step_scalars + EPS).to(acc_type)
    moved = -tl.load(step_scalars + CORRECTED_LR).to(acc_type) * m / root
    decay = tl.load(step_scalars + DECAY).to(acc_type)
    moved -= decay * tl.load(weight + at, mask=inside, other=0.0)
    return move_weight(weight, compensation, at, moved, inside, HAS_COMPENSATION)


@triton.jit(do_not_specialize=("count",))
def _adam_kernel(
    weight, compensation, grad, exp_avg, exp_avg_sq, low, step_scalars, count,
    HAS_COMPENSATION: tl.constexpr, HAS_LOW: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    if tl.load(step_scalars + IS_STEP) != 0:
        at = tl.program_id(0).to(tl.int64) * SIZE + in_fours(SIZE)
        inside = at < count
        g = tl.load(grad + at, mask=inside, other=0.0)
        now = adam_update(
            weight, compensation, exp_avg, exp_avg_sq, at, g, inside, step_scalars, HAS_COMPENSATION
        )
        if HAS_LOW:
            tl.store(low + at, rounded(now, low.dtype.element_ty), mask=inside)


@triton.jit
def _begin_kernel(
    norm, rates, counters, flags, scaler, step_scalars, log, base, clocks, capacity,
    SKIPS: tl.constexpr, HAS_SCALER: tl.constexpr, HAS_LOG: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # One program: all clocks of an optimiser.
    clock = tl.arange(0, BLOCK)
    inside = clock < clocks
    size = tl.load(norm).to(tl.float64)
    # As integers: the interpreter does not combine a scalar truth value with a block of them.
    finite = (size < float("inf")).to(tl.int64)
    paused = tl.load(flags + 2)
    go = finite * (1 - paused)
    if not SKIPS:
        go = go * (1 - tl.load(flags + 1))
    bad = (1 - finite) * (1 - paused)
    scale = tl.load(scaler) if HAS_SCALER else 1.0
    t = tl.load(counters + clock, mask=inside, other=0) + go
    # exp(t log(beta)); before the first step there is nothing to correct.
    at_least_one = tl.maximum(t, 1).to(tl.float64)
    corrected1 = 1.0 - tl.exp(at_least_one * tl.load(rates + 6))
    corrected2 = 1.0 - tl.exp(at_least_one * tl.load(rates + 7))
    lr = tl.load(rates + 3)
    rate, root = lr / corrected1, 1.0 / tl.sqrt(corrected2)
    clip = tl.minimum(tl.load(rates + 5) / (size / scale + 1e-6), 1.0)
    to, none = step_scalars + clock * STEP_SCALARS, clock.to(tl.float64) * 0
    tl.store(to + BETA1, none + tl.load(rates), mask=inside)
    tl.store(to + ONE_MINUS_BETA1, none + (1.0 - tl.load(rates)), mask=inside)
    tl.store(to + BETA2, none + tl.load(rates + 1), mask=inside)
    tl.store(to + ONE_MINUS_BETA2, none + (1.0 - tl.load(rates + 1)), mask=inside)
    tl.store(to + CORRECTED_LR, rate, mask=inside)
    tl.store(to + ROOT_CORRECTION, root, mask=inside)
    tl.store(to + EPS, none + tl.load(rates + 2), mask=inside)
    tl.store(to + DECAY, none + lr * tl.load(rates + 4), mask=inside)
    tl.store(to + GRAD_SCALE, none + clip / scale, mask=inside)
    tl.store(to + IS_STEP, none + go.to(tl.float64), mask=inside)
    if HAS_LOG:
        # Clock 0 is the table's.
        entry = t - tl.load(base) - 1
        room = (clock == 0) & (entry >= 0) & (entry < capacity * go)
        tl.store(log + entry, rate, mask=room)
        tl.store(log + capacity + entry, root, mask=room)
    if HAS_SCALER:
        good = (tl.load(scaler + 1) + 1.0) * finite
        full = good >= tl.load(scaler + 2)
        grown = tl.where(full, scale * 2.0, scale)
    skipped, halted = tl.load(flags), tl.load(flags + 1)
    # The values read above are overwritten below, by threads that may be ahead of others.
    tl.debug_barrier()
    tl.store(counters + clock, t, mask=inside)
    tl.store(flags, skipped + bad)
    tl.store(flags + 1, halted | bad)
    if HAS_SCALER:  # noqa: SIM102 - a compile-time constant, and a number on the device
        if paused == 0:
            tl.store(scaler, tl.where(finite != 0, grown, scale * 0.5))
            tl.store(scaler + 1, tl.where(full, 0.0, good))


def make_step_scalars(
    like: Tensor,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    grad_scale: float,
) -> Tensor:
    """(10,) float64 on the device of `like`: beta1, 1 - beta1, beta2, 1 - beta2,
    lr / (1 - beta1^t), 1 / sqrt(1 - beta2^t), eps, lr weight_decay, grad_scale, and 1, which stands
    for a step that is taken; 0 would skip it.

    A tensor, because Triton rounds plain numbers to float32.
    """
    step_scalars = [
        beta1,
        1 - beta1,
        beta2,
        1 - beta2,
        lr / (1 - beta1**step),
        1 / math.sqrt(1 - beta2**step),
        eps,
        lr * weight_decay,
        grad_scale,
        1.0,
    ]
    return torch.tensor(step_scalars, dtype=torch.float64).to(like.device, non_blocking=True)


def gradient_norm(grads: Sequence[Tensor]) -> Tensor:
    """The norm of all tensors together, by PyTorch, which also takes one pass over memory."""
    return torch.nn.utils.get_total_norm(grads)


def adam(
    weights: Sequence[Tensor],
    compensations: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    forward_layouts: Sequence[Tensor],
    backward_layouts: Sequence[Tensor],
    steps: Sequence[int],
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    grad_scale: float,
) -> None:
    """One step on every tensor, in place. Layouts are 16-bit copies, the same for both directions,
    and are rewritten."""
    known: dict[int, Tensor] = {}
    for i, (weight, step) in enumerate(zip(weights, steps, strict=True)):
        if step not in known:
            known[step] = make_step_scalars(
                weight, step, lr, beta1, beta2, eps, weight_decay, grad_scale
            )
        adam_apply(
            weight,
            compensations[i] if compensations else None,
            grads[i],
            exp_avgs[i],
            exp_avg_sqs[i],
            forward_layouts[i] if forward_layouts else None,
            known[step],
        )


def adam_apply(
    weight: Tensor,
    compensation: Tensor | None,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    low: Tensor | None,
    step_scalars: Tensor,
) -> None:
    """One step on a tensor; step_scalars (10,) are from `make_step_scalars` or `adam_begin`."""
    count = weight.numel()
    if count == 0:
        return
    with on_device(weight):
        _adam_kernel[(triton.cdiv(count, BLOCK),)](
            weight,
            weight if compensation is None else compensation,
            grad,
            exp_avg,
            exp_avg_sq,
            weight if low is None else low,
            step_scalars,
            count,
            HAS_COMPENSATION=compensation is not None,
            HAS_LOW=low is not None,
            SIZE=BLOCK,
        )


def adam_begin(
    norm: Tensor,
    rates: Tensor,
    counters: Tensor,
    flags: Tensor,
    scaler: Tensor | None,
    step_scalars: Tensor,
    log: Tensor | None,
    base: Tensor | None,
    skips: bool,
) -> None:
    """Decides whether to take the step, and writes its scalars; see fastadv/ops/adam.py."""
    clocks = counters.shape[0]
    with on_device(norm):
        _begin_kernel[(1,)](
            norm,
            rates,
            counters,
            flags,
            rates if scaler is None else scaler,
            step_scalars,
            rates if log is None else log,
            counters if base is None else base,
            clocks,
            0 if log is None else log.shape[1],
            SKIPS=skips,
            HAS_SCALER=scaler is not None,
            HAS_LOG=log is not None,
            BLOCK=triton.next_power_of_2(clocks),
        )
