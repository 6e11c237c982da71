"""A step of Adam on the matrices of two layers of BERT: every backend, torch.optim.Adam fused.

pytest benchmarks/ops/bench_adam.py --benchmark-group-by=group
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from bench_common import DEVICES, median_seconds, need, synchronised
from torch import Tensor

from fastadv.ops.adam import adam, adam_apply, adam_begin, gradient_norm, rates_of

LAYERS = 2
SHAPES = ((2304, 768), (768, 768), (3072, 768), (768, 3072))
# With layouts: what a CPU that multiplies bfloat16 matrices needs after a step, in one pass and in
# two. Flat: a GPU's step, over one tensor and its bfloat16 copy, decided on the device.
WAYS = ("torch", "native", "triton", "fused", "native, layouts", "fused, layouts", "flat")
LR, BETA1, BETA2, EPS = 2e-5, 0.9, 0.999, 1e-8


class State:
    """Weights and Adam's state for them, after a few steps."""

    def __init__(self, device: str) -> None:
        random = torch.Generator().manual_seed(3)

        def new(size: float) -> list[Tensor]:
            return [
                (torch.randn(shape, generator=random) * size).to(device)
                for shape in SHAPES * LAYERS
            ]

        self.weights, self.grads, self.exp_avgs = new(0.02), new(1e-3), new(1e-3)
        # Nowhere close to zero: such a weight would move by hundreds of rates.
        self.exp_avg_sqs = [x.square() + 1e-8 for x in new(1e-3)]
        self.compensations = [torch.zeros_like(x, dtype=torch.bfloat16) for x in self.weights]
        self.step = 10


def ours(backend: str, state: State, layouts: list[tuple[Tensor, Tensor]]) -> Callable[[], None]:
    def step() -> None:
        state.step += 1
        adam(
            state.weights, state.compensations, state.grads, state.exp_avgs, state.exp_avg_sqs,
            [state.step] * len(state.weights), lr=LR, beta1=BETA1, beta2=BETA2, eps=EPS,
            layouts=layouts, backend=backend,
        )  # fmt: skip

    return step


def fused(state: State, layouts: bool) -> Callable[[], None]:
    """PyTorch's own, on the same memory; layouts are made from its weights every time."""
    parameters = [torch.nn.Parameter(x) for x in state.weights]
    optimizer = torch.optim.Adam(parameters, lr=LR, betas=(BETA1, BETA2), eps=EPS, fused=True)
    for i, parameter in enumerate(parameters):
        parameter.grad = state.grads[i]
        optimizer.state[parameter] = {
            "step": torch.tensor(float(state.step), device=parameter.device),
            "exp_avg": state.exp_avgs[i],
            "exp_avg_sq": state.exp_avg_sqs[i],
        }

    def step() -> None:
        optimizer.step()
        if layouts:
            with torch.no_grad():
                for parameter in parameters:
                    torch.ops.fastadv.linear_pack(parameter, torch.bfloat16)

    return step


def flat(state: State, device: str) -> Callable[[], None]:
    """The tensors of `state` become parts of one tensor each."""
    lists = [state.weights, state.compensations, state.grads, state.exp_avgs, state.exp_avg_sqs]
    whole = [torch.cat([x.flatten() for x in tensors]) for tensors in lists]
    sizes = [x.numel() for x in state.weights]
    for tensors, one in zip(lists, whole, strict=True):
        tensors[:] = [part.view(x.shape) for part, x in zip(one.split(sizes), tensors, strict=True)]
    rates = rates_of(LR, BETA1, BETA2, EPS).to(device)
    counters = torch.tensor([state.step], device=device)
    flags, numbers = counters.new_zeros(3), rates.new_zeros(1, 10)
    low = whole[0].bfloat16()

    def step() -> None:
        norm = gradient_norm([whole[2]], backend="triton")
        adam_begin(norm, rates, counters, flags, None, numbers, skips=False, backend="triton")
        adam_apply(*whole, low, numbers[0], backend="triton")

    return step


def step_of(way: str, state: State, device: str) -> Callable[[], None]:
    packed: list[tuple[Tensor, Tensor]] = []
    if way.endswith("layouts"):
        need("linear", "native", device)
        packed = [torch.ops.fastadv.linear_pack(x, torch.bfloat16) for x in state.weights]
        if packed[0][0].dim() == 2:
            pytest.skip("no bfloat16 products on this processor")
    if way == "flat":
        need("adam", "triton", device)
        return flat(state, device)
    backend = way.split(",")[0]
    if backend == "fused":
        return fused(state, bool(packed))
    need("adam", backend, device)
    return ours(backend, state, packed)


def check(way: str, device: str) -> None:
    """One step against the formula in float64, before anything is timed."""
    state, before = State(device), State(device)
    step_of(way, state, device)()
    t = before.step + 1
    for i, weight in enumerate(state.weights):
        g, m, v = (x[i].double() for x in (before.grads, before.exp_avgs, before.exp_avg_sqs))
        m, v = BETA1 * m + (1 - BETA1) * g, BETA2 * v + (1 - BETA2) * g * g
        root = (v / (1 - BETA2**t)).sqrt() + EPS
        wanted = before.weights[i].double() - LR * m / (1 - BETA1**t) / root
        # One unit in the last place of the weight, and a dozen roundings of steps of up to ten
        # rates.
        torch.testing.assert_close(weight.double(), wanted, rtol=1.2e-7, atol=1e-9)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("way", WAYS)
def test_bench(benchmark: Any, way: str, device: str) -> None:
    count = sum(n * k for n, k in SHAPES) * LAYERS
    benchmark.group = f"{device} {count} elements{', layouts' if 'layouts' in way else ''}"
    state = State(device)
    step = step_of(way, state, device)
    check(way, device)
    benchmark.pedantic(synchronised(step, device), rounds=20, warmup_rounds=3)
    # Reads weight, gradient and both moments, and writes all but the gradient. A compensation adds
    # two bytes both ways, two layouts four bytes; flat reads the gradient once more for its norm,
    # and writes a copy.
    moved = 28 + 4 * ("fused" not in way) + 4 * ("layouts" in way) + 6 * (way == "flat")
    benchmark.extra_info["GB/s"] = round(
        moved * count / median_seconds(benchmark, step, device) / 1e9, 2
    )
