"""The language discriminator's score and its binary cross-entropy, in one operation."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.library import register_fake

from fastadv import backends
from fastadv.ops.dtypes import acc_dtype, check_float, check_like


def linear_bce_ref(
    h: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    sample_weights: Tensor | None = None,
    relaxation: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """What `linear_bce` computes, in plain PyTorch."""
    dtype = acc_dtype(h.dtype)
    # Elementwise, not a matrix product, which autocast would round to 16 bits.
    logits = (h.to(dtype) * weight.reshape(-1).to(dtype)).sum(1) + bias.reshape(()).to(dtype)
    targets = targets.to(dtype)
    if relaxation == 0:
        losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    else:
        # log((1 - p) / p), where for the bounded p the ratio is 1 + b + (2 + b) exp(-z).
        least = torch.full_like(logits, math.log1p(relaxation))
        log_ratio = torch.logaddexp(least, math.log(2 + relaxation) - logits)
        losses = -targets * F.logsigmoid(-log_ratio) - (1 - targets) * F.logsigmoid(log_ratio)
    if sample_weights is None:
        loss = losses.sum() / max(h.shape[0], 1)
    else:
        loss = (losses * sample_weights.to(dtype)).sum()
    return loss, logits.detach()


def linear_bce(
    h: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    sample_weights: Tensor | None = None,
    relaxation: float = 0.0,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Weighted binary cross-entropy of the linear scores z_i = h_i . weight + bias.

    loss = sum_i c_i (-y_i log p_i - (1 - y_i) log(1 - p_i)), computed without overflow for any
    finite z. With relaxation 0, p = sigmoid(z) as in Algorithm 1 of Keung, Lu and Bhardwaj (2019).

    With relaxation b > 0, p = sigmoid(z) / (2 + b), so that (1 - p) / p, which estimates how many
    times as dense the rows of label 0 are as those of label 1, is never below 1 + b: the relaxed
    Jensen-Shannon form of Wu, Winston, Kaushik and Lipton, "Domain Adaptation with
    Asymmetrically-Relaxed Distribution Alignment" (ICML 2019). The best p is the unbounded one
    where that is below 1 / (2 + b), and 1 / (2 + b) elsewhere: rows are told apart only where label
    0 is more than 1 + b times as dense. Zero is a switch and no limit: for any b > 0, p < 1/2.

    h is (N, H) float32, bfloat16, float16 or float64; weight (H,) or (1, H); bias () or (1,);
    targets y (N,) in [0, 1]; sample_weights c (N,), 1/N each if None; relaxation finite and >= 0.

    Returns:
        loss () and logits z (N,), float32 (float64 for float64 h).  h, weight and bias get
        gradients through the loss, in their own dtypes; the logits carry none.

    Raises:
        ValueError: A shape or device does not fit; targets or sample_weights require a gradient;
            relaxation is negative or not finite.
        RuntimeError: The backend asked for cannot run.
    """
    _check(h, weight, bias, targets, sample_weights, relaxation)
    chosen = backends.resolve("linear_bce", h.device, backend)
    if chosen == "torch":
        return linear_bce_ref(h, weight, bias, targets, sample_weights, relaxation)
    dtype = acc_dtype(h.dtype)
    weight, bias = weight.reshape(-1).to(dtype), bias.reshape(1).to(dtype)
    targets = targets.to(dtype)
    sample_weights = None if sample_weights is None else sample_weights.to(dtype)
    if torch.is_grad_enabled() and (h.requires_grad or weight.requires_grad or bias.requires_grad):
        return _LinearBce.apply(h, weight, bias, targets, sample_weights, relaxation, chosen)
    loss, logits, _ = backends.kernels("linear_bce", chosen).linear_bce(
        h, weight, bias, targets, sample_weights, relaxation
    )
    return loss, logits


def discriminator_loss(
    h: Tensor,
    english: Tensor,
    weight: Tensor,
    bias: Tensor,
    counted: Tensor | None = None,
    relaxation: float = 0.0,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """L_D of Algorithm 1 (lines 7 to 12) of Keung, Lu and Bhardwaj (2019).

    The mean of -log p over the English rows plus the mean of -log(1 - p) over the others; a side
    without rows adds nothing.  h is (N, H), english (N,) bool, counted (N,) bool, False where a row
    is on neither side; weight, bias, relaxation, results and errors as in `linear_bce`.  Gradients
    go to weight and bias alone.
    """
    targets, sample_weights = _targets(h, english, counted)
    return linear_bce(
        h.detach(), weight, bias, targets, sample_weights, relaxation, backend=backend
    )


def generator_loss(
    h: Tensor,
    english: Tensor,
    weight: Tensor,
    bias: Tensor,
    counted: Tensor | None = None,
    relaxation: float = 0.0,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """L_G of Algorithm 1 (lines 13 to 18): `discriminator_loss` with its labels flipped.

    The mean of -log(1 - p) over the English rows plus the mean of -log p over the others.
    Gradients go to h alone.  With relaxation they vanish at p's bound, as the discriminator's do.
    Flipped labels are Algorithm 1's; Wu et al. (2019) raise the discriminator's loss instead.
    """
    targets, sample_weights = _targets(h, english, counted)
    return linear_bce(
        h, weight.detach(), bias.detach(), 1 - targets, sample_weights, relaxation, backend=backend
    )


def _targets(h: Tensor, english: Tensor, counted: Tensor | None) -> tuple[Tensor, Tensor]:
    """1 for English rows and 0 for others; and one over the number of rows of the same side."""
    for name, mask in (("english", english), ("counted", counted)):
        if mask is not None:
            if mask.dtype != torch.bool:
                raise ValueError(f"{name} has dtype {mask.dtype}, expected bool")
            check_like(mask, tuple(h.shape[:1]), h, name)
    dtype = acc_dtype(h.dtype)
    targets = english.to(dtype)
    if counted is None:
        count = targets.sum()
        return targets, torch.where(english, 1 / count, 1 / (h.shape[0] - count))
    count, all_ = (targets * counted).sum(), counted.to(dtype).sum()
    shares = torch.where(english, 1 / count, 1 / (all_ - count))
    return targets, torch.where(counted, shares, 0)


def _check(
    h: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    sample_weights: Tensor | None,
    relaxation: float,
) -> None:
    check_float(h, "h")
    if h.dim() != 2:
        raise ValueError(f"h has shape {tuple(h.shape)}, expected (N, H)")
    rows, hidden = h.shape
    check_like(weight, (1, hidden) if weight.dim() == 2 else (hidden,), h, "weight")
    check_like(bias, () if bias.dim() == 0 else (1,), h, "bias")
    check_like(targets, (rows,), h, "targets")
    if sample_weights is not None:
        check_like(sample_weights, (rows,), h, "sample_weights")
    if targets.requires_grad or (sample_weights is not None and sample_weights.requires_grad):
        raise ValueError("targets or sample_weights require a gradient, expected constants")
    if not 0 <= relaxation < math.inf:  # False for NaN too.
        raise ValueError(f"relaxation is {relaxation}, expected a finite number of at least 0")


class _LinearBce(torch.autograd.Function):
    """h (N, H); weight (H,), bias (1,), targets (N,), sample_weights (N,) in h's sum type."""

    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        weight: Tensor,
        bias: Tensor,
        targets: Tensor,
        sample_weights: Tensor | None,
        relaxation: float,
        chosen: str,
    ) -> tuple[Tensor, Tensor]:
        loss, logits, dz = backends.kernels("linear_bce", chosen).linear_bce(
            h, weight, bias, targets, sample_weights, relaxation
        )
        input_grad, weight_grad, bias_grad = ctx.needs_input_grad[:3]
        params_grad = weight_grad or bias_grad
        ctx.save_for_backward(dz, weight if input_grad else None, h if params_grad else None)
        ctx.dtype, ctx.chosen = h.dtype, chosen
        ctx.mark_non_differentiable(logits)
        return loss, logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        dz, weight, h = ctx.saved_tensors
        kernels = backends.kernels("linear_bce", ctx.chosen)
        grad_h = grad_weight = grad_bias = None
        if weight is not None:
            grad_h = kernels.linear_bce_grad_input(grad, dz, weight, ctx.dtype)
        if h is not None:
            grad_weight, grad_bias = kernels.linear_bce_grad_params(grad, dz, h)
        return grad_h, grad_weight, grad_bias, None, None, None, None


if backends.extension is not None:

    @register_fake("fastadv::linear_bce")
    def _fake(
        h: Tensor,
        weight: Tensor,
        bias: Tensor,
        targets: Tensor,
        sample_weights: Tensor | None,
        relaxation: float = 0.0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows = h.shape[0]
        return weight.new_empty(()), weight.new_empty(rows), weight.new_empty(rows)

    @register_fake("fastadv::linear_bce_grad_input")
    def _fake_grad_input(grad: Tensor, dz: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        return weight.new_empty(dz.shape[0], weight.shape[0], dtype=dtype)

    @register_fake("fastadv::linear_bce_grad_params")
    def _fake_grad_params(grad: Tensor, dz: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        return dz.new_empty(h.shape[1]), dz.new_empty(1)
