"""Mean pooling: by hand, against the reference in float64, and as an operator of PyTorch."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from op_checks import DEVICES, DTYPES, POOL_CASES, check_pool, need
from torch.library import opcheck

from fastadv.backends import BACKENDS
from fastadv.ops import masked_mean_pool

OP = "masked_mean_pool"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend: str, device: str) -> None:
    need(OP, backend, device)
    x = torch.tensor([[1.0, 10.0], [3.0, 30.0], [5.0, 50.0], [8.0, 80.0]], device=device)
    x.requires_grad_()
    cu_seqlens = torch.tensor([0, 3, 3, 4], dtype=torch.int32, device=device)
    mask = torch.tensor([True, False, True, True], device=device)
    mean = masked_mean_pool(x, cu_seqlens, mask, backend=backend)
    assert mean.tolist() == [[3.0, 30.0], [0.0, 0.0], [8.0, 80.0]]
    mean.backward(torch.tensor([[2.0, 4.0], [9.0, 9.0], [1.0, 0.5]], device=device))
    assert x.grad is not None
    assert x.grad.tolist() == [[1.0, 2.0], [0.0, 0.0], [1.0, 2.0], [1.0, 0.5]]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("number", [torch.bool, torch.int64])
def test_padded_by_hand(backend: str, device: str, number: torch.dtype) -> None:
    need(OP, backend, device)
    x = torch.tensor([[[2.0], [4.0], [7.0]], [[1.0], [9.0], [9.0]]], device=device)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]], device=device).to(number)
    assert masked_mean_pool(x, mask=mask, backend=backend).tolist() == [[3.0], [1.0]]


@pytest.mark.usefixtures("poisoned_memory", "two_threads")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", POOL_CASES)
def test_against_reference(case: str, backend: str, dtype: torch.dtype, device: str) -> None:
    need(OP, backend, device)
    check_pool(partial(masked_mean_pool, backend=backend), POOL_CASES[case], dtype, device)


@pytest.mark.parametrize("backend", BACKENDS)
def test_masked_rows_are_not_read(backend: str) -> None:
    need(OP, backend, "cpu")
    x = torch.full((4, 9), torch.nan)
    x[2] = 5
    mask = torch.tensor([False, False, True, False])
    cu_seqlens = torch.tensor([0, 4], dtype=torch.int32)
    assert masked_mean_pool(x, cu_seqlens, mask, backend=backend).tolist() == [[5.0] * 9]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend: str, device: str) -> None:
    need(OP, backend, device)
    x = torch.randn(9, 5, dtype=torch.float64, device=device, requires_grad=True)
    mask = torch.tensor([1, 0, 1, 1, 0, 1, 1, 1, 1], dtype=torch.bool, device=device)
    cu_seqlens = torch.tensor([0, 4, 4, 5, 8], dtype=torch.int32, device=device)
    pool = partial(masked_mean_pool, backend=backend)
    assert torch.autograd.gradcheck(lambda x: pool(x, cu_seqlens, mask), (x,))
    assert torch.autograd.gradcheck(lambda x: pool(x.view(3, 3, 5), None, mask.view(3, 3)), (x,))


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device: str) -> None:
    need(OP, "native", device)
    x = torch.randn(9, 5, device=device)
    cu_seqlens = torch.tensor([0, 4, 4, 9], dtype=torch.int32, device=device)
    mask = torch.rand(9, device=device) < 0.5
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    for offsets in (cu_seqlens, None):
        for rows in (mask, None):
            opcheck(
                torch.ops.fastadv.masked_mean_pool.default, (x, offsets, rows, 3), test_utils=checks
            )
            grad, counts = torch.randn(3, 5, device=device), torch.ones(3, device=device)
            opcheck(
                torch.ops.fastadv.masked_mean_pool_backward.default,
                (grad, counts, offsets, rows, 9, torch.bfloat16),
                test_utils=checks,
            )


@pytest.mark.parametrize("backend", ["torch", "native"])
def test_compiles_in_one_graph(backend: str) -> None:
    need(OP, backend, "cpu")
    x = torch.randn(9, 5, requires_grad=True)
    cu_seqlens = torch.tensor([0, 4, 4, 9], dtype=torch.int32)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return masked_mean_pool(x, cu_seqlens, backend=backend).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    (grad,) = torch.autograd.grad(compiled(x), x)
    # The same kernels in the same order, so the same bits.
    assert torch.equal(grad, torch.autograd.grad(loss(x), x)[0])


def test_same_bits_on_any_number_of_threads() -> None:
    need(OP, "native", "cpu")
    lengths = torch.randint(0, 90, (37,))
    cu_seqlens = torch.cat([torch.zeros(1), lengths.cumsum(0)]).int()
    x = torch.randn(int(lengths.sum()), 771, requires_grad=True)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        mean = masked_mean_pool(x, cu_seqlens, backend="native")
        results.append((mean, *torch.autograd.grad(mean.square().sum(), x)))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert torch.equal(other[0], results[0][0])
        assert torch.equal(other[1], results[0][1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_conversions_are_exact(dtype: torch.dtype) -> None:
    """Each 16-bit number to float32, and float32 bit patterns to 16 bits, as PyTorch does it."""
    need(OP, "native", "cpu")
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    x = every.view(-1, 64)
    each = torch.arange(x.shape[0] + 1, dtype=torch.int32)
    mean, counts = torch.ops.fastadv.masked_mean_pool(x, each, None, x.shape[0])
    # Adding a number to zero gives +0 for -0, which compares equal.
    torch.testing.assert_close(mean, x.float(), rtol=0, atol=0, equal_nan=True)

    patterns = torch.randint(-(2**31), 2**31 - 1, (4096, 64), dtype=torch.int64).int()
    # Halfway cases and their neighbours, where the rule for ties shows.
    ties = every.float().view(torch.int32).view(-1, 64)[:, None] + torch.tensor(
        [0xFFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001], dtype=torch.int32
    ).view(1, -1, 1)
    grad = torch.cat([patterns, ties.reshape(-1, 64)]).view(torch.float32)
    rows = grad.shape[0]
    got = torch.ops.fastadv.masked_mean_pool_backward(
        grad, torch.ones(rows), torch.arange(rows + 1, dtype=torch.int32), None, rows, dtype
    )
    assert counts.eq(1).all()
    wanted = grad.to(dtype)
    assert torch.equal(got.isnan(), wanted.isnan())
    number = ~wanted.isnan()
    assert torch.equal(got[number].view(torch.int16), wanted[number].view(torch.int16))


def test_nothing_is_saved_without_grad() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    with torch.no_grad():
        assert masked_mean_pool(x, torch.tensor([0, 4], dtype=torch.int32)).grad_fn is None


PACKED = torch.zeros(4, 3)
OFFSETS = torch.tensor([0, 4], dtype=torch.int32)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((PACKED.int(), OFFSETS, None), "x has dtype torch.int32"),
        ((PACKED[None], OFFSETS, None), "x has shape .1, 4, 3., expected .T, H."),
        ((PACKED, OFFSETS.long(), None), "cu_seqlens has dtype torch.int64, expected int32"),
        ((PACKED, OFFSETS[:0], None), "cu_seqlens has shape .0,., expected .B . 1,."),
        ((PACKED, OFFSETS, torch.ones(4)), "mask has dtype torch.float32, expected bool"),
        ((PACKED, OFFSETS, torch.ones(3).bool()), "mask has shape .3,., expected .4,."),
        ((PACKED, None, None), "x has shape .4, 3., expected .B, L, H."),
        ((PACKED[None], None, None), "mask is None"),
        ((PACKED[None], None, torch.ones(1, 4)), "mask has dtype torch.float32"),
        ((PACKED[None], None, torch.ones(1, 3).bool()), "mask has shape .1, 3., expected .1, 4."),
    ],
)
def test_bad_input(args: tuple[torch.Tensor, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        masked_mean_pool(*args)


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([1, 4], "starts with 1, expected 0"),
        ([0, 3, 2], "falls from 3 to 2"),
        ([0, 5], "ends with 5, expected at most the number of rows, 4"),
    ],
)
def test_bad_offsets(offsets: list[int], message: str) -> None:
    need(OP, "native", "cpu")
    with pytest.raises(ValueError, match=message):
        masked_mean_pool(PACKED, torch.tensor(offsets, dtype=torch.int32), backend="native")
