"""Matrix products with weights: y = x W^T, and both gradients, against PyTorch's own.

pytest benchmarks/ops/bench_linear.py --benchmark-group-by=group
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from bench_common import DEVICES, median_seconds, need, synchronised
from torch import Tensor
from torch.nn import functional as F
from torch.nn.parameter import Parameter

from fastadv.ops.linear import linear_ref
from fastadv.weights.layouts import WeightLayouts

# Depth and width of the four matrix products in a layer of multilingual BERT.
WEIGHTS = [(768, 2304), (768, 768), (768, 3072), (3072, 768)]
# Tokens of a batch of 16 sentences (NER) and of 16 news texts.
TOKENS = {"cpu": [330, 2880], "cuda": [330, 2880, 16384]}
CASES = [(device, tokens, *size) for device in DEVICES for tokens in TOKENS[device]
         for size in WEIGHTS]  # fmt: skip
PARTS = ("forward", "grad_x", "grad_weight")
# The public function lays out its weight in every call. The encoder does that once per update, so
# it is not timed here (but separately, as "layouts").
WAYS = ("ours", "pytorch")


def make(device: str, tokens: int, depth: int, width: int) -> dict[str, Any]:
    """Operands in bfloat16 and buffers for the three results."""
    random = torch.Generator().manual_seed(tokens)
    x, grad = (torch.randn(tokens, n, generator=random) for n in (depth, width))
    weight = torch.randn(width, depth, generator=random) / depth**0.5
    x, grad = (t.to(device, torch.bfloat16) for t in (x, grad))
    return {
        "x": x,
        "grad": grad,
        "weight": Parameter(weight.to(device)),
        "forward": torch.empty_like(grad),
        "grad_x": torch.empty_like(x),
        "grad_weight": torch.empty(width, depth, device=device),
    }


def work_of(way: str, part: str, data: dict[str, Any]) -> Callable[[], object]:
    x, grad, weight = data["x"], data["grad"], data["weight"]
    layouts, low = WeightLayouts(torch.bfloat16, None), weight.detach().bfloat16()
    ways: dict[tuple[str, str], Callable[[], object]] = {
        ("ours", "forward"): lambda: layouts.product(x, weight, None, data["forward"]),
        ("ours", "grad_x"): lambda: layouts.backward_input(grad, weight, data["grad_x"]),
        ("ours", "grad_weight"): lambda: layouts.backward_weight(
            grad, x, data["grad_weight"], None
        ),
        ("pytorch", "forward"): lambda: data["forward"].copy_(F.linear(x, low)),
        ("pytorch", "grad_x"): lambda: data["grad_x"].copy_(grad @ low),
        # The gradient of a float32 weight is float32.
        ("pytorch", "grad_weight"): lambda: data["grad_weight"].copy_(grad.t() @ x),
    }
    return ways[way, part]


def check(part: str, data: dict[str, Any]) -> None:
    """The result against float32, before anything is timed."""
    x, grad, weight = (data[n].detach().float() for n in ("x", "grad", "weight"))
    expected = {
        "forward": lambda: linear_ref(x, weight.bfloat16().float()),
        "grad_x": lambda: grad @ weight.bfloat16().float(),
        "grad_weight": lambda: grad.t() @ x,
    }[part]()
    # Rounded once to bfloat16: half a unit in the last place, plus a little for the sums' order.
    error = (data[part].float() - expected).abs().max()
    assert error <= 2**-8 * expected.abs().max(), part


@pytest.mark.parametrize(("device", "tokens", "depth", "width"), CASES)
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("way", WAYS)
def test_bench(
    benchmark: Any, way: str, part: str, device: str, tokens: int, depth: int, width: int
) -> None:
    need("linear", "native" if device == "cpu" else "torch", device)
    benchmark.group = f"{device} {tokens} tokens {depth} to {width} {part}"
    data = make(device, tokens, depth, width)
    work = work_of(way, part, data)
    work()
    check(part, data)
    benchmark.pedantic(synchronised(lambda: _run(work), device), rounds=20, warmup_rounds=3)
    rate = 2 * tokens * depth * width / median_seconds(benchmark, lambda: _run(work), device)
    benchmark.extra_info["TFLOP/s"] = round(rate / 1e12, 2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("depth", "width"), WEIGHTS)
def test_layouts(benchmark: Any, device: str, depth: int, width: int) -> None:
    """Both copies of a weight, made once per update."""
    need("linear", "native" if device == "cpu" else "torch", device)
    benchmark.group = f"{device} layouts {depth} to {width}"
    data = make(device, 1, depth, width)
    weight: Tensor = data["weight"]

    def step() -> None:
        WeightLayouts(torch.bfloat16, None).product(data["x"], weight, None, data["forward"])

    benchmark.pedantic(synchronised(step, device), rounds=20, warmup_rounds=3)


def _run(work: Callable[[], object]) -> None:
    work()
