"""Adam with weights of more bits than float32, in Triton."""

# A kernel's arguments have types of Triton's, which annotations cannot say.
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


@triton.jit
def move_weight(weight, residual, at, moved, inside, HAS_RESIDUAL: tl.constexpr):
    """weight + residual += moved; the remainder of the sum is exact (Knuth's two-sum)."""
    w = tl.load(weight + at, mask=inside, other=0.0)
    if HAS_RESIDUAL:
        more = tl.load(residual + at, mask=inside, other=0.0).to(w.dtype) + moved
        total = w + more
        part = total - w
        rest = (w - (total - part)) + (more - part)
        tl.store(residual + at, rounded(rest, tl.bfloat16), mask=inside)
    else:
        total = w + moved
    tl.store(weight + at, total, mask=inside)
    return total


@triton.jit
def adam_update(
    weight, residual, exp_avg, exp_avg_sq, at, grad, inside, numbers, HAS_RESIDUAL: tl.constexpr
):
    """One step on the elements `at`, whose gradient is given; `numbers` as of `step_numbers`.
    Gives back what the weights become."""
    acc_type = weight.dtype.element_ty
    g = grad * tl.load(numbers + 8).to(acc_type)
    m = tl.load(numbers).to(acc_type) * tl.load(exp_avg + at, mask=inside, other=0.0)
    m += tl.load(numbers + 1).to(acc_type) * g
    v = tl.load(numbers + 2).to(acc_type) * tl.load(exp_avg_sq + at, mask=inside, other=0.0)
    v += tl.load(numbers + 3).to(acc_type) * g * g
    tl.store(exp_avg + at, m, mask=inside)
    tl.store(exp_avg_sq + at, v, mask=inside)
    root = tl.sqrt(v) * tl.load(numbers + 5).to(acc_type) + tl.load(numbers + 6).to(acc_type)
    moved = -tl.load(numbers + 4).to(acc_type) * m / root
    decay = tl.load(numbers + 7).to(acc_type)
    moved -= decay * tl.load(weight + at, mask=inside, other=0.0)
    return move_weight(weight, residual, at, moved, inside, HAS_RESIDUAL)


@triton.jit(do_not_specialize=("count",))
def _adam_kernel(
    weight, residual, grad, exp_avg, exp_avg_sq, low, numbers, count,
    HAS_RESIDUAL: tl.constexpr, HAS_LOW: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    if tl.load(numbers + 9) != 0:
        at = tl.program_id(0).to(tl.int64) * SIZE + in_fours(SIZE)
        inside = at < count
        g = tl.load(grad + at, mask=inside, other=0.0)
        now = adam_update(
            weight, residual, exp_avg, exp_avg_sq, at, g, inside, numbers, HAS_RESIDUAL
        )
        if HAS_LOW:
            tl.store(low + at, rounded(now, low.dtype.element_ty), mask=inside)


@triton.jit
def _begin_kernel(
    norm, rates, counters, flags, scaler, numbers, log, base, clocks, capacity,
    SKIPS: tl.constexpr, HAS_SCALER: tl.constexpr, HAS_LOG: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # One program: every clock of an optimiser.
    clock = tl.arange(0, BLOCK)
    inside = clock < clocks
    size = tl.load(norm).to(tl.float64)
    # As numbers: the interpreter does not combine single truth values with blocks of them.
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
    to, none = numbers + clock * 10, clock.to(tl.float64) * 0
    tl.store(to, none + tl.load(rates), mask=inside)
    tl.store(to + 1, none + (1.0 - tl.load(rates)), mask=inside)
    tl.store(to + 2, none + tl.load(rates + 1), mask=inside)
    tl.store(to + 3, none + (1.0 - tl.load(rates + 1)), mask=inside)
    tl.store(to + 4, rate, mask=inside)
    tl.store(to + 5, root, mask=inside)
    tl.store(to + 6, none + tl.load(rates + 2), mask=inside)
    tl.store(to + 7, none + lr * tl.load(rates + 4), mask=inside)
    tl.store(to + 8, none + clip / scale, mask=inside)
    tl.store(to + 9, none + go.to(tl.float64), mask=inside)
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
    # What is read above is written to below, by threads that may be ahead of others.
    tl.debug_barrier()
    tl.store(counters + clock, t, mask=inside)
    tl.store(flags, skipped + bad)
    tl.store(flags + 1, halted | bad)
    if HAS_SCALER:  # noqa: SIM102 - a constant of the compiler's, and a number of the device's
        if paused == 0:
            tl.store(scaler, tl.where(finite != 0, grown, scale * 0.5))
            tl.store(scaler + 1, tl.where(full, 0.0, good))


def step_numbers(
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
    lr / (1 - beta1^t), 1 / sqrt(1 - beta2^t), eps, lr weight_decay, grad_scale, and 1: 0 is for a
    step that is left out.

    A tensor, since Triton rounds numbers that it is given to float32.
    """
    numbers = [
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
    return torch.tensor(numbers, dtype=torch.float64).to(like.device, non_blocking=True)


def gradient_norm(grads: Sequence[Tensor]) -> Tensor:
    """The norm of all tensors together; PyTorch's own, which is one pass over memory too."""
    return torch.nn.utils.get_total_norm(grads)


def adam(
    weights: Sequence[Tensor],
    residuals: Sequence[Tensor],
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
    and are written anew."""
    known: dict[int, Tensor] = {}
    for i, (weight, step) in enumerate(zip(weights, steps, strict=True)):
        if step not in known:
            known[step] = step_numbers(
                weight, step, lr, beta1, beta2, eps, weight_decay, grad_scale
            )
        adam_apply(
            weight,
            residuals[i] if residuals else None,
            grads[i],
            exp_avgs[i],
            exp_avg_sqs[i],
            forward_layouts[i] if forward_layouts else None,
            known[step],
        )


def adam_apply(
    weight: Tensor,
    residual: Tensor | None,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    low: Tensor | None,
    numbers: Tensor,
) -> None:
    """One step on a tensor with numbers (10,) as of `step_numbers` or `adam_begin`."""
    count = weight.numel()
    if count == 0:
        return
    with on_device(weight):
        _adam_kernel[(triton.cdiv(count, BLOCK),)](
            weight,
            weight if residual is None else residual,
            grad,
            exp_avg,
            exp_avg_sq,
            weight if low is None else low,
            numbers,
            count,
            HAS_RESIDUAL=residual is not None,
            HAS_LOW=low is not None,
            SIZE=BLOCK,
        )


def adam_begin(
    norm: Tensor,
    rates: Tensor,
    counters: Tensor,
    flags: Tensor,
    scaler: Tensor | None,
    numbers: Tensor,
    log: Tensor | None,
    base: Tensor | None,
    skips: bool,
) -> None:
    """Whether there is a step, and its numbers; fastadv/ops/adam.py says of what."""
    clocks = counters.shape[0]
    with on_device(norm):
        _begin_kernel[(1,)](
            norm,
            rates,
            counters,
            flags,
            rates if scaler is None else scaler,
            numbers,
            rates if log is None else log,
            counters if base is None else base,
            clocks,
            0 if log is None else log.shape[1],
            SKIPS=skips,
            HAS_SCALER=scaler is not None,
            HAS_LOG=log is not None,
            BLOCK=triton.next_power_of_2(clocks),
        )
