"""Adam over many tensors, with weights of more bits than float32 has."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastadv import backends
from fastadv.ops.dtypes import check_contiguous, check_dtype, check_like


def adam_ref(
    weights: Sequence[Tensor],
    residuals: Sequence[Tensor],
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
            move_ref(weight, residuals[i], moved)


def move_ref(weight: Tensor, residual: Tensor, moved: Tensor) -> None:
    """weight + residual += moved: the float32 sum and, exactly, what its rounding left (Knuth,
    TAOCP volume 2, section 4.2.2, theorem B), of which the residual keeps bfloat16's eight bits.
    """
    more = residual.to(weight.dtype) + moved
    total = weight + more
    part = total - weight
    residual.copy_((weight - (total - part)) + (more - part))
    weight.copy_(total)


def adam(
    weights: Sequence[Tensor],
    residuals: Sequence[Tensor],
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
    and device, each weight's four of one shape. A float32 weight w has a residual r, bfloat16: the
    weight is w + r, 33 bits, and w is its rounded value; the step adds to both. float64 has none:
    `residuals` is empty then. `steps` are t of each tensor, from 1.

    Args:
        layouts: Of every weight, matrices all of them, what `fastadv::linear_pack` made of it in
            bfloat16; written anew from what the weight becomes. Only backend "native", on a CPU.

    Raises:
        ValueError: A shape, dtype, device or number does not fit.
        RuntimeError: The backend asked for cannot run.
    """
    if not weights:
        return
    check_rates(lr, beta1, beta2, eps)
    _check(weights, residuals, grads, exp_avgs, exp_avg_sqs, steps)
    chosen = backends.resolve("adam", weights[0].device, backend)
    if layouts and chosen != "native":
        raise ValueError(f"found layouts with backend {chosen}, expected native")
    if chosen == "torch":
        with torch.no_grad():
            adam_ref(
                weights, residuals, grads, exp_avgs, exp_avg_sqs, steps, lr=lr, beta1=beta1,
                beta2=beta2, eps=eps, weight_decay=weight_decay, grad_scale=grad_scale,
            )  # fmt: skip
        return
    _kernels(chosen).adam(
        [w.detach() for w in weights], list(residuals), [g.contiguous() for g in grads],
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
    norm: Tensor = _kernels(chosen).gradient_norm([g.contiguous() for g in grads])
    return norm


def check_rates(lr: float, beta1: float, beta2: float, eps: float) -> None:
    """Refuses numbers that are no rates."""
    for name, beta in (("beta1", beta1), ("beta2", beta2)):
        if not 0 <= beta < 1:
            raise ValueError(f"{name} is {beta}, expected a number in [0, 1)")
    if not (lr >= 0 and math.isfinite(lr)):
        raise ValueError(f"lr is {lr}, expected a finite number of at least 0")
    if not eps > 0:
        raise ValueError(f"eps is {eps}, expected a number above 0")


def _check(
    weights: Sequence[Tensor],
    residuals: Sequence[Tensor],
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
        lists["residuals"] = residuals
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
            check_dtype(residuals[i], torch.bfloat16, "residual")
            check_like(residuals[i], shape, weight, "residual")
            check_contiguous(residuals[i], "residual")
        if steps[i] < 1:
            raise ValueError(f"steps holds {steps[i]}, expected at least 1")


def _kernels(backend: str) -> Any:
    """Where the function adam of `backend` is."""
    if backend == "native":
        return torch.ops.fastadv
    return importlib.import_module("fastadv.kernels.adam")
