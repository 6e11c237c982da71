"""Mean pooling, forward and backward: every backend, the reference compiled, segment_reduce.

pytest benchmarks/ops/bench_masked_mean_pool.py --benchmark-group-by=group
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from bench_common import DEVICES, compiled_or_skip, median_seconds, need, synchronised
from torch import Tensor

from fastadv.ops.masked_mean_pool import masked_mean_pool, masked_mean_pool_ref

HIDDEN = 768
# Tokens and sequences: a batch of 32 sentences (NER), of 32 news texts, and of 91 on a GPU.
SIZES = {"cpu": [(640, 32), (5760, 32)], "cuda": [(640, 32), (5760, 32), (16384, 91)]}
CASES = [(device, *size) for device in DEVICES for size in SIZES[device]]
WAYS = ("torch", "native", "triton", "compiled", "segment_reduce")

Pool = Callable[[Tensor, Tensor], Tensor]


def segment_reduce(x: Tensor, cu_seqlens: Tensor) -> Tensor:
    """PyTorch's own; it needs int64 offsets and keeps the input's type."""
    return torch.segment_reduce(x.float(), "mean", offsets=cu_seqlens.long(), axis=0)


def pool_of(way: str, device: str) -> Pool:
    if way == "compiled":
        return compiled_or_skip(masked_mean_pool_ref)
    if way == "segment_reduce":
        return segment_reduce
    need("masked_mean_pool", way, device)
    return partial(masked_mean_pool, backend=way)


def make(device: str, tokens: int, batch: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x (tokens, 768) and offsets of sequences whose lengths vary by about a factor of three."""
    random = torch.Generator().manual_seed(tokens)
    cuts = torch.rand(batch, generator=random) + 0.5
    offsets = torch.cat([torch.zeros(1), (cuts.cumsum(0) / cuts.sum() * tokens)]).round().int()
    offsets[-1] = tokens
    x = torch.randn(tokens, HIDDEN, generator=random).to(device, dtype)
    return x, offsets.to(device)


def check(pool: Pool, x: Tensor, cu_seqlens: Tensor, grad: Tensor) -> None:
    """Result and gradient against the reference, before anything is timed."""
    x = x.clone().requires_grad_()
    wanted = masked_mean_pool_ref(x, cu_seqlens)
    # Float32 sums of up to about 500 numbers near 1, in another order.
    torch.testing.assert_close(pool(x, cu_seqlens), wanted, rtol=1e-5, atol=1e-5)
    (got_grad,) = torch.autograd.grad(pool(x, cu_seqlens), x, grad)
    (wanted_grad,) = torch.autograd.grad(wanted, x, grad)
    # Rounded once to x's type: one unit in its last place.
    kind = torch.finfo(x.dtype)
    torch.testing.assert_close(got_grad, wanted_grad, rtol=kind.eps, atol=kind.eps * 1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("device", "tokens", "batch"), CASES)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("way", WAYS)
def test_bench(
    benchmark: Any, way: str, backward: bool, device: str, tokens: int, batch: int,
    dtype: torch.dtype,
) -> None:  # fmt: skip
    benchmark.group = f"{device} {tokens}x{HIDDEN} {dtype} {'both' if backward else 'forward'}"
    pool = pool_of(way, device)
    x, cu_seqlens = make(device, tokens, batch, dtype)
    grad = torch.randn(batch, HIDDEN, device=device)
    check(pool, x, cu_seqlens, grad)
    x.requires_grad_(backward)

    def step() -> None:
        mean = pool(x, cu_seqlens)
        if backward:
            torch.autograd.grad(mean, x, grad)

    benchmark.pedantic(synchronised(step, device), rounds=30, warmup_rounds=5)
    moved = x.nbytes * (2 if backward else 1)
    benchmark.extra_info["GB/s"] = round(moved / median_seconds(benchmark, step, device) / 1e9, 2)
