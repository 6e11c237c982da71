"""Triton's bias_gelu, and what it shares with the norms: masks, sums over rows, no rows at all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from op_checks import need
from torch import Tensor
from triton_checks import (
    EPS,
    SEED,
    SITE,
    acc_of,
    assert_close,
    empty,
    factors,
    in_dtypes,
    kernels,
    normal,
    on_devices,
)

from fastadv.ops.philox import philox_ref


@pytest.mark.usefixtures("poisoned_memory", "one_thread")
@on_devices
@in_dtypes
@pytest.mark.parametrize("shape", [(1, 1), (9, 77), (83, 520), (5, 3072)], ids=str)
def test_bias_gelu(shape: tuple[int, int], dtype: torch.dtype, device: str) -> None:
    op = kernels("bias_gelu", device)
    acc = acc_of(dtype)
    x, grad = (normal(*shape, dtype=dtype, device=device) * 2 for _ in range(2))
    bias = normal(shape[1], dtype=acc, device=device)
    y = empty(*shape, dtype=dtype, device=device)
    op.bias_gelu(x, bias, y)

    def run(to: torch.dtype) -> tuple[Tensor, Tensor]:
        u = (x.to(to) + bias.to(to)).requires_grad_()
        value = F.gelu(u)
        value.backward(grad.to(to))
        assert u.grad is not None
        return value.detach(), u.grad

    plain, exact = run(acc), run(torch.float64)
    # 0.5 + 0.5 erf loses what is small beside 0.5, in PyTorch too.
    scale = x.double().abs() + bias.double().abs()
    assert_close(y, plain[0].to(dtype), exact[0], scale)
    for again in (None, empty(*shape, dtype=dtype, device=device)):
        grad_x = empty(*shape, dtype=dtype, device=device)
        grad_bias = empty(shape[1], dtype=acc, device=device)
        op.bias_gelu_backward(grad, x, bias, grad_x, again, grad_bias)
        size = grad.double().abs() * (1 + scale)
        assert_close(grad_x, plain[1].to(dtype), exact[1], size)
        assert_close(grad_bias, plain[1].sum(0), exact[1].sum(0), size.sum(0))
        if again is not None:
            assert torch.equal(again, y)


@on_devices
@pytest.mark.parametrize("p", [0.1, None])
def test_layer_norms_drop_what_the_reference_drops(p: float | None, device: str) -> None:
    tokens, hidden = 13, 300
    if p is None:
        # So that the number of element (0, 0) is the threshold itself.
        key = torch.tensor([SEED & 0xFFFFFFFF, SEED >> 32 & 0xFFFFFFFF])
        p = (int(philox_ref(torch.tensor([0, 0, SITE, 0]), key)[0]) & 0xFFFF) / 65536
    kind: dict[str, Any] = {"dtype": torch.float32, "device": device}
    seed = torch.tensor([SEED], device=device)
    one, zero = torch.ones(hidden, **kind), torch.zeros(hidden, **kind)
    z, stats = empty(tokens, hidden, **kind), empty(tokens, 2, **kind)
    op = kernels("dropout_add_layer_norm", device)
    op.dropout_add_layer_norm(
        torch.zeros(tokens, hidden, **kind), one, torch.zeros(tokens, hidden, **kind), one, zero,
        EPS, p, seed, SITE, 0, empty(tokens, hidden, **kind), None, z, stats,
    )  # fmt: skip
    kept = factors(seed, torch.arange(tokens, device=device), hidden, p).float()
    assert torch.equal(z, kept)
    ids = torch.zeros(tokens, dtype=torch.int64, device=device)
    y = empty(tokens, hidden, **kind)
    op = kernels("embedding_layer_norm", device)
    op.embedding_layer_norm(
        ids, ids, one[None], one[None], None, one, one, EPS, p, seed, SITE, y, None
    )
    assert torch.equal(y, kept)


@pytest.mark.usefixtures("poisoned_memory", "one_thread")
@on_devices
def test_parts_of_several_blocks(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of the rows has more than one block only from a thousand rows on: fewer parts."""
    kind: dict[str, Any] = {"dtype": torch.float64, "device": device}
    tokens, hidden = 150, 40
    x, rows = normal(tokens, hidden, **kind), normal(tokens, hidden, **kind)
    stats = normal(tokens, 2, **kind)
    vector, table = normal(hidden, **kind), normal(tokens, hidden, **kind)
    ids, seed = torch.arange(tokens, device=device), torch.tensor([SEED], device=device)
    drop = (0.3, seed, SITE, 0)

    def run() -> list[Tensor]:
        norm = kernels("dropout_add_layer_norm", device)
        norm_grads = [empty(n, hidden, **kind) for n in (tokens, tokens, 3)]
        norm.dropout_add_layer_norm_backward(rows, None, x, stats, vector, *drop, *norm_grads)
        embedding = kernels("embedding_layer_norm", device)
        grads = [torch.zeros_like(table), torch.zeros_like(table), torch.zeros_like(vector)]
        grads.append(empty(2, hidden, **kind))
        embedding.embedding_layer_norm_backward(
            rows, None, ids, ids, table, table, vector, vector, EPS, *drop, None, -1, -1, *grads
        )
        gelu = kernels("bias_gelu", device)
        gelu_grads = [empty(tokens, hidden, **kind), empty(tokens, hidden, **kind)]
        gelu_grads.append(empty(hidden, **kind))
        gelu.bias_gelu_backward(rows, x, vector, *gelu_grads)
        return [*norm_grads, *grads, *gelu_grads]

    wanted = run()
    for op in ("dropout_add_layer_norm", "embedding_layer_norm", "bias_gelu"):
        module = kernels(op, device)
        cut = module.partition
        monkeypatch.setattr(
            module, "partition", lambda rows, block, _, cut=cut: cut(rows, block, 2)
        )
    for got, one in zip(run(), wanted, strict=True):
        # Another order of 150 terms of size 1 to 10.
        torch.testing.assert_close(got, one, rtol=1e-12, atol=1e-12)


@on_devices
def test_nothing_to_do(device: str) -> None:
    """No rows: outputs of sums are zeros, and nothing is launched."""
    kind: dict[str, Any] = {"dtype": torch.float32, "device": device}
    rows, one = torch.empty(0, 8, **kind), torch.ones(8, **kind)
    vectors = empty(3, 8, **kind)
    kernels("dropout_add_layer_norm", device).dropout_add_layer_norm_backward(
        rows, None, rows, rows[:, :2], one, 0.0, None, 0, 0, rows, rows, vectors
    )
    assert not vectors.any()
    grad_bias = empty(8, **kind)
    kernels("bias_gelu", device).bias_gelu_backward(rows, rows, one, rows, None, grad_bias)
    assert not grad_bias.any()
    ids = torch.empty(0, dtype=torch.int64, device=device)
    table, vectors = torch.zeros(3, 8, **kind), empty(2, 8, **kind)
    kernels("embedding_layer_norm", device).embedding_layer_norm_backward(
        rows, None, ids, ids, table, table, one, one, EPS, 0.0, None, 0, 0, None, -1, -1, table,
        table, one, vectors,
    )  # fmt: skip
    assert not vectors.any()
    assert not table.any()


@on_devices
def test_segments_add_up_what_sorting_does(device: str) -> None:
    """The tables' gradients, from tokens that the host put in order and from a sort on the device;
    tokens of the padding row are in no segment, and rows without tokens are left as they were.
    """
    need("embedding_layer_norm", "triton", device)
    from fastadv.kernels.embedding_layer_norm import embedding_layer_norm_backward

    tokens, hidden, rows, places = 83, 77, 9, 40
    random = torch.Generator().manual_seed(5)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random).to(device)

    ids = torch.randint(rows - 1, (tokens,), generator=random)
    positions = torch.cat([torch.arange(37), torch.arange(46) % 37])
    grad, word, position = drawn(tokens, hidden), drawn(rows, hidden), drawn(places, hidden)
    gain, padding = drawn(hidden), 3
    segments = []
    for of, count, kept in ((ids, rows, ids != padding), (positions, places, ids > -1)):
        named = kept.nonzero()[:, 0]
        order = named[of[named].argsort(stable=True)]
        starts = torch.cat([torch.zeros(1), of[named].bincount(minlength=count).cumsum(0)])
        segments += [order.int().to(device), starts.int().to(device)]
    found = []
    for known in (None, tuple(segments)):
        sums, place_sums = word * 0 + 1, position * 0 + 1
        embedding_layer_norm_backward(
            grad, None, ids.to(device), positions.to(device), word, position, None, gain, 1e-12,
            0.0, None, 0, 0, ids.to(device), padding if known is None else -1, -1, sums, place_sums,
            None, grad.new_empty(2, hidden), known,
        )  # fmt: skip
        found.append((sums, place_sums))
    assert found[1][0][[padding, rows - 1]].eq(1).all() and found[1][0][0].ne(1).all()
    # The same tokens in the same order.
    for sorted_, by_segment in zip(*found, strict=True):
        torch.testing.assert_close(by_segment, sorted_, rtol=1e-6, atol=1e-6)
