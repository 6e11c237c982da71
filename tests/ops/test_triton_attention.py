"""Triton's attention, each kernel's function by itself, against plain PyTorch in float64."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from op_checks import DTYPES
from torch import Tensor
from triton_checks import (
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

from fastadv.ops.philox import keep_mask_ref


def attention(
    qkv: Tensor, lengths: tuple[int, ...], heads: int, kept: Tensor
) -> tuple[Tensor, Tensor]:
    """Output (T, H) and log-sum-exp (T, heads), zeros after the last sequence.

    kept (T * heads, longest) holds the factors of dropout, in float64.
    """
    tokens, width = qkv.shape[0], qkv.shape[1] // 3
    q, k, v = qkv.view(tokens, 3, heads, width // heads).permute(1, 2, 0, 3)
    kept = kept.to(qkv.dtype).view(tokens, heads, -1).transpose(0, 1)
    outs, sums, begin = [], [], 0
    for length in lengths:
        own = slice(begin, begin + length)
        scores = q[:, own] @ k[:, own].mT * (width // heads) ** -0.5
        chances = scores.softmax(-1) * kept[:, own, :length]
        outs.append((chances @ v[:, own]).transpose(0, 1).reshape(length, width))
        sums.append(scores.logsumexp(-1).T)
        begin += length
    rest = tokens - begin
    out = torch.cat([*outs, qkv.new_zeros(rest, width)])
    return out, torch.cat([*sums, qkv.new_zeros(rest, heads)])


# Lengths, heads, head_dim, tokens after the last sequence, leading sequences, dropout.
Case = tuple[tuple[int, ...], int, int, int, int, float]
ATTENTION: dict[str, Case] = {
    "odd": ((1, 5, 0, 33, 17, 70), 2, 64, 3, 1, 0.3),
    "odd head": ((9, 40), 2, 20, 1, 0, 0.0),
    "short": ((3, 1, 1, 20), 3, 16, 0, 2, 0.3),
    "wide head": ((19, 66), 1, 128, 0, 0, 0.3),
    "long": ((150,), 1, 32, 0, 0, 0.3),
    "no dropout": ((2, 65), 2, 64, 0, 0, 0.0),
}


def check_attention(case: Case, dtype: torch.dtype, device: str) -> None:
    """Outputs, log-sum-exps and gradients, twice the same bits."""
    op = kernels("varlen_attention", device)
    lengths, heads, dim, tail, leading, p = case
    tokens, width, longest = sum(lengths) + tail, heads * dim, max(lengths)
    acc, low = acc_of(dtype), {"dtype": dtype, "device": device}
    qkv = normal(tokens, 3 * width, **low)
    offsets = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)
    seed = torch.tensor([SEED], device=device)
    kept = factors(seed, torch.arange(tokens * heads, device=device), longest, p)
    out, lse = empty(tokens, width, **low), empty(tokens, heads, dtype=acc, device=device)
    op.varlen_attention(qkv, offsets, longest, heads, p, seed, SITE, out, lse)
    plain, _ = attention(qkv, lengths, heads, kept)
    _, plain_lse = attention(qkv.to(acc), lengths, heads, kept)
    exact, exact_lse = attention(qkv.double(), lengths, heads, kept)
    # The size of what an output sums: sum of probability times |value|.
    size = qkv.double().clone()
    size[:, 2 * width :].abs_()
    scale = attention(size, lengths, heads, kept)[0]
    assert_close(out, plain, exact, scale)
    assert_close(lse, plain_lse, exact_lse, exact_lse.abs() + 1)
    bare = empty(tokens, width, **low)
    op.varlen_attention(qkv, offsets, longest, heads, p, seed, SITE, bare, None)
    assert torch.equal(bare, out)

    skip = sum(lengths[:leading])
    mine = [t[skip:].contiguous() for t in (normal(tokens, width, **low), qkv, out, lse)]
    grad_qkv, again = (empty(tokens - skip, 3 * width, **low) for _ in range(2))
    for written in (grad_qkv, again):
        op.varlen_attention_backward(
            *mine, offsets[leading:] - skip, longest, heads, p, seed, SITE, skip, written
        )
    assert torch.equal(again, grad_qkv)

    def gradient(to: torch.dtype) -> Tensor:
        leaf = mine[1].to(to, copy=True).requires_grad_()
        out, _ = attention(leaf, lengths[leading:], heads, kept[skip * heads :])
        (got,) = torch.autograd.grad(out, leaf, mine[0].to(to))
        return got

    exact = gradient(torch.float64)
    # Terms of both signs, so an element's error is that of the largest ones.
    assert_close(grad_qkv, gradient(dtype), exact, exact.abs().max().expand_as(exact))
    assert not grad_qkv[tokens - skip - tail :].any()


@pytest.mark.usefixtures("poisoned_memory", "one_thread")
@on_devices
@pytest.mark.parametrize(("case", "dtype"), in_some_dtypes(list(ATTENTION)), ids=str)
def test_varlen_attention(case: str, dtype: torch.dtype, device: str) -> None:
    check_attention(ATTENTION[case], dtype, device)


@pytest.mark.usefixtures("poisoned_memory", "one_thread")
@on_devices
@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize(
    ("longest", "dtype"),
    [(n, dtype) for n in (16, 20, 64, 100) for dtype in DTYPES if n <= 32 or dtype.itemsize == 2],
    ids=str,
)
def test_sequences_of_one_block(longest: int, p: float, dtype: torch.dtype, device: str) -> None:
    """Of each size of block: filled, of one token, of none, and more rows after them than one."""
    check_attention(((3, 1, 0, longest, 9), 2, 64, longest + 8, 1, p), dtype, device)


@pytest.mark.parametrize(
    ("dtype", "longest", "dim", "rows"),
    [
        (torch.bfloat16, 0, 64, 16),
        (torch.float16, 17, 64, 32),
        (torch.bfloat16, 64, 128, 64),
        (torch.bfloat16, 128, 16, 128),
        (torch.bfloat16, 65, 128, None),
        (torch.bfloat16, 129, 64, None),
        (torch.float32, 32, 64, 32),
        (torch.float32, 33, 16, None),
        (torch.float64, 20, 64, 32),
        (torch.bfloat16, 1, 1024, None),
    ],
)
def test_which_sequences_have_one_block(
    dtype: torch.dtype, longest: int, dim: int, rows: int | None
) -> None:
    pytest.importorskip("triton")
    from fastadv.kernels.short_attention import one_block

    found = one_block(dtype, longest, dim)
    assert (found and found["M"]) == rows


@on_devices
def test_attention_far_below_zero(device: str) -> None:
    """Scores near -288: exp(-lse) alone, as beside the end of a sequence, is infinite."""
    op = kernels("varlen_attention", device)
    kind: dict[str, Any] = {"dtype": torch.float32, "device": device}
    sign = torch.tensor([6.0, -6.0, 0.0], device=device).repeat_interleave(64)
    qkv, grad = sign + normal(3, 192, **kind), normal(3, 64, **kind)
    offsets = torch.tensor([0, 3], dtype=torch.int32, device=device)
    out, lse, grad_qkv = empty(3, 64, **kind), empty(3, 1, **kind), empty(3, 192, **kind)
    op.varlen_attention(qkv, offsets, 3, 1, 0.0, None, 0, out, lse)
    op.varlen_attention_backward(grad, qkv, out, lse, offsets, 3, 1, 0.0, None, 0, 0, grad_qkv)
    assert lse.max() < -150

    def run(to: torch.dtype) -> tuple[Tensor, Tensor]:
        leaf = qkv.to(to, copy=True).requires_grad_()
        value, _ = attention(leaf, (3,), 1, torch.ones(3, 3, device=device))
        return value.detach(), torch.autograd.grad(value, leaf, grad.to(to))[0]

    plain, exact = run(torch.float32), run(torch.float64)
    # An error of a unit in a score of some 300 is one of 300 units in its exponential.
    assert_close(out, plain[0], exact[0], 300 * exact[0].abs().max().expand(3, 64))
    assert_close(grad_qkv, plain[1], exact[1], 300 * exact[1].abs().max().expand(3, 192))


@on_devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("length", [20, 150])
def test_attention_drops_what_the_reference_drops(
    length: int, dtype: torch.dtype, device: str
) -> None:
    """With values that are 1 in one place, an output is one probability."""
    op = kernels("varlen_attention", device)
    heads, dim, p = 2, 64, 0.1
    seed = torch.tensor([SEED], device=device)
    offsets = torch.tensor([0, 1, 1 + length], dtype=torch.int32, device=device)
    rows = torch.arange(2 * (1 + length), device=device)
    kept = keep_mask_ref(seed, SITE, rows, length, p).view(1 + length, heads, length)
    for begin in {0, max(0, length - dim)}:
        columns = min(dim, length - begin)
        qkv = torch.zeros(1 + length, 3, heads, dim, dtype=dtype, device=device)
        place = torch.arange(columns, device=device)
        qkv[1 + begin + place, 2, :, place] = 1
        out = empty(1 + length, heads * dim, dtype=dtype, device=device)
        op.varlen_attention(
            qkv.view(1 + length, -1), offsets, length, heads, p, seed, SITE, out, None
        )
        got = out.view(1 + length, heads, dim)[1:, :, :columns] > 0
        assert torch.equal(got, kept[1:, :, begin : begin + columns])


@on_devices
@pytest.mark.parametrize("longest", [0, 300])
def test_no_sequences(longest: int, device: str) -> None:
    """Rows that belong to none get zeros."""
    op = kernels("varlen_attention", device)
    kind: dict[str, Any] = {"dtype": torch.float32, "device": device}
    out, lse, grad_qkv = empty(4, 8, **kind), empty(4, 1, **kind), empty(4, 24, **kind)
    offsets = torch.zeros(1, dtype=torch.int32, device=device)
    qkv = torch.ones(4, 24, **kind)
    op.varlen_attention(qkv, offsets, longest, 1, 0.0, None, 0, out, lse)
    op.varlen_attention_backward(out, qkv, out, lse, offsets, longest, 1, 0.0, None, 0, 0, grad_qkv)
    for written in (out, lse, grad_qkv):
        assert not written.any()
