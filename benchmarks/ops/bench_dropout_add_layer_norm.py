"""Bias, dropout, residual, layer norm: every backend, the reference compiled, PyTorch's functions.

pytest benchmarks/ops/bench_dropout_add_layer_norm.py --benchmark-group-by=group
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

from fastadv.ops.dropout_add_layer_norm import (
    dropout_add_layer_norm,
    dropout_add_layer_norm_ref,
)

HIDDEN, EPS, P = 768, 1e-12, 0.1
# Tokens: 32 sentences (NER), 16 news texts, and enough to fill a GPU.
SIZES = {"cpu": [640, 2880], "cuda": [640, 2880, 16384]}
CASES = [(device, tokens) for device in DEVICES for tokens in SIZES[device]]
WAYS = ("torch", "native", "triton", "compiled", "separate")

Norm = Callable[..., Tensor]


def separate(x: Tensor, bias: Tensor, residual: Tensor, gain: Tensor, beta: Tensor,
             **options: Any) -> Tensor:  # fmt: skip
    """PyTorch's own three functions, which draw their own mask."""
    z = F.dropout(x.float() + bias, options["p"]) + residual
    return F.layer_norm(z, (HIDDEN,), gain, beta, EPS)


def norm_of(way: str, device: str) -> Norm:
    if way == "compiled":
        return compiled_or_skip(dropout_add_layer_norm_ref)
    if way == "separate":
        return separate
    need("dropout_add_layer_norm", way, device)
    return partial(dropout_add_layer_norm, backend=way)


def check(norm: Norm, leaves: list[Tensor], grad: Tensor, options: dict[str, Any]) -> None:
    """Result and gradients against the reference in float64, before anything is timed."""
    double = [x.detach().double().requires_grad_() for x in leaves]
    wanted, got = dropout_add_layer_norm_ref(*double, **options), norm(*leaves, **options)
    # Float32 sums of 768 numbers near 1.
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)
    wanted_grads = torch.autograd.grad(wanted, double, grad.double())
    got_grads = torch.autograd.grad(got, leaves, grad)
    # z is kept in x's type: its error is the rounding error of a number near 4.
    unit = torch.finfo(leaves[0].dtype).eps
    for some, other in zip(got_grads[:3:2], wanted_grads[:3:2], strict=True):
        torch.testing.assert_close(some.double(), other, rtol=unit, atol=8 * unit)
    for some, other in zip(got_grads[1:], wanted_grads[1:], strict=True):
        limit = 1e-4 + 8 * unit * grad.shape[0] ** 0.5
        torch.testing.assert_close(some.double(), other, rtol=1e-5, atol=limit)


@pytest.mark.parametrize("p", [0.0, P], ids=["plain", "dropout"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("device", "tokens"), CASES)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("way", WAYS)
def test_bench(
    benchmark: Any, way: str, backward: bool, device: str, tokens: int, dtype: torch.dtype, p: float
) -> None:
    kind = f"{dtype} {'dropout' if p else 'plain'} {'both' if backward else 'forward'}"
    benchmark.group = f"{device} {tokens}x{HIDDEN} {kind}"
    norm = norm_of(way, device)
    random = torch.Generator().manual_seed(tokens)
    x, residual, grad = (torch.randn(tokens, HIDDEN, generator=random).to(device) for _ in "123")
    vectors = [torch.randn(HIDDEN, generator=random).to(device) for _ in "123"]
    leaves = [x.to(dtype), vectors[0], residual, *vectors[1:]]
    for leaf in leaves:
        leaf.requires_grad_()
    options = {"eps": EPS, "p": p, "seed": torch.tensor([7], device=device), "site": 2}
    # A way that draws its own mask cannot be compared, so it is checked without dropout.
    check(norm, leaves, grad, options | ({"p": 0.0} if way == "separate" else {}))

    def step() -> None:
        with torch.set_grad_enabled(backward):
            y = norm(*leaves, **options)
        if backward:
            torch.autograd.grad(y, leaves, grad)

    benchmark.pedantic(synchronised(step, device), rounds=30, warmup_rounds=5)
    # Reads x and the residual, writes y. With the backward it also writes and reads z, reads one
    # gradient and writes two.
    low, full = leaves[0].nbytes, residual.nbytes
    moved = 4 * low + 4 * full if backward else low + 2 * full
    benchmark.extra_info["GB/s"] = round(moved / median_seconds(benchmark, step, device) / 1e9, 2)
