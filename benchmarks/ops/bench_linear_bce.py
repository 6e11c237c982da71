"""The discriminator's loss, forward and backward: every backend, the reference compiled, and
PyTorch's addmv with binary_cross_entropy_with_logits.

pytest benchmarks/ops/bench_linear_bce.py --benchmark-group-by=group
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

from fastadv.ops.linear_bce import linear_bce, linear_bce_ref

HIDDEN = 768
# Rows: the two halves of a batch of 32, and larger numbers, where bandwidth shows.
ROWS = (64, 640, 5760, *((16384,) if "cuda" in DEVICES else ()))
WAYS = ("torch", "native", "triton", "compiled", "addmv")
RELAXATIONS = (0.0, 0.5)

Bce = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def addmv(h: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """PyTorch's own functions."""
    logits = torch.addmv(bias.expand(h.shape[0]), h.float(), weight)
    return F.binary_cross_entropy_with_logits(logits, targets), logits.detach()


def bce_of(way: str, device: str, relaxation: float) -> Bce:
    if way == "compiled":
        return compiled_or_skip(partial(linear_bce_ref, relaxation=relaxation))
    if way == "addmv":
        if relaxation:
            pytest.skip("PyTorch has no bounded cross-entropy")
        return addmv
    need("linear_bce", way, device)
    return partial(linear_bce, relaxation=relaxation, backend=way)


def check(bce: Bce, leaves: list[Tensor], targets: Tensor, relaxation: float) -> None:
    """Loss, logits and gradients against the reference, before anything is timed."""

    def run(function: Bce) -> tuple[Tensor, ...]:
        loss, logits = function(*leaves, targets)
        return (loss, logits, *torch.autograd.grad(loss, leaves))

    reference = partial(linear_bce_ref, relaxation=relaxation)
    for got, wanted in zip(run(bce), run(reference), strict=True):
        kind = torch.finfo(got.dtype)
        # Float32 sums of 768 or some thousand numbers near 1 in another order, rounded at most once
        # more to 16 bits: one unit in the last place.
        torch.testing.assert_close(got, wanted, rtol=max(kind.eps, 1e-4), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("gradient", ["none", "h", "params"])
@pytest.mark.parametrize("relaxation", RELAXATIONS)
@pytest.mark.parametrize("way", WAYS)
def test_bench(
    benchmark: Any,
    way: str,
    relaxation: float,
    gradient: str,
    device: str,
    rows: int,
    dtype: torch.dtype,
) -> None:
    what = f"gradient of {gradient}" + (f" relaxation {relaxation}" if relaxation else "")
    benchmark.group = f"{device} {rows}x{HIDDEN} {dtype} {what}"
    bce = bce_of(way, device, relaxation)
    random = torch.Generator().manual_seed(rows)
    h = torch.randn(rows, HIDDEN, generator=random).to(device, dtype)
    weight = (torch.randn(HIDDEN, generator=random) / HIDDEN**0.5).to(device)
    bias = torch.zeros(1, device=device)
    targets = (torch.arange(rows, device=device) % 2).float()
    check(bce, [x.clone().requires_grad_() for x in (h, weight, bias)], targets, relaxation)
    leaves = {"none": [], "h": [h], "params": [weight, bias]}[gradient]
    for leaf in leaves:
        leaf.requires_grad_()

    def step() -> None:
        loss, _ = bce(h, weight, bias, targets)
        if leaves:
            torch.autograd.grad(loss, leaves)

    benchmark.pedantic(synchronised(step, device), rounds=50, warmup_rounds=5)
    moved = h.nbytes * (2 if leaves else 1)
    benchmark.extra_info["GB/s"] = round(moved / median_seconds(benchmark, step, device) / 1e9, 2)
