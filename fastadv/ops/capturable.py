"""Adam whose step counts, rates and decisions are tensors on the device.

The host never waits to learn whether a step was done, and a CUDA graph that holds these operations
replays with the counts of the moment and not with those of its capture. The layout of the tensors:

- rates (8,) float64: beta1, beta2, eps, lr, weight decay, the norm that gradients are clipped to
  (inf for none), log(beta1), log(beta2).
- counters (C,) int64: steps done by each clock of an optimiser. Parameters that always step
  together share a clock; with a deferred table, clock 0 is the table's.
- numbers (C, 10) float64: what a step needs, as of `adam_begin_ref`.
- flags (3,) int64: steps left out since their gradient was not finite, whether there was one, and
  whether steps are paused: then none is done, and nothing counted.
- scaler (3,) float64: the loss scale, finite steps since it last changed, and after how many of
  them it doubles.
- log (2, L) float64: lr / (1 - beta1^t) and 1 / sqrt(1 - beta2^t) of the table's steps t = base + 1
  and on, base (1,) int64.
- powers (2, K) float64: beta1^i and beta2^(i / 2) for i = 1..K.
"""

from __future__ import annotations

import importlib
import math
from typing import Any

import torch
from torch import Tensor

from fastadv import backends

# Of a missed step's share of the sum, relative to the first one's, below which it is left out.
NEGLIGIBLE = 2.0**-40


def rates_of(
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float = 0.0,
    max_grad_norm: float | None = None,
) -> Tensor:
    """rates (8,) float64 on the CPU."""
    logs = [math.log(beta) if beta else -math.inf for beta in (beta1, beta2)]
    clip = math.inf if max_grad_norm is None else max_grad_norm
    return torch.tensor([beta1, beta2, eps, lr, weight_decay, clip, *logs], dtype=torch.float64)


def powers_of(beta1: float, beta2: float, longest: int | None = None) -> Tensor:
    """powers (2, K) float64 on the CPU, up to the last step that counts, or `longest`.

    A term of the sum over missed steps is at most (beta1 / sqrt(beta2))^i of the first.

    Raises:
        ValueError: No step is negligible (beta1^2 >= beta2), and there is no longest.
    """
    ratio = beta1 / math.sqrt(beta2)
    counts = [] if longest is None else [longest]
    if ratio < 1:
        counts.append(1 if ratio == 0 else math.ceil(math.log(NEGLIGIBLE) / math.log(ratio)))
    if not counts:
        raise ValueError(
            f"beta1 is {beta1} and beta2 {beta2}, expected beta1^2 < beta2: momentum outlives its "
            "scale"
        )
    i = torch.arange(1, max(1, min(counts)) + 1, dtype=torch.float64)
    return torch.stack([beta1**i, beta2 ** (i / 2)])


def adam_begin_ref(
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
    numbers.copy_(torch.stack([x.double().expand(len(counters)) for x in columns], 1))
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
    numbers: Tensor,
    log: Tensor | None = None,
    base: Tensor | None = None,
    *,
    skips: bool,
    backend: str | None = None,
) -> None:
    """Decides on the device whether there is a step, and works out its numbers.

    There is one if the norm of the gradients is finite, and, unless `skips`, was finite in every
    step before: then weights stay as the last good step left them until the host looks. A step that
    is left out counts in no clock. `numbers` becomes, for each clock at its step t: beta1,
    1 - beta1, beta2, 1 - beta2, lr / (1 - beta1^t), 1 / sqrt(1 - beta2^t), eps, lr weight_decay,
    what gradients are multiplied by, and 1 or, for no step, 0. With a scaler (Micikevicius et al.,
    ICLR 2018, section 3.2) gradients are of the loss times its scale, which doubles after so many
    finite steps in a row and halves after one that is not.

    Args:
        norm: () float32 or float64, of all gradients, as they are.
        skips: Whether later steps go on after one that was left out.

    The other tensors are as the module says; all are on one device and, but for norm and rates,
    written to.
    """
    chosen = _resolve(counters, backend)
    if chosen == "torch":
        with torch.no_grad():
            adam_begin_ref(norm, rates, counters, flags, scaler, numbers, log, base, skips)
        return
    _kernels("adam").adam_begin(norm, rates, counters, flags, scaler, numbers, log, base, skips)


def adam_apply_ref(
    weight: Tensor,
    residual: Tensor | None,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    low: Tensor | None,
    numbers: Tensor,
) -> None:
    """What `adam_apply` does, in plain PyTorch."""
    keep1, take1, keep2, take2, rate, root, eps, decay, scale, go = (
        x.to(weight.dtype) for x in numbers.unbind()
    )
    g = grad * scale
    m = exp_avg * keep1 + g * take1
    v = exp_avg_sq * keep2 + g * g * take2
    moved = -rate * m / (v.sqrt() * root + eps) - decay * weight
    if residual is None:
        after, rest = weight + moved, None
    else:
        # As in adam.move_ref: the sum, and what its rounding left.
        more = residual.to(weight.dtype) + moved
        after = weight + more
        part = after - weight
        rest = ((weight - (after - part)) + (more - part)).to(residual.dtype)
    for old, new in ((exp_avg, m), (exp_avg_sq, v), (weight, after), (residual, rest)):
        if old is not None:
            assert new is not None
            old.copy_(torch.where(go != 0, new, old))
    if low is not None:
        low.copy_(torch.where(go != 0, weight.to(low.dtype), low))


def adam_apply(
    weight: Tensor,
    residual: Tensor | None,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    low: Tensor | None,
    numbers: Tensor,
    *,
    backend: str | None = None,
) -> None:
    """One step of `adam` on one contiguous tensor, in place, with numbers (10,) float64 of
    `adam_begin`; nothing where they say so.

    weight, grad, exp_avg and exp_avg_sq are float32 or float64 of one shape; residual is bfloat16,
    None for float64; low, if given, becomes the weight rounded to its type.
    """
    if _resolve(weight, backend) == "torch":
        with torch.no_grad():
            adam_apply_ref(weight, residual, grad, exp_avg, exp_avg_sq, low, numbers)
        return
    _kernels("adam").adam_apply(weight, residual, grad, exp_avg, exp_avg_sq, low, numbers)


def embedding_adam_apply_ref(
    weight: Tensor,
    residual: Tensor | None,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    rows: Tensor,
    grads: Tensor,
    numbers: Tensor,
    row_steps: Tensor,
    counter: Tensor,
) -> None:
    """What `embedding_adam_apply` does, in plain PyTorch."""
    real = rows >= 0
    rows, grads = rows[real], grads[real]
    tensors = [weight, exp_avg, exp_avg_sq, *([] if residual is None else [residual])]
    parts = [x[rows] for x in tensors]
    rest = parts[3] if residual is not None else None
    adam_apply_ref(parts[0], rest, grads, parts[1], parts[2], None, numbers)
    for tensor, part in zip(tensors, parts, strict=True):
        tensor[rows] = part
    row_steps[rows] = torch.where(numbers[9] != 0, counter.to(row_steps.dtype), row_steps[rows])


def embedding_adam_apply(
    weight: Tensor,
    residual: Tensor | None,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    rows: Tensor,
    grads: Tensor,
    numbers: Tensor,
    row_steps: Tensor,
    counter: Tensor,
    *,
    backend: str | None = None,
) -> None:
    """`adam_apply` on rows of a table, which are then of step counter (1,) int64.

    weight, exp_avg and exp_avg_sq are (V, H), residual (V, H) bfloat16 or None, grads (U, H) in
    weight's dtype; rows (U,) int64, each once, -1 for none; row_steps (V,) int32.
    """
    args = (weight, residual, exp_avg, exp_avg_sq, rows, grads, numbers, row_steps, counter)
    if _resolve(weight, backend) == "torch":
        with torch.no_grad():
            embedding_adam_apply_ref(*args)
        return
    _kernels("embedding_adam").embedding_adam_apply(*args)


def embedding_adam_make_up_ref(
    weight: Tensor,
    residual: Tensor | None,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    rows: Tensor,
    row_steps: Tensor,
    counter: Tensor,
    base: Tensor,
    log: Tensor,
    powers: Tensor,
    rates: Tensor,
) -> None:
    """What `embedding_adam_make_up` does: every step by itself."""
    step, first = int(counter), int(base)
    starts = row_steps[rows.clamp(min=0)].long()
    late = (rows >= 0) & (starts >= 0) & (starts < step)
    rows, starts = rows[late], starts[late]
    tensors = [weight, exp_avg, exp_avg_sq, *([] if residual is None else [residual])]
    parts = [x[rows] for x in tensors]
    rest = parts[3] if residual is not None else None
    zeros = torch.zeros_like(parts[0])
    beta1, beta2, eps = rates[:3].tolist()
    for t in range(int(starts.min()) + 1 if len(starts) else step + 1, step + 1):
        rate, root = log[:, t - first - 1].tolist()
        numbers = [beta1, 0.0, beta2, 0.0, rate, root, eps, 0.0, 1.0, 1.0]
        now = [part.clone() for part in parts]
        adam_apply_ref(now[0], None if rest is None else now[3], zeros, now[1], now[2], None,
                       rates.new_tensor(numbers))  # fmt: skip
        for part, new in zip(parts, now, strict=True):
            part.copy_(torch.where((starts < t)[:, None], new, part))
    for tensor, part in zip(tensors, parts, strict=True):
        tensor[rows] = part
    row_steps[rows] = step


def embedding_adam_make_up(
    weight: Tensor,
    residual: Tensor | None,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    rows: Tensor,
    row_steps: Tensor,
    counter: Tensor,
    base: Tensor,
    log: Tensor,
    powers: Tensor,
    rates: Tensor,
    *,
    backend: str | None = None,
) -> None:
    """`embedding_adam_catch_up` of rows (U,) int64, each once, -1 for none, to step counter (1,).

    row_steps (V,) int32 says of which step a row's moments are, -1 if it never had a gradient. The
    log must hold every step after that; the steps of `powers` are as many as count.
    """
    args = (weight, residual, exp_avg, exp_avg_sq, rows, row_steps, counter, base, log, powers,
            rates)  # fmt: skip
    if _resolve(weight, backend) == "torch":
        with torch.no_grad():
            embedding_adam_make_up_ref(*args)
        return
    _kernels("embedding_adam").embedding_adam_catch_up(*args, True)


def _resolve(like: Tensor, backend: str | None) -> str:
    """ "triton" or "torch": the extension has none of these, CPUs have no use for them."""
    chosen = backends.resolve("adam", like.device, backend)
    if chosen == "native" and backend != "native":
        return "torch"
    if chosen == "native":
        raise RuntimeError(
            "backend 'native' has no Adam for CUDA graphs, expected 'triton' or 'torch'"
        )
    return chosen


def _kernels(operation: str) -> Any:
    return importlib.import_module(f"fastadv.kernels.{operation}")
