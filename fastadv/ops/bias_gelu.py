"""Bias and GELU, the activation between the two matrix products of a feed-forward layer."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.library import register_fake

from fastadv import backends
from fastadv.ops.dtypes import acc_dtype, check_dtype, check_float, check_leading, check_like


def bias_gelu_ref(x: Tensor, bias: Tensor, *, leading: int = 0) -> Tensor:
    """What `bias_gelu` computes, in plain PyTorch."""
    y = F.gelu(x.to(bias.dtype) + bias).to(x.dtype)
    return torch.cat([y[:leading].detach(), y[leading:]])


def bias_gelu(x: Tensor, bias: Tensor, *, leading: int = 0, backend: str | None = None) -> Tensor:
    """gelu(x + bias), where gelu(v) = v (1 + erf(v / sqrt(2))) / 2, the exact form.

    Hendrycks and Gimpel, "Gaussian error linear units" (2016), in the form of BERT's code; not its
    approximation by tanh.  x is (T, I) float32, bfloat16, float16 or float64; bias (I,) float32
    (float64 for float64 x).  The first `leading` rows need no gradient.

    Returns:
        (T, I) in x's dtype, computed in bias's.  x gets a gradient in its own dtype, with zeros in
        the leading rows; bias one in its own, over the other rows.

    Raises:
        ValueError: A shape, dtype or device does not fit.
        RuntimeError: The backend asked for cannot run.
    """
    _check(x, bias, leading)
    chosen = backends.resolve("bias_gelu", x.device, backend)
    if chosen == "torch":
        return bias_gelu_ref(x, bias, leading=leading)
    x, bias = x.contiguous(), bias.contiguous()
    if torch.is_grad_enabled() and (x.requires_grad or bias.requires_grad):
        return _BiasGelu.apply(x, bias, leading, chosen)
    y = torch.empty_like(x)
    backends.kernels("bias_gelu", chosen).bias_gelu(x, bias, y)
    return y


def _check(x: Tensor, bias: Tensor, leading: int) -> None:
    check_float(x, "x")
    if x.dim() != 2:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected (T, I)")
    check_dtype(bias, acc_dtype(x.dtype), "bias")
    check_like(bias, (x.shape[1],), x, "bias")
    check_leading(leading, x.shape[0])


class _BiasGelu(torch.autograd.Function):
    """x (T, I); bias (I,) in x's sum type."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, leading: int, chosen: str) -> Tensor:
        y = torch.empty_like(x)
        backends.kernels("bias_gelu", chosen).bias_gelu(x, bias, y)
        ctx.save_for_backward(x[leading:], bias)
        ctx.leading, ctx.chosen = leading, chosen
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, bias = ctx.saved_tensors
        grad_x = x.new_empty(ctx.leading + x.shape[0], x.shape[1])
        grad_x[: ctx.leading] = 0
        grad_bias = torch.empty_like(bias)
        rows = grad[ctx.leading :].contiguous()
        backends.kernels("bias_gelu", ctx.chosen).bias_gelu_backward(
            rows, x, bias, grad_x[ctx.leading :], None, grad_bias
        )
        return grad_x, grad_bias, None, None


if backends.extension is not None:

    @register_fake("fastadv::bias_gelu")
    def _fake(x: Tensor, bias: Tensor, y: Tensor) -> None:
        return None

    @register_fake("fastadv::bias_gelu_backward")
    def _fake_backward(
        grad: Tensor, x: Tensor, bias: Tensor, grad_x: Tensor, y: Tensor | None, grad_bias: Tensor
    ) -> None:
        return None
