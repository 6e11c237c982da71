"""Attention within sequences, forward and backward, against PyTorch's own functions.

pytest benchmarks/ops/bench_varlen_attention.py --benchmark-group-by=group
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import Any

import pytest
import torch
from bench_common import DEVICES, compiled_or_skip, median_seconds, need, synchronised
from torch import Tensor
from torch.nn import functional as F

from fastadv.ops.varlen_attention import varlen_attention, varlen_attention_ref

HEADS, SIZE = 12, 64
WAYS = ("native", "triton", "compiled", "sdpa", "flash")


def drawn(count: int, mean: int, spread: int, longest: int) -> list[int]:
    """Lengths of `count` sequences, normally distributed and clipped to the allowed range."""
    random = torch.Generator().manual_seed(mean)
    lengths = mean + spread * torch.randn(count, generator=random)
    return lengths.round().clamp(3, longest).int().tolist()


# Sequences of one length, and batches like those of the paper's tasks.
SHAPES = {
    f"{n} x {length}": [length] * n
    for n, length in ((16, 20), (64, 20), (16, 128), (16, 180), (8, 512))
} | {
    "32 of about 20 (NER)": drawn(32, 20, 10, 64),
    "32 of about 180 (news)": drawn(32, 180, 60, 256),
}

Attention = Callable[[Tensor, Tensor, int, float, Tensor], Tensor]


def sdpa(qkv: Tensor, cu_seqlens: Tensor, length: int, p: float, seed: Tensor) -> Tensor:
    """PyTorch's own, on sequences of one length; with dropout it takes its plain path."""
    tokens, hidden = qkv.shape[0], qkv.shape[1] // 3
    q, k, v = qkv.view(-1, length, 3, HEADS, SIZE).permute(2, 0, 3, 1, 4).unbind(0)
    out = F.scaled_dot_product_attention(q, k, v, dropout_p=p)
    return out.transpose(1, 2).reshape(tokens, hidden)


def flash(qkv: Tensor, cu_seqlens: Tensor, length: int, p: float, seed: Tensor) -> Tensor:
    """The flash kernel that PyTorch ships for CUDA, on packed sequences; it draws its own masks."""
    q, k, v = qkv.view(-1, 3, HEADS, SIZE).unbind(1)
    # Neither causal nor returning a copy of the mask.
    rest = (cu_seqlens, cu_seqlens, length, length, p, False, False)
    out: Tensor = torch.ops.aten._flash_attention_forward(q, k, v, *rest)[0]
    return out.reshape(qkv.shape[0], -1)


def reference(qkv: Tensor, cu_seqlens: Tensor, length: int, p: float, seed: Tensor) -> Tensor:
    return varlen_attention_ref(qkv, cu_seqlens, length, HEADS, p=p, seed=seed)


def attention_of(way: str, device: str, lengths: list[int]) -> Attention:
    """The attention function of a way; skips where it cannot run or does not take these lengths."""
    if way == "sdpa":
        if len(set(lengths)) > 1:
            pytest.skip("scaled_dot_product_attention takes sequences of one length")
        return sdpa
    if way == "flash":
        if device == "cpu":
            pytest.skip("PyTorch's flash attention of packed sequences is for CUDA")
        if not torch.backends.cuda.is_flash_attention_available():
            pytest.skip("this PyTorch is built without flash attention")
        if torch.cuda.get_device_capability() < (8, 0):
            pytest.skip("PyTorch's flash attention needs sm_80")
        return flash
    if way == "compiled":
        if len(set(lengths)) > 1:
            pytest.skip("torch.compile compiles the loop over sequences for every length, minutes")
        return compiled_or_skip(reference)
    need("varlen_attention", way, device)
    op: Any = partial(varlen_attention, backend=way)
    return lambda qkv, offsets, length, p, seed: op(qkv, offsets, length, HEADS, p=p, seed=seed)


def check(attention: Attention, qkv: Tensor, grad: Tensor, rest: tuple[Any, ...]) -> None:
    """Result and gradient against float32, without dropout: every way draws its own masks."""
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
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("way", WAYS)
def test_bench(benchmark: Any, way: str, backward: bool, shape: str, p: float, device: str) -> None:
    part = "both" if backward else "forward"
    benchmark.group = f"{device} {shape}, dropout {p}, {part}"
    lengths = SHAPES[shape]
    attention = attention_of(way, device, lengths)
    random = torch.Generator().manual_seed(len(lengths))
    tokens, hidden, longest = sum(lengths), HEADS * SIZE, max(lengths)
    qkv = torch.randn(tokens, 3 * hidden, generator=random).to(device, torch.bfloat16)
    grad = torch.randn(tokens, hidden, generator=random).to(device, torch.bfloat16)
    offsets = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
    seed = torch.tensor([1], device=device)
    check(attention, qkv, grad, (offsets, longest, 0.0, seed))
    qkv.requires_grad_(backward)

    def step() -> None:
        out = attention(qkv, offsets, longest, p, seed)
        if backward:
            torch.autograd.grad(out, qkv, grad)

    benchmark.pedantic(synchronised(step, device), rounds=15, warmup_rounds=3)
    # Two matrix products forward, five backward; each 2 * length^2 * hidden operations a sequence.
    operations = (14 if backward else 4) * sum(n * n for n in lengths) * hidden
    rate = operations / median_seconds(benchmark, step, device)
    benchmark.extra_info["TFLOP/s"] = round(rate / 1e12, 2)
