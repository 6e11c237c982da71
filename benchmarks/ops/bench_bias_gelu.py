"""Bias and GELU, forward and backward: every backend, the reference compiled, F.gelu.

pytest benchmarks/ops/bench_bias_gelu.py --benchmark-group-by=group
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from bench_common import DEVICES, compiled_or_skip, median_seconds, need, synchronised
from torch import Tensor

from fastadv.ops.bias_gelu import bias_gelu, bias_gelu_ref

INTERMEDIATE = 3072
# Tokens: 32 sentences (NER), 16 news texts, and enough to fill a GPU.
SIZES = {"cpu": [640, 2880], "cuda": [640, 2880, 16384]}
CASES = [(device, tokens) for device in DEVICES for tokens in SIZES[device]]
WAYS = ("torch", "native", "triton", "compiled", "F.gelu")

Gelu = Callable[[Tensor, Tensor], Tensor]


def in_one_type(x: Tensor, bias: Tensor) -> Tensor:
    """PyTorch's own, as in a model cast to one type: the sum is rounded to that type first."""
    return F.gelu(x + bias.to(x.dtype))


def gelu_of(way: str, device: str) -> Gelu:
    if way == "compiled":
        return compiled_or_skip(bias_gelu_ref)
    if way == "F.gelu":
        return in_one_type
    need("bias_gelu", way, device)
    return partial(bias_gelu, backend=way)


def check(gelu: Gelu, x: Tensor, bias: Tensor, grad: Tensor) -> None:
    """Result and gradients against the reference in float64, before anything is timed."""
    double = [x.double().requires_grad_(), bias.double().requires_grad_()]
    leaves = [x.clone().requires_grad_(), bias.clone().requires_grad_()]
    wanted, got = bias_gelu_ref(*double), gelu(*leaves)
    unit = torch.finfo(x.dtype).eps
    # Two roundings to x's type, of numbers up to 8: PyTorch's own has both.
    torch.testing.assert_close(got.double(), wanted, rtol=unit, atol=8 * unit)
    wanted_grads = torch.autograd.grad(wanted, double, grad.double())
    got_grads = torch.autograd.grad(got, leaves, grad)
    torch.testing.assert_close(got_grads[0].double(), wanted_grads[0], rtol=unit, atol=8 * unit)
    # PyTorch's bias gradient sums rounded numbers, and is rounded again.
    limit = 8 * unit * x.shape[0] ** 0.5
    torch.testing.assert_close(got_grads[1].double(), wanted_grads[1], rtol=unit, atol=limit)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("device", "tokens"), CASES)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("way", WAYS)
def test_bench(
    benchmark: Any, way: str, backward: bool, device: str, tokens: int, dtype: torch.dtype
) -> None:
    benchmark.group = (
        f"{device} {tokens}x{INTERMEDIATE} {dtype} {'both' if backward else 'forward'}"
    )
    gelu = gelu_of(way, device)
    random = torch.Generator().manual_seed(tokens)
    x = torch.randn(tokens, INTERMEDIATE, generator=random).to(device, dtype)
    bias = torch.randn(INTERMEDIATE, generator=random).to(device)
    grad = torch.randn(tokens, INTERMEDIATE, generator=random).to(device, dtype)
    check(gelu, x, bias, grad)
    leaves = [x.requires_grad_(backward), bias.requires_grad_(backward)]

    def step() -> None:
        y = gelu(x, bias)
        if backward:
            torch.autograd.grad(y, leaves, grad)

    benchmark.pedantic(synchronised(step, device), rounds=30, warmup_rounds=5)
    # Reads x and writes y; reads the gradient and x and writes x's gradient.
    moved = x.nbytes * (5 if backward else 2)
    benchmark.extra_info["GB/s"] = round(moved / median_seconds(benchmark, step, device) / 1e9, 2)
