"""A matrix product with a weight whose master copy is more precise than the product."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.library import register_fake

from fastadv import backends
from fastadv.ops.dtypes import acc_dtype, check_dtype, check_float, check_leading, check_like


def linear_ref(x: Tensor, weight: Tensor, bias: Tensor | None = None, leading: int = 0) -> Tensor:
    """What `linear` computes, in plain PyTorch."""
    acc = acc_dtype(x.dtype)
    y = x.to(acc) @ weight.to(x.dtype).to(acc).t()
    y = (y if bias is None else y + bias).to(x.dtype)
    return torch.cat([y[:leading].detach(), y[leading:]])


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    leading: int = 0,
    backend: str | None = None,
) -> Tensor:
    """y = x W^T + b, the matrix product in x's dtype with sums in float32.

    x is (T, K) float32, bfloat16, float16 or float64; weight (N, K) and bias (N,) are float32
    (float64 for float64 x) and rounded to x's dtype for the matrix product (the bias is not).

    Args:
        leading: Rows of x that need no gradient and give none.

    Returns:
        (T, N) of x's dtype. The gradients of weight and bias are float32 sums (float64 for
        float64 x).

    Raises:
        ValueError: A shape, dtype or device does not fit.
        RuntimeError: The backend asked for cannot run.
    """
    check_float(x, "x")
    if x.dim() != 2 or weight.dim() != 2:
        shapes = f"{tuple(x.shape)} and {tuple(weight.shape)}"
        raise ValueError(f"x and weight have shapes {shapes}, expected (T, K) and (N, K)")
    check_dtype(weight, acc_dtype(x.dtype), "weight")
    check_like(weight, (weight.shape[0], x.shape[1]), x, "weight")
    if bias is not None:
        check_dtype(bias, weight.dtype, "bias")
        check_like(bias, (weight.shape[0],), x, "bias")
    check_leading(leading, x.shape[0])
    chosen = backends.resolve("linear", x.device, backend)
    if chosen == "torch":
        return linear_ref(x, weight, bias, leading)
    wanted = [t for t in (x, weight, bias) if t is not None and t.requires_grad]
    if torch.is_grad_enabled() and wanted:
        return _Linear.apply(x, weight, bias, leading)
    forward, _ = torch.ops.fastadv.linear_pack(weight, x.dtype)
    return _product(x, forward, weight.shape[0], bias)


def _product(x: Tensor, packed: Tensor, width: int, bias: Tensor | None = None) -> Tensor:
    y = x.new_empty(x.shape[0], width)
    torch.ops.fastadv.linear(x.contiguous(), packed, bias, y)
    return y


class _Linear(torch.autograd.Function):
    """x (T, K); weight (N, K) and bias (N,) in x's sum type."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, leading: int) -> Tensor:
        forward, backward = torch.ops.fastadv.linear_pack(weight, x.dtype)
        ctx.save_for_backward(x[leading:].contiguous(), backward)
        ctx.leading, ctx.shape, ctx.acc = leading, weight.shape, weight.dtype
        return _product(x, forward, weight.shape[0], bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, packed = ctx.saved_tensors
        grad = grad[ctx.leading :].contiguous()
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = grad.new_zeros(ctx.leading + x.shape[0], x.shape[1])
            torch.ops.fastadv.linear(grad, packed, None, grad_x[ctx.leading :])
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            grad_weight = grad.new_empty(ctx.shape, dtype=ctx.acc)
            if ctx.needs_input_grad[2]:
                grad_bias = grad.new_empty(ctx.shape[0], dtype=ctx.acc)
            torch.ops.fastadv.linear_backward_weight(grad, x, grad_weight, grad_bias, None)
        return grad_x, grad_weight if ctx.needs_input_grad[1] else None, grad_bias, None


if backends.extension is not None:

    @register_fake("fastadv::linear_pack")
    def _fake_pack(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        # The kernel chooses the layouts that matrix products read; here only their size counts.
        return weight.new_empty(weight.numel(), dtype=dtype), weight.new_empty(
            weight.numel(), dtype=dtype
        )

    @register_fake("fastadv::linear")
    def _fake(x: Tensor, packed: Tensor, bias: Tensor | None, y: Tensor) -> None:
        return None

    @register_fake("fastadv::linear_gelu")
    def _fake_gelu(
        x: Tensor, packed: Tensor, bias: Tensor, y: Tensor | None, activated: Tensor
    ) -> None:
        return None

    @register_fake("fastadv::linear_gelu_backward")
    def _fake_gelu_backward(
        grad: Tensor,
        packed: Tensor,
        x: Tensor,
        bias: Tensor,
        grad_x: Tensor,
        activated: Tensor,
        grad_bias: Tensor,
    ) -> None:
        return None

    @register_fake("fastadv::linear_backward_weight")
    def _fake_backward(
        grad: Tensor,
        x: Tensor,
        grad_weight: Tensor,
        grad_bias: Tensor | None,
        squares: Tensor | None,
    ) -> None:
        return None
