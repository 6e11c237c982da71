"""Attention within sequences: by hand, against the reference in float64, and its borders."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from op_checks import DEVICES, DTYPES, assert_close, need
from torch import Tensor
from torch.library import opcheck

from fastadv.backends import BACKENDS
from fastadv.ops.varlen_attention import varlen_attention, varlen_attention_ref

OP = "varlen_attention"
SEED = 123456789012345
# Lengths, heads, head size, leading tokens. Queries go by 128, blocks are 32 rows.
CASES = {
    "odd": ((5, 1, 33, 0, 64, 2), 3, 64, 0),
    "leading": ((7, 40, 3, 31), 2, 32, 47),
    "all leading": ((7, 3), 2, 32, 10),
    "one token": ((1,), 12, 64, 0),
    "many of one": ((1,) * 64, 2, 16, 0),
    "long": ((300, 129), 1, 64, 0),
    "512": ((512,), 1, 32, 0),
    "small heads": ((9, 12), 2, 8, 0),
    "odd heads": ((9, 12), 3, 7, 9),
    "empty": ((0, 0), 2, 8, 0),
}


def inputs(
    case: str, dtype: torch.dtype, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor, int, int]:
    """qkv, cu_seqlens, a gradient of the result, heads and leading."""
    lengths, heads, size, leading = CASES[case]
    random = torch.Generator().manual_seed(len(case) * 7 + sum(lengths))
    tokens, hidden = sum(lengths), heads * size
    qkv = torch.randn(tokens, 3 * hidden, generator=random).to(dtype)
    grad = torch.randn(tokens, hidden, generator=random).to(dtype)
    offsets = torch.tensor([0, *lengths]).cumsum(0).int()
    return qkv.to(device), offsets.to(device), grad.to(device), heads, leading


def plain(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, heads: int, p: float, seed: Tensor
) -> Tensor:
    """As one would write it without a kernel: every step in the input's own precision."""
    from fastadv.ops.philox import keep_mask_ref, keep_scale

    tokens, hidden = qkv.shape[0], qkv.shape[1] // 3
    q, k, v = qkv.view(tokens, 3, heads, hidden // heads).unbind(1)
    parts = []
    for begin, end in zip(cu_seqlens.tolist(), cu_seqlens.tolist()[1:], strict=False):
        if begin == end:
            continue
        a, b, c = (t[begin:end].transpose(0, 1) for t in (q, k, v))
        weights = F.softmax((a @ b.mT) / math.sqrt(hidden // heads), -1)
        if p:
            rows = torch.arange(begin * heads, end * heads, device=qkv.device)
            kept = keep_mask_ref(seed, 4, rows, end - begin, p)
            kept = kept.view(end - begin, heads, end - begin).transpose(0, 1)
            weights = weights * kept * keep_scale(p)
        parts.append((weights @ c).transpose(0, 1).reshape(end - begin, hidden))
    return torch.cat(parts) if parts else q.reshape(0, hidden)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend: str, device: str) -> None:
    """Equal keys: the mean of the sequence's values, and nothing of the other's."""
    need(OP, backend, device)
    qkv = torch.zeros(3, 3 * 16, device=device)
    qkv[:, 32] = torch.tensor([2.0, 4.0, 100.0])
    offsets = torch.tensor([0, 2, 3], dtype=torch.int32, device=device)
    qkv.requires_grad_()
    out = varlen_attention(qkv, offsets, 2, 1, backend=backend)
    assert out[:, 0].tolist() == [3.0, 3.0, 100.0]
    out[:, 0].backward(torch.tensor([1.0, 3.0, 5.0], device=device))
    assert qkv.grad is not None
    assert qkv.grad[:, 32].tolist() == [2.0, 2.0, 5.0]


@pytest.mark.usefixtures("poisoned_memory", "two_threads")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize("backend", ["torch", "native"])
@pytest.mark.parametrize("case", CASES)
def test_against_reference(
    case: str, backend: str, p: float, dtype: torch.dtype, device: str
) -> None:
    """The same masks, and no more error than plain PyTorch in the same precision."""
    need(OP, backend, device)
    qkv, offsets, grad, heads, leading = inputs(case, dtype, device)
    seed = torch.tensor([SEED], device=device)
    rest = (offsets, int(offsets.diff().max()), heads)

    def run(function: object, x: Tensor) -> list[Tensor]:
        x = x.clone().requires_grad_()
        y = function(x, *rest, p=p, seed=seed)  # type: ignore[operator]
        flow = torch.cat([grad[:leading] * 0, grad[leading:]]).to(y.dtype)
        return [y.detach(), *torch.autograd.grad(y, x, flow)]

    exact = run(partial(varlen_attention_ref, site=4), qkv.double())
    expected = run(plain, qkv)
    got = run(partial(varlen_attention, site=4, leading=leading, backend=backend), qkv)
    # Outputs and gradients are sums of values of size 1, of products of three of them.
    for values in zip(got, expected, exact, strict=True):
        assert_close(*values, scale=torch.full_like(values[2], 8.0))


@pytest.mark.parametrize("backend", ["torch", "native"])
def test_leading_rows_give_nothing(backend: str) -> None:
    need(OP, backend, "cpu")
    qkv, offsets, grad, heads, leading = inputs("leading", torch.float32)
    qkv.requires_grad_()
    out = varlen_attention(qkv, offsets, 40, heads, leading=leading, backend=backend)
    (found,) = torch.autograd.grad(out, qkv, grad)
    assert (found[:leading] == 0).all() and (found[leading:] != 0).any(1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", ["torch", "native"])
def test_sequences_never_see_each_other(backend: str, dtype: torch.dtype) -> None:
    need(OP, backend, "cpu")
    qkv, offsets, _, heads, _ = inputs("odd", dtype)
    out = varlen_attention(qkv, offsets, 64, heads, backend=backend)
    changed = qkv.clone()
    changed[6:39] = torch.randn_like(changed[6:39]) * 3
    again = varlen_attention(changed, offsets, 64, heads, backend=backend)
    assert torch.equal(again[:6], out[:6]) and torch.equal(again[39:], out[39:])
    assert not torch.equal(again[6:39], out[6:39])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_on_any_number_of_threads(dtype: torch.dtype) -> None:
    need(OP, "native", "cpu")
    qkv, offsets, grad, heads, _ = inputs("odd", dtype)
    seed, before, results = torch.tensor([SEED]), torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        x = qkv.clone().requires_grad_()
        y = varlen_attention(x, offsets, 64, heads, p=0.1, seed=seed, backend="native")
        results.append((y.detach(), *torch.autograd.grad(y, x, grad)))
    torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize("backend", ["torch", "native"])
def test_gradcheck(backend: str) -> None:
    need(OP, backend, "cpu")
    qkv = torch.randn(6, 12, dtype=torch.float64, requires_grad=True)
    offsets = torch.tensor([0, 4, 6], dtype=torch.int32)

    def attend(x: Tensor) -> Tensor:
        seed = torch.tensor([SEED])
        return varlen_attention(x, offsets, 4, 2, p=0.3, seed=seed, backend=backend)

    assert torch.autograd.gradcheck(attend, (qkv,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    need(OP, "native", "cpu")
    qkv, offsets, grad, heads, _ = inputs("small heads", dtype)
    out, lse = torch.empty_like(grad), torch.empty(21, heads)
    seed = torch.tensor([SEED])
    opcheck(
        torch.ops.fastadv.varlen_attention.default,
        (qkv, offsets, 12, heads, 0.1, seed, 4, out, lse),
        test_utils=("test_schema", "test_faketensor"),
    )
    opcheck(
        torch.ops.fastadv.varlen_attention_backward.default,
        (grad, qkv, out, lse, offsets, 12, heads, 0.1, seed, 4, 0, torch.empty_like(qkv)),
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 5}, r"expected \(T, 3 H\) with H a multiple of 5"),
        ({"heads": 0}, "heads is 0, expected at least 1"),
        ({"leading": 3}, "leading is 3, expected the end of a sequence"),
        ({"leading": 99}, "leading is 99, expected at least 0 and at most the rows, 21"),
        ({"p": 1.0}, "p is 1.0, expected a probability"),
        ({"cu_seqlens": torch.tensor([0, 9, 21])}, "cu_seqlens has dtype torch.int64"),
        ({"cu_seqlens": torch.tensor([0, 9, 20]).int()}, "goes from 0 to 20, expected 0 to 21"),
        ({"cu_seqlens": torch.tensor([0, 9, 5, 21]).int()}, "cu_seqlens falls from 9 to 5"),
    ],
)
def test_refused(change: dict[str, object], message: str) -> None:
    need(OP, "native", "cpu")
    qkv, offsets, _, heads, _ = inputs("small heads", torch.float32)
    arguments = {"qkv": qkv, "cu_seqlens": offsets, "max_seqlen": 12, "heads": heads} | change
    with pytest.raises(ValueError, match=message):
        varlen_attention(**arguments, backend="native")  # type: ignore[arg-type]
