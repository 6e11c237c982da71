"""Attention within sequences, forward and backward, against scaled_dot_product_attention.

pytest benchmarks/bench_varlen_attention.py --benchmark-group-by=group
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from bench_common import DEVICES, compiled_or_skip, need, synchronised
from torch import Tensor
from torch.nn import functional as F

from fastadv.ops.varlen_attention import varlen_attention, varlen_attention_ref

HEADS, SIZE = 12, 64
# Sequences and their common length: PyTorch's own takes no others without padding.
SHAPES = [(16, 20), (64, 20), (16, 128), (16, 180), (8, 512)]
WAYS = ("native", "triton", "compiled", "sdpa")

Attention = Callable[[Tensor, Tensor, int, float, Tensor], Tensor]


def sdpa(qkv: Tensor, cu_seqlens: Tensor, length: int, p: float, seed: Tensor) -> Tensor:
    """PyTorch's own, on sequences of one length; with dropout its plain path."""
    tokens, hidden = qkv.shape[0], qkv.shape[1] // 3
    q, k, v = qkv.view(-1, length, 3, HEADS, SIZE).permute(2, 0, 3, 1, 4).unbind(0)
    out = F.scaled_dot_product_attention(q, k, v, dropout_p=p)
    return out.transpose(1, 2).reshape(tokens, hidden)


def reference(qkv: Tensor, cu_seqlens: Tensor, length: int, p: float, seed: Tensor) -> Tensor:
    return varlen_attention_ref(qkv, cu_seqlens, length, HEADS, p=p, seed=seed)


def attention_of(way: str, device: str) -> Attention:
    if way == "sdpa":
        return sdpa
    if way == "compiled":
        return compiled_or_skip(reference)
    need("varlen_attention", way, device)
    op: Any = partial(varlen_attention, backend=way)
    return lambda qkv, offsets, length, p, seed: op(qkv, offsets, length, HEADS, p=p, seed=seed)


def check(attention: Attention, qkv: Tensor, grad: Tensor, rest: tuple[Any, ...]) -> None:
    """Result and gradient without dropout (masks are each one's own) against float32."""
    x = qkv.detach().clone().requires_grad_()
    wide = qkv.detach().float().requires_grad_()
    out, wanted = attention(x, *rest), reference(wide, *rest)
    (found,) = torch.autograd.grad(out, x, grad)
    (expected,) = torch.autograd.grad(wanted, wide, grad.float())
    # Operands, probabilities and results are rounded to bfloat16, a few units of 2^-8 each.
    for a, b in ((out, wanted), (found, expected)):
        assert (a.float() - b).abs().max() <= 2**-5 * b.abs().max()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize(("sequences", "length"), SHAPES)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("way", WAYS)
def test_bench(
    benchmark: Any, way: str, backward: bool, sequences: int, length: int, p: float, device: str
) -> None:
    part = "both" if backward else "forward"
    benchmark.group = f"{device} {sequences} x {length}, dropout {p}, {part}"
    attention = attention_of(way, device)
    random = torch.Generator().manual_seed(length)
    tokens, hidden = sequences * length, HEADS * SIZE
    qkv = torch.randn(tokens, 3 * hidden, generator=random).to(device, torch.bfloat16)
    grad = torch.randn(tokens, hidden, generator=random).to(device, torch.bfloat16)
    offsets = torch.arange(0, tokens + 1, length, dtype=torch.int32, device=device)
    seed = torch.tensor([1], device=device)
    check(attention, qkv, grad, (offsets, length, 0.0, seed))
    qkv.requires_grad_(backward)

    def step() -> None:
        out = attention(qkv, offsets, length, p, seed)
        if backward:
            torch.autograd.grad(out, qkv, grad)

    benchmark.pedantic(synchronised(step, device), rounds=15, warmup_rounds=3)
    # Two products forward, five backward; each 2 * length^2 * hidden operations a sequence.
    operations = (14 if backward else 4) * sequences * length**2 * hidden
    rate = operations / benchmark.stats.stats.median
    benchmark.extra_info["TFLOP/s"] = round(rate / 1e12, 2)
