"""Adam over many tensors, with compensated weights, which have more bits than float32. The host
decides its steps (`adam`), or the device does (`adam_begin`, `adam_apply`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from fastadv import backends
from fastadv.ops.dtypes import check_contiguous, check_dtype, check_like


def adam_ref(
    weights: Sequence[Tensor],
    compensations: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[int],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float = 0.0,
    grad_scale: float = 1.0,
) -> None:
    """What `adam` does, in plain PyTorch."""
    for i, (weight, grad) in enumerate(zip(weights, grads, strict=True)):
        m, v, step = exp_avgs[i], exp_avg_sqs[i], steps[i]
        g = grad * grad_scale
        m.mul_(beta1).add_(g, alpha=1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        root = v.sqrt().mul_(1 / math.sqrt(1 - beta2**step)).add_(eps)
        moved = (m * (-lr / (1 - beta1**step))).div_(root).sub_(weight, alpha=lr * weight_decay)
        if weight.dtype == torch.float64:
            weight.add_(moved)
        else:
            move_ref(weight, compensations[i], moved)


def move_ref(weight: Tensor, compensation: Tensor, moved: Tensor) -> None:
    """weight + compensation += moved: the float32 sum, and exactly what its rounding left (Knuth,
    TAOCP volume 2, section 4.2.2, theorem B), of which the compensation keeps bfloat16's eight
    bits.
    """
    more = compensation.to(weight.dtype) + moved
    total = weight + more
    part = total - weight
    compensation.copy_((weight - (total - part)) + (more - part))
    weight.copy_(total)


def adam(
    weights: Sequence[Tensor],
    compensations: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[int],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float = 0.0,
    grad_scale: float = 1.0,
    layouts: Sequence[tuple[Tensor, Tensor]] = (),
    backend: str | None = None,
) -> None:
    """One step of Adam (Kingma & Ba 2015, algorithm 1) on every tensor, in place.

    With g = grad * grad_scale: m = beta1 m + (1 - beta1) g, v = beta2 v + (1 - beta2) g^2, and the
    weight moves by -lr m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps) - lr weight_decay weight
    (decoupled decay: Loshchilov & Hutter 2019).

    weights, grads, exp_avgs (m) and exp_avg_sqs (v) are float32 or float64 tensors, all of one type
    and device, each weight's four of one shape. A float32 weight w has a compensation r, bfloat16:
    the weight is w + r, 33 bits, and w is its rounded value; the step adds to both. float64 has
    none: `compensations` is empty then. `steps` are t of each tensor, from 1.

    Args:
        layouts: For every weight, all of them matrices, what `fastadv::linear_pack` made of it in
            bfloat16; rewritten from the new weight. Only for backend "native", on a CPU.

    Raises:
        ValueError: A shape, dtype, device or number does not fit.
        RuntimeError: The backend asked for cannot run.
    """
    if not weights:
        return
    check_rates(lr, beta1, beta2, eps)
    _check(weights, compensations, grads, exp_avgs, exp_avg_sqs, steps)
    chosen = backends.resolve("adam", weights[0].device, backend)
    if layouts and chosen != "native":
        raise ValueError(f"found layouts with backend {chosen}, expected native")
    if chosen == "torch":
        with torch.no_grad():
            adam_ref(
                weights, compensations, grads, exp_avgs, exp_avg_sqs, steps, lr=lr, beta1=beta1,
                beta2=beta2, eps=eps, weight_decay=weight_decay, grad_scale=grad_scale,
            )  # fmt: skip
        return
    backends.kernels("adam", chosen).adam(
        [w.detach() for w in weights], list(compensations), [g.contiguous() for g in grads],
        list(exp_avgs), list(exp_avg_sqs), [a for a, _ in layouts], [b for _, b in layouts],
        list(steps), lr, beta1, beta2, eps, weight_decay, grad_scale,
    )  # fmt: skip


def gradient_norm_ref(grads: Sequence[Tensor]) -> Tensor:
    """What `gradient_norm` computes, in plain PyTorch."""
    return torch.stack([g.square().sum() for g in grads]).sum().sqrt()


def gradient_norm(grads: Sequence[Tensor], *, backend: str | None = None) -> Tensor:
    """The norm of all gradients together, a scalar; NaN or infinite where one of them is, or where
    the squares are too large for their type.

    grads are float32 or float64, of one type and device.

    Returns:
        () in the gradients' dtype or float64, on their device.

    Raises:
        ValueError: There is no gradient, or they differ in type or device.
        RuntimeError: The backend asked for cannot run.
    """
    if not grads:
        raise ValueError("found no gradient, expected at least one")
    for grad in grads:
        check_dtype(grad, grads[0].dtype, "grads")
        check_like(grad, tuple(grad.shape), grads[0], "grads")
    chosen = backends.resolve("adam", grads[0].device, backend)
    if chosen == "torch":
        return gradient_norm_ref(grads)
    norm: Tensor = backends.kernels("adam", chosen).gradient_norm([g.contiguous() for g in grads])
    return norm


def check_rates(lr: float, beta1: float, beta2: float, eps: float) -> None:
    """Refuses numbers that cannot be rates."""
    for name, beta in (("beta1", beta1), ("beta2", beta2)):
        if not 0 <= beta < 1:
            raise ValueError(f"{name} is {beta}, expected a number in [0, 1)")
    if not (lr >= 0 and math.isfinite(lr)):
        raise ValueError(f"lr is {lr}, expected a finite number of at least 0")
    if not eps > 0:
        raise ValueError(f"eps is {eps}, expected a number above 0")


def _check(
    weights: Sequence[Tensor],
    compensations: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[int],
) -> None:
    dtype = weights[0].dtype
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"weights has dtype {dtype}, expected float32 or float64")
    lists: dict[str, Sequence[Any]] = {
        "grads": grads,
        "exp_avgs": exp_avgs,
        "exp_avg_sqs": exp_avg_sqs,
        "steps": steps,
    }
    if dtype == torch.float32:
        lists["compensations"] = compensations
    for name, found in lists.items():
        if len(found) != len(weights):
            raise ValueError(f"found {len(found)} in {name}, expected {len(weights)}, one a weight")
    for i, weight in enumerate(weights):
        shape = tuple(weight.shape)
        for name, tensor in (("grad", grads[i]), ("exp_avg", exp_avgs[i]),
                             ("exp_avg_sq", exp_avg_sqs[i])):  # fmt: skip
            check_dtype(tensor, dtype, name)
            check_like(tensor, shape, weight, name)
        check_dtype(weight, dtype, "weight")
        for name, tensor in (("weight", weight), ("exp_avg", exp_avgs[i]),
                             ("exp_avg_sq", exp_avg_sqs[i])):  # fmt: skip
            check_contiguous(tensor, name)
        if dtype == torch.float32:
            check_dtype(compensations[i], torch.bfloat16, "compensation")
            check_like(compensations[i], shape, weight, "compensation")
            check_contiguous(compensations[i], "compensation")
        if steps[i] < 1:
            raise ValueError(f"steps holds {steps[i]}, expected at least 1")


class StepScalar(IntEnum):
    """Indices in step_scalars (10,) float64: what one step of one clock needs."""

    BETA1 = 0
    ONE_MINUS_BETA1 = 1
    BETA2 = 2
    ONE_MINUS_BETA2 = 3
    CORRECTED_LR = 4
    """lr / (1 - beta1^t)."""
    ROOT_CORRECTION = 5
    """1 / sqrt(1 - beta2^t)."""
    EPS = 6
    DECAY = 7
    """lr weight_decay."""
    GRAD_SCALE = 8
    """What gradients are multiplied by."""
    IS_STEP = 9
    """1, or 0 where the step is left out."""


def rates_of(
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float = 0.0,
    max_grad_norm: float | None = None,
) -> Tensor:
    """(8,) float64 on the CPU: beta1, beta2, eps, lr, weight decay, the norm that gradients are
    clipped to (inf for none), log(beta1), log(beta2).
    """
    logs = [math.log(beta) if beta else -math.inf for beta in (beta1, beta2)]
    clip = math.inf if max_grad_norm is None else max_grad_norm
    return torch.tensor([beta1, beta2, eps, lr, weight_decay, clip, *logs], dtype=torch.float64)


def adam_begin_ref(
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
    """What `adam_begin` does, in plain PyTorch."""
    size = norm.double().reshape(())
    beta1, beta2, eps, lr, decay, clip, log1, log2 = rates.unbind()
    finite = size < math.inf
    running = flags[2] == 0
    go = finite & running if skips else finite & running & (flags[1] == 0)
    scale = torch.ones_like(size) if scaler is None else scaler[0].clone()
    counters += go
    t = counters.clamp(min=1).double()
    rate, root = lr / (1 - (t * log1).exp()), (1 - (t * log2).exp()).rsqrt()
    factor = (clip / (size / scale + 1e-6)).clamp(max=1) / scale
    columns = [beta1, 1 - beta1, beta2, 1 - beta2, rate, root, eps, lr * decay, factor, go]
    step_scalars.copy_(torch.stack([x.double().expand(len(counters)) for x in columns], 1))
    if log is not None:
        assert base is not None
        entry = counters[:1] - base - 1
        room = go & (entry >= 0) & (entry < log.shape[1])
        at = entry.clamp(0, log.shape[1] - 1)
        log[:, at] = torch.where(room, torch.stack([rate[:1], root[:1]]), log[:, at])
    bad = ~finite & running
    flags[0] += bad
    flags[1] |= bad.to(flags.dtype)
    if scaler is not None:
        good = torch.where(finite, scaler[1] + 1, 0)
        full = good >= scaler[2]
        then = torch.where(finite, torch.where(full, scale * 2, scale), scale * 0.5)
        scaler[0] = torch.where(running, then, scale)
        scaler[1] = torch.where(running, torch.where(full, 0, good), scaler[1])


def adam_begin(
    norm: Tensor,
    rates: Tensor,
    counters: Tensor,
    flags: Tensor,
    scaler: Tensor | None,
    step_scalars: Tensor,
    log: Tensor | None = None,
    base: Tensor | None = None,
    *,
    skips: bool,
    backend: str | None = None,
) -> None:
    """Decides on the device whether there is a step, and works out its scalars.

    There is one if the norm of the gradients is finite and, unless `skips`, was finite in every
    step before: weights then stay as the last good step left them until the host looks. A step that
    is left out counts in no clock. `step_scalars` gets, for each clock at its step t, the values
    that `StepScalar` names. With a scaler (Micikevicius et al., ICLR 2018, section 3.2) gradients
    are of the loss times its scale, which doubles after a number of finite steps in a row and
    halves after one that is not finite.

    All tensors are on one device and, except for norm and rates, are written to. The host never
    waits to learn whether a step was taken, and a CUDA graph that holds this operation replays with
    the current counts, not with the counts of its capture.

    Args:
        norm: () float32 or float64, the norm of all gradients as they are.
        rates: (8,) float64, as `rates_of` gives them.
        counters: (C,) int64, the steps taken by each clock of an optimiser. Parameters that always
            step together share a clock; with a deferred table, clock 0 is the table's.
        flags: (3,) int64: steps left out because their gradient was not finite, whether there was
            one, and whether steps are paused: then none is taken, and nothing is counted.
        scaler: (3,) float64: the loss scale, finite steps since it last changed, and after how many
            of them it doubles; or None.
        step_scalars: (C, 10) float64, see `StepScalar`.
        log: (2, L) float64, or None: lr / (1 - beta1^t) and 1 / sqrt(1 - beta2^t) of the table's
            steps t = base + 1 and on.
        base: (1,) int64, the steps before the first of the log; None without one.
        skips: Whether steps are still taken after one that was left out.
        backend: "triton" or "torch"; None for the default.

    Raises:
        RuntimeError: The backend asked for cannot run.
    """
    chosen = resolve_on_device(counters, backend)
    if chosen == "torch":
        with torch.no_grad():
            adam_begin_ref(norm, rates, counters, flags, scaler, step_scalars, log, base, skips)
        return
    backends.kernels("adam", chosen).adam_begin(
        norm, rates, counters, flags, scaler, step_scalars, log, base, skips
    )


def adam_apply_ref(
    weight: Tensor,
    compensation: Tensor | None,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    low: Tensor | None,
    step_scalars: Tensor,
) -> None:
    """What `adam_apply` does, in plain PyTorch."""
    keep1, take1, keep2, take2, rate, root, eps, decay, scale, go = (
        x.to(weight.dtype) for x in step_scalars.unbind()
    )
    g = grad * scale
    m = exp_avg * keep1 + g * take1
    v = exp_avg_sq * keep2 + g * g * take2
    moved = -rate * m / (v.sqrt() * root + eps) - decay * weight
    if compensation is None:
        after, rest = weight + moved, None
    else:
        # As in adam.move_ref: the sum, and what its rounding left.
        more = compensation.to(weight.dtype) + moved
        after = weight + more
        part = after - weight
        rest = ((weight - (after - part)) + (more - part)).to(compensation.dtype)
    for old, new in ((exp_avg, m), (exp_avg_sq, v), (weight, after), (compensation, rest)):
        if old is not None:
            assert new is not None
            old.copy_(torch.where(go != 0, new, old))
    if low is not None:
        low.copy_(torch.where(go != 0, weight.to(low.dtype), low))


def adam_apply(
    weight: Tensor,
    compensation: Tensor | None,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    low: Tensor | None,
    step_scalars: Tensor,
    *,
    backend: str | None = None,
) -> None:
    """One step of `adam` on one contiguous tensor, in place, with the step_scalars (10,) float64 of
    `adam_begin`; does nothing where they say that there is no step.

    weight, grad, exp_avg and exp_avg_sq are float32 or float64 of one shape; compensation is
    bfloat16, None for float64; low, if given, becomes the weight rounded to its type.
    """
    chosen = resolve_on_device(weight, backend)
    if chosen == "torch":
        with torch.no_grad():
            adam_apply_ref(weight, compensation, grad, exp_avg, exp_avg_sq, low, step_scalars)
        return
    backends.kernels("adam", chosen).adam_apply(
        weight, compensation, grad, exp_avg, exp_avg_sq, low, step_scalars
    )


def resolve_on_device(like: Tensor, backend: str | None) -> str:
    """ "triton" or "torch": the extension lacks these, because CPUs have no use for them."""
    chosen = backends.resolve("adam", like.device, backend)
    if chosen == "native" and backend != "native":
        return "torch"
    if chosen == "native":
        raise RuntimeError(
            "backend 'native' has no Adam for CUDA graphs, expected 'triton' or 'torch'"
        )
    return chosen
