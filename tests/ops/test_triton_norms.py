"""Triton's kernels but attention, each by itself, against plain PyTorch in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from triton_checks import (
    EPS,
    SEED,
    SITE,
    acc_of,
    assert_close,
    empty,
    factors,
    in_some_dtypes,
    kernels,
    normal,
    on_devices,
)


def layer_norm_grads(
    dy: Tensor, z: Tensor, mean: Tensor, rstd: Tensor, gain: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradient of z, and the size of its terms, in the type of the arguments."""
    xhat = (z - mean) * rstd
    g = dy * gain
    dz = rstd * (g - g.mean(1, keepdim=True) - xhat * (g * xhat).mean(1, keepdim=True))
    size = g.abs() + g.abs().mean(1, keepdim=True)
    return dz, rstd * (size + xhat.abs() * (g * xhat).abs().mean(1, keepdim=True))


# Tokens, columns, leading tokens; with or without dropout.
LN_CASES = [
    ((9, 77, 0), 0.0),
    ((21, 130, 8), 0.3),
    ((1, 1, 0), 0.0),
    ((5, 768, 5), 0.3),
    ((37, 24, 1), 0.3),
    ((3, 1100, 0), 0.3),
]


@pytest.mark.usefixtures("poisoned_memory", "one_thread")
@on_devices
@pytest.mark.parametrize(("case", "dtype"), in_some_dtypes(LN_CASES), ids=str)
def test_dropout_add_layer_norm(
    case: tuple[tuple[int, int, int], float], dtype: torch.dtype, device: str
) -> None:
    op = kernels("dropout_add_layer_norm", device)
    (tokens, hidden, leading), p = case
    acc, kind = acc_of(dtype), {"dtype": acc_of(dtype), "device": device}
    low = {"dtype": dtype, "device": device}
    x, residual = normal(tokens, hidden, **low), normal(tokens, hidden, shift=1, **kind)
    bias, gain, beta = (normal(hidden, **kind) for _ in range(3))
    seed = torch.tensor([SEED], device=device)
    kept = factors(seed, torch.arange(tokens, device=device), hidden, p)
    y, y_low = empty(tokens, hidden, **kind), empty(tokens, hidden, **low)
    z, stats = empty(tokens - leading, hidden, **low), empty(tokens - leading, 2, **kind)
    op.dropout_add_layer_norm(
        x, bias, residual, gain, beta, EPS, p, seed, SITE, leading, y, y_low, z, stats
    )

    def forward(to: torch.dtype) -> tuple[Tensor, ...]:
        z = (x.to(to) + bias.to(to)) * kept.to(to) + residual.to(to)
        y = F.layer_norm(z, (hidden,), gain.to(to), beta.to(to), EPS)
        return y, z, z.mean(1), 1 / (z.var(1, correction=0) + EPS).sqrt()

    plain, exact = forward(acc), forward(torch.float64)
    size = (x.double().abs() + bias.double().abs()) * kept + residual.double().abs()
    spread = (size + size.mean(1, keepdim=True)) * exact[3][:, None]
    harder = 1 + spread.square().mean(1, keepdim=True)
    size_y = spread * harder * gain.double().abs() + beta.double().abs()
    assert_close(y, plain[0], exact[0], size_y)
    assert_close(y_low, plain[0].to(dtype), exact[0], size_y)
    plain, exact = tuple(t[leading:] for t in plain), tuple(t[leading:] for t in exact)
    size, harder = size[leading:], harder[leading:]
    assert_close(z, plain[1].to(dtype), exact[1], size)
    assert_close(stats[:, 0], plain[2], exact[2], size.mean(1))
    if hidden > 1:  # of a single column the variance is nothing but rounding
        assert_close(stats[:, 1], plain[3], exact[3], exact[3] * harder[:, 0])
    bare = empty(tokens, hidden, **kind)
    op.dropout_add_layer_norm(
        x, bias, residual, gain, beta, EPS, p, seed, SITE, leading, bare, None, None, None
    )
    assert torch.equal(bare, y)
    if hidden == 1:
        return

    rows = tokens - leading
    grad, grad_low = normal(rows, hidden, **kind), normal(rows, hidden, **low)
    for extra in (None, grad_low):
        grad_x, grad_z = empty(rows, hidden, **low), empty(rows, hidden, **kind)
        vectors = empty(3, hidden, **kind)
        op.dropout_add_layer_norm_backward(
            grad, extra, z, stats, gain, p, seed, SITE, leading, grad_x, grad_z, vectors
        )

        def backward(to: torch.dtype, extra: Tensor | None = extra) -> tuple[Tensor, ...]:
            dy = grad.to(to) if extra is None else grad.to(to) + extra.to(to)
            mean, rstd = stats.to(to).unsqueeze(-1).unbind(1)
            dz, size = layer_norm_grads(dy, z.to(to), mean, rstd, gain.to(to))
            return dz, dz * kept[leading:].to(to), dy * (z.to(to) - mean) * rstd, dy, size

        plain, exact = backward(acc), backward(torch.float64)
        assert_close(grad_z, plain[0], exact[0], exact[4])
        assert_close(grad_x, plain[1].to(dtype), exact[1], exact[4] * kept[leading:])
        sizes = (exact[4] * kept[leading:], exact[3].abs() * harder, exact[3].abs())
        for row, i, terms in zip(vectors, (1, 2, 3), sizes, strict=True):
            assert_close(row, plain[i].sum(0), exact[i].sum(0), terms.sum(0))


@on_devices
def test_dropout_add_layer_norm_against_autograd(device: str) -> None:
    """In float64 nothing is rounded on the way, so the whole chain must agree to 1e-11."""
    op = kernels("dropout_add_layer_norm", device)
    kind: dict[str, Any] = {"dtype": torch.float64, "device": device}
    x, residual, grad = (normal(11, 200, **kind) for _ in range(3))
    bias, gain, beta = (normal(200, **kind) for _ in range(3))
    seed = torch.tensor([SEED], device=device)
    kept = factors(seed, torch.arange(11, device=device), 200, 0.3)
    inputs = [t.requires_grad_() for t in (x, residual, bias, gain, beta)]
    z = (x + bias) * kept + residual
    F.layer_norm(z, (200,), gain, beta, EPS)[4:].backward(grad[4:])
    y, z, stats = empty(11, 200, **kind), empty(7, 200, **kind), empty(7, 2, **kind)
    with torch.no_grad():
        op.dropout_add_layer_norm(
            x, bias, residual, gain, beta, EPS, 0.3, seed, SITE, 4, y, None, z, stats
        )
        grads = (empty(7, 200, **kind), empty(7, 200, **kind), empty(3, 200, **kind))
        op.dropout_add_layer_norm_backward(
            grad[4:].contiguous(), None, z, stats, gain, 0.3, seed, SITE, 4, *grads
        )
    got = (grads[0], grads[1], *grads[2])
    for mine, leaf in zip(got, inputs, strict=True):
        assert leaf.grad is not None
        exact = leaf.grad[4:] if leaf.dim() == 2 else leaf.grad
        torch.testing.assert_close(mine, exact, rtol=1e-11, atol=1e-11)


@pytest.mark.usefixtures("poisoned_memory", "one_thread")
@on_devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("tokens", "hidden", "leading", "p", "has_type"),
    [(1, 24, 0, 0.0, True), (9, 77, 3, 0.0, False), (90, 300, 40, 0.3, True)],
)
def test_embedding_layer_norm(
    tokens: int,
    hidden: int,
    leading: int,
    p: float,
    has_type: bool,
    dtype: torch.dtype,
    device: str,
) -> None:
    op = kernels("embedding_layer_norm", device)
    kind, low = {"dtype": dtype, "device": device}, torch.bfloat16
    if dtype == torch.float64:
        low = dtype
    word, position = normal(50, hidden, **kind), normal(11, hidden, **kind)
    gain, bias = normal(hidden, **kind), normal(hidden, **kind)
    token_type = normal(hidden, **kind) if has_type else None
    ids, places = torch.randint(0, 50, (tokens,)), torch.arange(tokens) % 11
    # A row named more often than a block holds, the first and the last row, and a padding row.
    ids[tokens // 3 :: 2], ids[0], ids[-1] = 7, 0, 49
    ids, places = ids.to(device), places.to(device)
    seed = torch.tensor([SEED], device=device)
    kept = factors(seed, torch.arange(tokens, device=device), hidden, p)
    y, y_low = empty(tokens, hidden, **kind), empty(tokens, hidden, dtype=low, device=device)
    op.embedding_layer_norm(
        ids, places, word, position, token_type, gain, bias, EPS, p, seed, SITE, y, y_low
    )

    def run(to: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [t.to(to, copy=True).requires_grad_() for t in (word, position, gain, bias)]
        third = None if token_type is None else token_type.to(to, copy=True).requires_grad_()
        z = leaves[0][ids] + leaves[1][places]
        z = z if third is None else z + third
        y = F.layer_norm(z, (hidden,), leaves[2], leaves[3], EPS) * kept.to(to)
        y[leading:].backward(grad.to(to))
        return y.detach(), *[t.grad for t in leaves], None if third is None else third.grad  # type: ignore[return-value]

    rows = tokens - leading
    grad = normal(rows, hidden, **kind)
    plain, exact = run(dtype), run(torch.float64)
    # Normalised values are of size 1, and a few times that; some 10 is the most.
    size = 10 * gain.double().abs() + bias.double().abs()
    assert_close(y, plain[0], exact[0], size)
    assert_close(y_low, plain[0].to(low), exact[0], size)

    # The same sum of gradients, in two parts.
    grad_low = normal(rows, hidden, dtype=low, device=device)
    for first, second in ((grad, None), (grad - grad_low.to(dtype), grad_low)):
        before_word, before_place = normal(50, hidden, **kind), normal(11, hidden, **kind)
        grad_word, grad_place = before_word.clone(), before_place.clone()
        grad_type = torch.zeros(hidden, **kind) if has_type else None
        vectors = empty(2, hidden, **kind)
        op.embedding_layer_norm_backward(
            first, second, ids[leading:].contiguous(), places[leading:].contiguous(), word,
            position, token_type, gain, EPS, p, seed, SITE, leading, None, 49, 3, grad_word,
            grad_place, grad_type, vectors,
        )  # fmt: skip
        assert torch.equal(grad_word[49], before_word[49])
        assert torch.equal(grad_place[3], before_place[3])
        for got, before, i, skip in (
            (grad_word, before_word, 1, 49),
            (grad_place, before_place, 2, 3),
        ):
            wanted = [before.to(t[i].dtype) + t[i] for t in (plain, exact)]
            for t in wanted:
                t[skip] = before[skip].to(t.dtype)
            # The terms of a sum are of the size of the largest gradient of a row.
            assert_close(got, *wanted, exact[i].abs().max() + before.abs())
        named = set(ids[leading:].tolist())
        idle = torch.tensor([i not in named for i in range(50)], device=device)
        assert torch.equal(grad_word[idle], before_word[idle])
        size = exact[3].abs().max() + exact[4].abs().max()
        assert_close(vectors[0], plain[3], exact[3], size)
        assert_close(vectors[1], plain[4], exact[4], size)
        if grad_type is not None:
            assert_close(grad_type, plain[5], exact[5], exact[5].abs().max())
