"""Adam on the rows of a table that a batch reads; other rows catch up on their steps later."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from fastadv import backends
from fastadv.ops.adam import (
    StepScalar,
    adam_apply_ref,
    adam_ref,
    check_rates,
    rates_of,
    resolve_on_device,
)
from fastadv.ops.dtypes import check_contiguous, check_dtype, check_like


def embedding_adam_ref(
    weight: Tensor,
    compensation: Tensor | None,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    rows: Tensor,
    grads: Tensor,
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    grad_scale: float = 1.0,
) -> None:
    """What `embedding_adam` does, in plain PyTorch."""
    tensors = [weight, exp_avg, exp_avg_sq, *([] if compensation is None else [compensation])]
    parts = [x[rows] for x in tensors]
    adam_ref(
        parts[:1], parts[3:], [grads], parts[1:2], parts[2:3], [step], lr=lr, beta1=beta1,
        beta2=beta2, eps=eps, grad_scale=grad_scale,
    )  # fmt: skip
    for tensor, part in zip(tensors, parts, strict=True):
        tensor[rows] = part


def embedding_adam(
    weight: Tensor,
    compensation: Tensor | None,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    rows: Tensor,
    grads: Tensor,
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    grad_scale: float = 1.0,
    backend: str | None = None,
) -> None:
    """`adam` on rows of a table, in place; other rows are left as they are, moments too.

    weight, exp_avg and exp_avg_sq are (V, H), float32 or float64; compensation is (V, H) bfloat16,
    None for float64; rows (U,) int64, ascending, each once; grads (U, H) in weight's dtype. step is
    t, from 1, and the moments of `rows` are at step t - 1.

    Raises:
        ValueError: A shape, dtype, device or number does not fit; on a CPU, a row is not in the
            table or not in order.
        RuntimeError: The backend asked for cannot run.
    """
    check_rates(lr, beta1, beta2, eps)
    _check(weight, compensation, exp_avg, exp_avg_sq, rows)
    check_dtype(grads, weight.dtype, "grads")
    check_like(grads, (len(rows), weight.shape[1]), weight, "grads")
    if step < 1:
        raise ValueError(f"step is {step}, expected at least 1")
    chosen = _resolve(weight, rows, backend)
    weight = weight.detach()
    if chosen == "torch":
        with torch.no_grad():
            embedding_adam_ref(
                weight, compensation, exp_avg, exp_avg_sq, rows, grads, step=step, lr=lr,
                beta1=beta1, beta2=beta2, eps=eps, grad_scale=grad_scale,
            )  # fmt: skip
        return
    backends.kernels("embedding_adam", chosen).embedding_adam(
        weight, compensation, exp_avg, exp_avg_sq, rows.contiguous(), grads.contiguous(), step, lr,
        beta1, beta2, eps, grad_scale,
    )  # fmt: skip


def embedding_adam_catch_up_ref(
    weight: Tensor,
    compensation: Tensor | None,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    rows: Tensor,
    starts: Tensor,
    *,
    step: int,
    lrs: Tensor,
    base: int,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    """What `embedding_adam_catch_up` does, step by step: every missed step has a zero gradient."""
    starts, order = starts.sort(stable=True)
    rows = rows[order.to(rows.device)]
    tensors = [weight, exp_avg, exp_avg_sq, *([] if compensation is None else [compensation])]
    parts = [x[rows] for x in tensors]
    zeros = torch.zeros_like(parts[0])
    first = int(starts[0]) if len(starts) else step
    for t in range(first + 1, step + 1):
        late = int((starts < t).sum())
        now = [part[:late] for part in parts]
        adam_ref(
            now[:1], now[3:], [zeros[:late]], now[1:2], now[2:3], [t], lr=float(lrs[t - base - 1]),
            beta1=beta1, beta2=beta2, eps=eps,
        )  # fmt: skip
    for tensor, part in zip(tensors, parts, strict=True):
        tensor[rows] = part


def embedding_adam_catch_up(
    weight: Tensor,
    compensation: Tensor | None,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    rows: Tensor,
    starts: Tensor,
    *,
    step: int,
    lrs: Tensor,
    base: int,
    beta1: float,
    beta2: float,
    eps: float,
    backend: str | None = None,
) -> None:
    """Takes the steps of Adam, up to `step`, that rows without a gradient have missed, in place.

    Tables and rows are as in `embedding_adam`. Without a gradient (and without weight decay) a step
    depends on the moments alone, so that k of them are one sum, docs/adr/0008: weights move by
    -m sum_i A_i / (sqrt(v) + eps B_i), moments decay by beta1^k and beta2^k. Backend "torch" takes
    the steps one by one.

    Args:
        starts: (U,) int64 on the CPU: the step that each row's moments are at.
        step: The step to reach, not before any of them.
        lrs: (N,) float64 on the CPU: the learning rate of step base + 1 + i, up to `step`.
        base: Steps before the first of `lrs`.

    Raises:
        ValueError: As for `embedding_adam`; or a row starts before `base` or after `step`, or a
            rate is missing.
        RuntimeError: The backend asked for cannot run.
    """
    check_rates(0.0, beta1, beta2, eps)
    if beta2 == 0:
        raise ValueError("beta2 is 0, expected a number above 0: no step could be caught up on")
    _check(weight, compensation, exp_avg, exp_avg_sq, rows)
    check_dtype(starts, torch.int64, "starts")
    check_dtype(lrs, torch.float64, "lrs")
    if not bool((lrs >= 0).all() & torch.isfinite(lrs).all()):
        raise ValueError("lrs holds what is no rate, expected finite numbers of at least 0")
    if tuple(starts.shape) != (len(rows),):
        raise ValueError(f"starts has shape {tuple(starts.shape)}, expected {(len(rows),)}")
    if len(starts) == 0:
        return
    first, last = (int(x) for x in starts.aminmax())
    if first < base or last > step:
        raise ValueError(f"starts holds {first} to {last}, expected steps from {base} to {step}")
    if base + len(lrs) < step:
        raise ValueError(f"lrs ends at step {base + len(lrs)}, expected rates up to step {step}")
    chosen = _resolve(weight, rows, backend)
    weight = weight.detach()
    if chosen == "torch":
        with torch.no_grad():
            embedding_adam_catch_up_ref(
                weight, compensation, exp_avg, exp_avg_sq, rows, starts, step=step, lrs=lrs,
                base=base, beta1=beta1, beta2=beta2, eps=eps,
            )  # fmt: skip
        return
    late = starts < step
    if not late.all():
        rows, starts = rows[late.to(rows.device)], starts[late]
    if len(rows) == 0:
        return
    if chosen == "triton":
        _add_up(weight, compensation, exp_avg, exp_avg_sq, rows, starts, step, lrs, base, beta1,
                beta2, eps)  # fmt: skip
        return
    kinds, rules = np.unique(starts.numpy(), return_inverse=True)
    counts = step - kinds
    offsets, weights, nodes = _rules(kinds, counts, lrs, base, beta1, beta2, eps)
    decays = np.stack([beta1**counts, beta2**counts], 1)
    host = [torch.from_numpy(rules.reshape(-1)), offsets, weights, nodes, torch.from_numpy(decays)]
    backends.kernels("embedding_adam", chosen).embedding_adam_catch_up(
        weight, compensation, exp_avg, exp_avg_sq, rows.contiguous(),
        *(x.to(weight.device) for x in host),
    )  # fmt: skip


def _add_up(
    weight: Tensor, compensation: Tensor | None, exp_avg: Tensor, exp_avg_sq: Tensor, rows: Tensor,
    starts: Tensor, step: int, lrs: Tensor, base: int, beta1: float, beta2: float, eps: float,
) -> None:  # fmt: skip
    """What Triton reads: the steps' rates and roots, and powers of the betas."""
    t = base + 1 + np.arange(len(lrs))
    log = np.stack([lrs.numpy() / (1 - beta1**t), 1 / np.sqrt(1 - beta2**t)])
    rates = rates_of(0.0, beta1, beta2, eps)
    host = [starts, torch.tensor([step]), torch.tensor([base]), torch.from_numpy(log),
            powers_of(beta1, beta2, step - int(starts.min())), rates]  # fmt: skip
    backends.kernels("embedding_adam", "triton").embedding_adam_catch_up(
        weight, compensation, exp_avg, exp_avg_sq, rows.contiguous(),
        *(x.to(weight.device) for x in host), False,
    )  # fmt: skip


def _rules(
    kinds: np.ndarray,
    counts: np.ndarray,
    lrs: Tensor,
    base: int,
    beta1: float,
    beta2: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Offsets (S + 1,) int64, weights and nodes (R,) float64 of the rules of (kinds, counts)."""
    if backends.extension is not None:
        found: tuple[Tensor, Tensor, Tensor] = torch.ops.fastadv.deferred_rules(
            torch.from_numpy(kinds), torch.from_numpy(counts), lrs, base, beta1, beta2, eps
        )
        return found
    rules = [
        missed_steps(int(s), int(k), lrs.numpy()[s - base : s - base + k], beta1, beta2)
        for s, k in zip(kinds, counts, strict=True)
    ]
    offsets = np.concatenate([[0], np.cumsum([len(a) for a, _ in rules])])
    weights = np.concatenate([a for a, _ in rules])
    nodes = np.concatenate([b for _, b in rules]) * eps
    return tuple(torch.from_numpy(x) for x in (offsets, weights, nodes))  # type: ignore[return-value]


def missed_steps(
    s: int, k: int, lrs: np.ndarray, beta1: float, beta2: float
) -> tuple[np.ndarray, np.ndarray]:
    """A_i and B_i, i = 1..k, of the steps after step s, (k,) float64 each: every term of the sum.

    Args:
        lrs: (k,), the rates of these steps.
    """
    i = np.arange(1, k + 1)
    t = s + i
    b = np.sqrt(1 - beta2**t) * beta2 ** (-i / 2)
    return lrs * beta1**i * b / (1 - beta1**t), b


def _check(
    weight: Tensor, compensation: Tensor | None, exp_avg: Tensor, exp_avg_sq: Tensor, rows: Tensor
) -> None:
    if weight.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"weight has dtype {weight.dtype}, expected float32 or float64")
    if weight.dim() != 2:
        raise ValueError(f"weight has shape {tuple(weight.shape)}, expected (V, H)")
    shape = tuple(weight.shape)
    check_contiguous(weight, "weight")
    for name, tensor in (("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq)):
        check_dtype(tensor, weight.dtype, name)
        check_like(tensor, shape, weight, name)
        check_contiguous(tensor, name)
    if (compensation is None) != (weight.dtype == torch.float64):
        raise ValueError(
            f"found {'no ' if compensation is None else 'a '}compensation, expected one with a "
            "float32 table and none with a float64 one"
        )
    if compensation is not None:
        check_dtype(compensation, torch.bfloat16, "compensation")
        check_like(compensation, shape, weight, "compensation")
        check_contiguous(compensation, "compensation")
    check_dtype(rows, torch.int64, "rows")
    check_like(rows, (rows.numel(),), weight, "rows")


def _resolve(weight: Tensor, rows: Tensor, backend: str | None) -> str:
    chosen = backends.resolve("embedding_adam", weight.device, backend)
    # The native kernels check this themselves.
    if chosen != "native" and weight.device.type == "cpu" and len(rows):
        if not 0 <= int(rows[0]) <= int(rows[-1]) < len(weight):
            raise ValueError(f"rows holds {int(rows[0])} to {int(rows[-1])}, expected rows of "
                             f"{len(weight)}")  # fmt: skip
        if not bool((rows[1:] > rows[:-1]).all()):
            raise ValueError("rows are not ascending, expected every row once, in order")
    return chosen


# A missed step is left out if its share of the sum, relative to the first one's, is below this.
NEGLIGIBLE = 2.0**-40


def powers_of(beta1: float, beta2: float, longest: int | None = None) -> Tensor:
    """beta1^i and beta2^(i / 2) for i = 1..K, (2, K) float64 on the CPU, up to the last step that
    counts, or `longest`.

    A term of the sum over missed steps is at most (beta1 / sqrt(beta2))^i of the first term.

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


def embedding_adam_apply_ref(
    weight: Tensor,
    compensation: Tensor | None,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    rows: Tensor,
    grads: Tensor,
    step_scalars: Tensor,
    row_steps: Tensor,
    counter: Tensor,
) -> None:
    """What `embedding_adam_apply` does, in plain PyTorch."""
    real = rows >= 0
    rows, grads = rows[real], grads[real]
    tensors = [weight, exp_avg, exp_avg_sq, *([] if compensation is None else [compensation])]
    parts = [x[rows] for x in tensors]
    rest = parts[3] if compensation is not None else None
    adam_apply_ref(parts[0], rest, grads, parts[1], parts[2], None, step_scalars)
    for tensor, part in zip(tensors, parts, strict=True):
        tensor[rows] = part
    row_steps[rows] = torch.where(
        step_scalars[StepScalar.IS_STEP] != 0, counter.to(row_steps.dtype), row_steps[rows]
    )


def embedding_adam_apply(
    weight: Tensor,
    compensation: Tensor | None,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    rows: Tensor,
    grads: Tensor,
    step_scalars: Tensor,
    row_steps: Tensor,
    counter: Tensor,
    *,
    backend: str | None = None,
) -> None:
    """`adam_apply` on rows of a table, which are then at the step in counter (1,) int64.

    weight, exp_avg and exp_avg_sq are (V, H), compensation (V, H) bfloat16 or None, grads (U, H) in
    weight's dtype; rows (U,) int64, each once, -1 for none; row_steps (V,) int32.
    """
    args = (
        weight,
        compensation,
        exp_avg,
        exp_avg_sq,
        rows,
        grads,
        step_scalars,
        row_steps,
        counter,
    )
    chosen = resolve_on_device(weight, backend)
    if chosen == "torch":
        with torch.no_grad():
            embedding_adam_apply_ref(*args)
        return
    backends.kernels("embedding_adam", chosen).embedding_adam_apply(*args)


def embedding_adam_catch_up_on_device_ref(
    weight: Tensor,
    compensation: Tensor | None,
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
    """What `embedding_adam_catch_up_on_device` does, step by step."""
    step, first = int(counter), int(base)
    starts = row_steps[rows.clamp(min=0)].long()
    late = (rows >= 0) & (starts >= 0) & (starts < step)
    rows, starts = rows[late], starts[late]
    tensors = [weight, exp_avg, exp_avg_sq, *([] if compensation is None else [compensation])]
    parts = [x[rows] for x in tensors]
    rest = parts[3] if compensation is not None else None
    zeros = torch.zeros_like(parts[0])
    beta1, beta2, eps = rates[:3].tolist()
    for t in range(int(starts.min()) + 1 if len(starts) else step + 1, step + 1):
        rate, root = log[:, t - first - 1].tolist()
        step_scalars = [beta1, 0.0, beta2, 0.0, rate, root, eps, 0.0, 1.0, 1.0]
        now = [part.clone() for part in parts]
        adam_apply_ref(now[0], None if rest is None else now[3], zeros, now[1], now[2], None,
                       rates.new_tensor(step_scalars))  # fmt: skip
        for part, new in zip(parts, now, strict=True):
            part.copy_(torch.where((starts < t)[:, None], new, part))
    for tensor, part in zip(tensors, parts, strict=True):
        tensor[rows] = part
    row_steps[rows] = step


def embedding_adam_catch_up_on_device(
    weight: Tensor,
    compensation: Tensor | None,
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
    """`embedding_adam_catch_up` for rows (U,) int64, each once, -1 for none, to step counter (1,).

    row_steps (V,) int32 holds the step that a row's moments are at, -1 if it never had a gradient.
    The log must hold every step after that; `powers` holds as many steps as count.
    """
    args = (weight, compensation, exp_avg, exp_avg_sq, rows, row_steps, counter, base, log, powers,
            rates)  # fmt: skip
    chosen = resolve_on_device(weight, backend)
    if chosen == "torch":
        with torch.no_grad():
            embedding_adam_catch_up_on_device_ref(*args)
        return
    backends.kernels("embedding_adam", chosen).embedding_adam_catch_up(*args, True)
