"""Softmax cross-entropy, forward and backward: every backend, in place too, the reference compiled,
and F.cross_entropy on float32 logits.

pytest benchmarks/ops/bench_cross_entropy.py --benchmark-group-by=group
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

from fastadv.ops.cross_entropy import cross_entropy, cross_entropy_ref

# Masked tokens and vocabulary of batches with 4096 and 8192 tokens, 15 of 100 masked; and a GPU's.
SIZES = {"cpu": [(600, 16384), (1229, 24576)], "cuda": [(1229, 24576), (9830, 119547)]}
CASES = [(device, *size) for device in DEVICES for size in SIZES[device]]
WAYS = ("torch", "native", "native in place", "triton", "triton in place", "compiled", "library")

Loss = Callable[[Tensor, Tensor], Tensor]


def library(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), targets, reduction="none")


def loss_of(way: str, device: str) -> Loss:
    if way == "compiled":
        return compiled_or_skip(cross_entropy_ref)
    if way == "library":
        return library
    backend = way.split()[0]
    need("cross_entropy", backend, device)
    return partial(cross_entropy, inplace_backward=way.endswith("in place"), backend=backend)


def check(loss: Loss, logits: Tensor, targets: Tensor, grad: Tensor) -> None:
    """Losses and gradient against the reference, before anything is timed."""

    def run(function: Loss) -> tuple[Tensor, Tensor]:
        leaf = logits.clone().requires_grad_()
        losses = function(leaf, targets)
        (grad_logits,) = torch.autograd.grad(losses, leaf, grad)
        return losses.detach(), grad_logits

    (losses, grad_logits), (wanted, wanted_grad) = run(loss), run(cross_entropy_ref)
    # Float32 sums of some ten thousand numbers in another order, and exp's 3e-6 in 16 bits.
    torch.testing.assert_close(losses, wanted, rtol=1e-6, atol=1e-5)
    # Rounded to the logits' type after errors of that size: at most a neighbouring number.
    unit = torch.finfo(logits.dtype).eps
    torch.testing.assert_close(grad_logits, wanted_grad, rtol=max(unit, 1e-5), atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16], ids=str)
@pytest.mark.parametrize(("device", "rows", "classes"), CASES)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("way", WAYS)
def test_bench(
    benchmark: Any,
    way: str,
    backward: bool,
    device: str,
    rows: int,
    classes: int,
    dtype: torch.dtype,
) -> None:
    benchmark.group = f"{device} {rows}x{classes} {dtype} {'both' if backward else 'forward'}"
    loss = loss_of(way, device)
    random = torch.Generator().manual_seed(rows)
    logits = (3 * torch.randn(rows, classes, generator=random)).to(device, dtype)
    targets = torch.randint(classes, (rows,), generator=random).to(device)
    # The gradient of a mean, as in a training step.
    grad = torch.full((rows,), 1 / rows, device=device)
    check(loss, logits, targets, grad)
    logits.requires_grad_(backward)

    def step() -> None:
        # In place, the next step's logits are a gradient: different numbers, but as much work.
        losses = loss(logits, targets)
        if backward:
            torch.autograd.grad(losses, logits, grad)

    benchmark.pedantic(synchronised(step, device), rounds=20, warmup_rounds=3)
    # Reads the logits; reads them again and writes their gradient.
    moved = logits.nbytes * (3 if backward else 1)
    benchmark.extra_info["GB/s"] = round(moved / median_seconds(benchmark, step, device) / 1e9, 2)
