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

from .launch import on_device, rounded

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


@triton.jit
def adam_update(
    weight, residual, exp_avg, exp_avg_sq, at, grad, inside, numbers, HAS_RESIDUAL: tl.constexpr
):
    """One step on the elements `at`, whose gradient is given; `numbers` as of `step_numbers`."""
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
    move_weight(weight, residual, at, moved, inside, HAS_RESIDUAL)


@triton.jit(do_not_specialize=("count",))
def _adam_kernel(
    weight, residual, grad, exp_avg, exp_avg_sq, numbers, count,
    HAS_RESIDUAL: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = at < count
    g = tl.load(grad + at, mask=inside, other=0.0)
    adam_update(
        weight, residual, exp_avg, exp_avg_sq, at, g, inside, numbers, HAS_RESIDUAL
    )  # fmt: skip


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
    """(9,) float64 on the device of `like`: beta1, 1 - beta1, beta2, 1 - beta2,
    lr / (1 - beta1^t), 1 / sqrt(1 - beta2^t), eps, lr weight_decay, grad_scale.

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
    """One step on every tensor, in place. There are no layouts on a GPU: those lists are empty."""
    known: dict[int, Tensor] = {}
    for i, (weight, step) in enumerate(zip(weights, steps, strict=True)):
        count = weight.numel()
        if count == 0:
            continue
        if step not in known:
            known[step] = step_numbers(
                weight, step, lr, beta1, beta2, eps, weight_decay, grad_scale
            )
        with on_device(weight):
            _adam_kernel[(triton.cdiv(count, BLOCK),)](
                weight,
                residuals[i] if residuals else weight,
                grads[i],
                exp_avgs[i],
                exp_avg_sqs[i],
                known[step],
                count,
                HAS_RESIDUAL=bool(residuals),
                SIZE=BLOCK,
            )
