"""Softmax cross-entropy of a classifier with many classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.library import register_fake

from fastadv import backends
from fastadv.ops.dtypes import acc_dtype, check_dtype, check_float, check_like
from fastadv.ops.memory import empty


def cross_entropy_ref(logits: Tensor, targets: Tensor) -> Tensor:
    """What `cross_entropy` computes, in plain PyTorch."""
    z = logits.to(acc_dtype(logits.dtype))
    return z.logsumexp(1) - z.gather(1, targets[:, None])[:, 0]


def cross_entropy(
    logits: Tensor, targets: Tensor, *, inplace_backward: bool = False, backend: str | None = None
) -> Tensor:
    """losses_m = logsumexp(logits_m) - logits_m[targets_m]: softmax and cross-entropy in one.

    The gradient is recomputed from the logits, (softmax(logits_m) - onehot(targets_m)) times the
    upstream gradient, so that nothing else of their size is kept.  A logit may be -inf, a class of
    probability 0, but not a whole row, whose loss is NaN; NaN gives NaN.

    logits is (M, V) float32, bfloat16, float16 or float64, V at least 1; targets (M,) int64 in
    [0, V).  On a GPU targets are not checked first: one out of range gives NaN (the reference stops
    the process, as PyTorch does).

    Args:
        inplace_backward: The backward overwrites the logits with their gradient (their contiguous
            copy, if they are strided), which saves memory of their size; logits must not be used
            after it.  The reference, backend "torch", and a compiled graph, which plans memory
            itself, do not overwrite.

    Returns:
        losses (M,), float32 (float64 for float64 logits); statistics are of that type too.  The
        logits get a gradient in their own dtype.

    Raises:
        ValueError: A shape, dtype or device does not fit, or, on a CPU, a target is outside [0, V).
        RuntimeError: The backend asked for cannot run; in the backward, that inplace_backward let
            an earlier one overwrite the logits.
    """
    _check(logits, targets)
    chosen = backends.resolve("cross_entropy", logits.device, backend)
    if chosen != "native" and logits.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_range(targets, logits.shape[1])
    if chosen == "torch":
        return cross_entropy_ref(logits, targets)
    logits, targets = logits.contiguous(), targets.contiguous()
    if torch.is_grad_enabled() and logits.requires_grad:
        inplace = inplace_backward and not torch.compiler.is_compiling()
        return _CrossEntropy.apply(logits, targets, inplace, chosen)
    return _forward(logits, targets, chosen)[0]


def _check(logits: Tensor, targets: Tensor) -> None:
    check_float(logits, "logits")
    if logits.dim() != 2 or logits.shape[1] == 0:
        raise ValueError(
            f"logits has shape {tuple(logits.shape)}, expected (M, V) with V at least 1"
        )
    check_dtype(targets, torch.int64, "targets")
    check_like(targets, (logits.shape[0],), logits, "targets")


def _check_range(targets: Tensor, classes: int) -> None:
    outside = ((targets < 0) | (targets >= classes)).nonzero()
    if len(outside):
        i = int(outside[0])
        raise ValueError(
            f"targets[{i}] is {int(targets[i])}, expected at least 0 and less than {classes}"
        )


def _empty_like(logits: Tensor) -> Tensor:
    # Pooled blocks: faulting in the pages of fresh ones takes several times as long as the kernel.
    if torch.compiler.is_compiling():
        return torch.empty_like(logits)
    return empty(logits, tuple(logits.shape), logits.dtype)


def _forward(logits: Tensor, targets: Tensor, chosen: str) -> tuple[Tensor, Tensor]:
    """losses and normalizers, (M,) each."""
    losses = logits.new_empty(logits.shape[0], dtype=acc_dtype(logits.dtype))
    normalizers = torch.empty_like(losses)
    backends.kernels("cross_entropy", chosen).cross_entropy(logits, targets, normalizers, losses)
    return losses, normalizers


class _CrossEntropy(torch.autograd.Function):
    """logits (M, V) and targets (M,) int64, both contiguous."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, inplace: bool, chosen: str) -> Tensor:
        losses, normalizers = _forward(logits, targets, chosen)
        ctx.save_for_backward(logits, targets, normalizers)
        ctx.inplace, ctx.chosen, ctx.overwritten = inplace, chosen, False
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        if ctx.overwritten:
            raise RuntimeError(
                "cross_entropy has run backward before with inplace_backward=True, expected once: "
                "its logits are overwritten with their gradient"
            )
        logits, targets, normalizers = ctx.saved_tensors
        backward = backends.kernels("cross_entropy", ctx.chosen).cross_entropy_backward
        if not ctx.inplace:
            grad_logits = _empty_like(logits)
            backward(grad.contiguous(), logits, targets, normalizers, grad_logits)
            return grad_logits, None, None, None
        ctx.overwritten = True
        grad_logits = logits.detach()
        backward(grad.contiguous(), None, targets, normalizers, grad_logits)
        # Anything else that keeps the logits for a backward gets PyTorch's error, not wrong values.
        torch.autograd.graph.increment_version(logits)
        return grad_logits, None, None, None


if backends.extension is not None:

    @register_fake("fastadv::cross_entropy")
    def _fake(logits: Tensor, targets: Tensor, normalizers: Tensor, losses: Tensor) -> None:
        return None

    @register_fake("fastadv::cross_entropy_backward")
    def _fake_backward(
        grad: Tensor,
        logits: Tensor | None,
        targets: Tensor,
        normalizers: Tensor,
        grad_logits: Tensor,
    ) -> None:
        return None
