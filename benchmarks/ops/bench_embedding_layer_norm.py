"""Embeddings, layer norm and dropout: every backend, the reference compiled, PyTorch's functions.

pytest benchmarks/ops/bench_embedding_layer_norm.py --benchmark-group-by=group
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

from fastadv.ops.embedding_layer_norm import embedding_layer_norm, embedding_layer_norm_ref

# A tenth of mBERT's table: otherwise most of the time would go to zeroing its dense gradient.
WORDS, PLACES, HIDDEN, EPS, P = 12000, 512, 768, 1e-12, 0.1
# Tokens: 32 sentences (NER), 16 news texts, and enough to fill a GPU.
SIZES = {"cpu": [640, 2880], "cuda": [640, 2880, 16384]}
CASES = [(device, tokens) for device in DEVICES for tokens in SIZES[device]]
WAYS = ("torch", "native", "triton", "compiled", "separate")

Embed = Callable[..., Tensor]


def separate(ids: Tensor, places: Tensor, word: Tensor, position: Tensor, kind: Tensor,
             gain: Tensor, bias: Tensor, **options: Any) -> Tensor:  # fmt: skip
    """PyTorch's own functions, which draw their own mask."""
    z = F.embedding(ids, word) + F.embedding(places, position) + kind
    return F.dropout(F.layer_norm(z, (HIDDEN,), gain, bias, EPS), options["p"])


def embed_of(way: str, device: str) -> Embed:
    if way == "compiled":
        return compiled_or_skip(embedding_layer_norm_ref)
    if way == "separate":
        return separate
    need("embedding_layer_norm", way, device)
    return partial(embedding_layer_norm, backend=way)


def check(
    embed: Embed, ids: list[Tensor], leaves: list[Tensor], grad: Tensor, options: dict[str, Any]
) -> None:
    """Result and gradients against the reference in float64, before anything is timed."""
    double = [x.detach().double().requires_grad_() for x in leaves]
    wanted, got = (
        embedding_layer_norm_ref(*ids, *double, **options),
        embed(*ids, *leaves, **options),
    )
    # Float32 sums of 768 numbers near 1, and over the tokens for the gradients.
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)
    wanted_grads = torch.autograd.grad(wanted, double, grad.double())
    for some, other in zip(torch.autograd.grad(got, leaves, grad), wanted_grads, strict=True):
        torch.testing.assert_close(some.double(), other, rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize("p", [0.0, P], ids=["plain", "dropout"])
@pytest.mark.parametrize(("device", "tokens"), CASES)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("way", WAYS)
def test_bench(
    benchmark: Any, way: str, backward: bool, device: str, tokens: int, p: float
) -> None:
    kind = f"{'dropout' if p else 'plain'} {'both' if backward else 'forward'}"
    benchmark.group = f"{device} {tokens}x{HIDDEN} {kind}"
    embed = embed_of(way, device)
    random = torch.Generator().manual_seed(tokens)
    ids = [torch.randint(0, WORDS, (tokens,), generator=random).to(device)]
    ids.append(torch.arange(tokens, device=device) % 180)
    shapes = ((WORDS, HIDDEN), (PLACES, HIDDEN), (HIDDEN,), (HIDDEN,), (HIDDEN,))
    leaves = [torch.randn(shape, generator=random).to(device).requires_grad_() for shape in shapes]
    grad = torch.randn(tokens, HIDDEN, generator=random).to(device)
    options = {"eps": EPS, "p": p, "seed": torch.tensor([7], device=device)}
    # A way that draws its own mask cannot be compared, so it is checked without dropout.
    check(embed, ids, leaves, grad, options | ({"p": 0.0} if way == "separate" else {}))

    def step() -> None:
        with torch.set_grad_enabled(backward):
            y = embed(*ids, *leaves, **options)
        if backward:
            torch.autograd.grad(y, leaves, grad)

    benchmark.pedantic(synchronised(step, device), rounds=30, warmup_rounds=5)
    # Reads a row of the word table and writes one. With the backward it reads two and adds one to
    # the gradient of the table, which is zeroed first. The smaller tables are not counted.
    moved = grad.nbytes * (6 if backward else 2) + (leaves[0].nbytes if backward else 0)
    benchmark.extra_info["GB/s"] = round(moved / median_seconds(benchmark, step, device) / 1e9, 2)
