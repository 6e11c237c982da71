"""Bias and GELU: by hand, against the reference in float64, and as an operator of PyTorch."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from layer_checks import GELU_CASES, check_bias_gelu
from op_checks import DEVICES, DTYPES, need
from torch.library import opcheck

from fastadv.backends import BACKENDS
from fastadv.ops.bias_gelu import bias_gelu

OP = "bias_gelu"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend: str, device: str) -> None:
    """gelu(1) = Phi(1), gelu(-1) = -Phi(-1); the slope at 0 is a half."""
    need(OP, backend, device)
    x = torch.tensor([[-0.5, 1.0, 0.0], [1.5, -1.0, 0.0]], device=device, requires_grad=True)
    bias = torch.tensor([-0.5, 0.0, 0.0], device=device, requires_grad=True)
    y = bias_gelu(x, bias, backend=backend)
    phi, density = 0.8413447460685429, math.exp(-0.5) / math.sqrt(2 * math.pi)
    wanted = torch.tensor([[-(1 - phi), phi, 0.0], [phi, -(1 - phi), 0.0]], device=device)
    # Some units in the last place of 1: the reference's 1 + erf has that error.
    torch.testing.assert_close(y.detach(), wanted, rtol=0, atol=3e-7)
    y.backward(torch.tensor([[1.0, 2.0, 4.0], [3.0, 1.0, 8.0]], device=device))
    up, down = phi + density, 1 - phi - density
    assert x.grad is not None
    assert bias.grad is not None
    slopes = torch.tensor([[down, 2 * up, 2.0], [3 * up, down, 4.0]], device=device)
    torch.testing.assert_close(x.grad, slopes, rtol=0, atol=2e-6)
    torch.testing.assert_close(bias.grad, slopes.sum(0), rtol=0, atol=2e-6)


@pytest.mark.usefixtures("poisoned_memory", "two_threads")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", GELU_CASES)
def test_against_reference(case: str, backend: str, dtype: torch.dtype, device: str) -> None:
    need(OP, backend, device)
    check_bias_gelu(partial(bias_gelu, backend=backend), GELU_CASES[case], dtype, device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_tail_keeps_its_precision(dtype: torch.dtype) -> None:
    """gelu(v) = v erfc(-v / sqrt(2)) / 2 to a few units, far out too; 1 + erf has none there."""
    need(OP, "native", "cpu")
    v = torch.cat([torch.linspace(-12.9, 8, 40001, dtype=dtype), -torch.logspace(-30, 0, 301)])
    got = bias_gelu(v.to(dtype)[:, None], torch.zeros(1, dtype=dtype), backend="native")[:, 0]
    exact = v.double() * torch.special.erfc(-v.double() * math.sqrt(0.5)) / 2
    # Measured 3.8 units for float32; float64 has that of exp(-t^2 / 2), up to t^2 / 2 units.
    limit = 5 if dtype == torch.float32 else 90
    assert ((got.double() - exact) / exact).abs().max() < limit * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_far_out(dtype: torch.dtype) -> None:
    """The limits, where the formula has 0 times infinity; NaN stays NaN."""
    need(OP, "native", "cpu")
    x = torch.tensor([[torch.inf, -torch.inf, 60000, -60000, torch.nan] * 7], dtype=dtype)
    x.requires_grad_()
    y = bias_gelu(x, torch.zeros(35, dtype=torch.promote_types(dtype, torch.float32)))
    (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
    large = x[0, 2].item()
    assert y[0, -5:-1].tolist() == [torch.inf, 0, large, 0]
    assert grad[0, -5:-1].tolist() == [1, 0, 1, 0]
    assert y.isnan().sum() == grad.isnan().sum() == 7


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 40, 771])
def test_recomputed_result(width: int, dtype: torch.dtype) -> None:
    """The backward gives the forward's result again if it is asked to, and the same gradients."""
    need(OP, "native", "cpu")
    acc = torch.promote_types(dtype, torch.float32)
    x, grad = torch.randn(37, width).to(dtype), torch.randn(37, width).to(dtype)
    bias = torch.randn(width).to(acc)
    y, again, results = torch.empty_like(x), torch.full_like(x, torch.nan), []
    torch.ops.fastadv.bias_gelu(x, bias, y)
    for recomputed in (None, again):
        grad_x, grad_bias = torch.empty_like(x), torch.empty_like(bias)
        torch.ops.fastadv.bias_gelu_backward(grad, x, bias, grad_x, recomputed, grad_bias)
        results.append((grad_x, grad_bias))
    assert torch.equal(again, y)
    # The compiler fuses other products and sums where two functions share them.
    close = partial(torch.testing.assert_close, rtol=torch.finfo(dtype).eps)
    close(results[0][0], results[1][0], atol=4 * torch.finfo(dtype).eps)
    close(results[0][1], results[1][1], atol=100 * torch.finfo(acc).eps)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("leading", [0, 2])
def test_gradcheck(leading: int, backend: str, device: str) -> None:
    need(OP, backend, device)
    x = torch.randn(7, 5, dtype=torch.float64, device=device)
    bias = torch.randn(5, dtype=torch.float64, device=device, requires_grad=True)
    rest = x[leading:].clone().requires_grad_()

    def gelu(rest: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        rows = torch.cat([x[:leading], rest])
        return bias_gelu(rows, bias, leading=leading, backend=backend)[leading:]

    assert torch.autograd.gradcheck(gelu, (rest, bias))


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device: str) -> None:
    need(OP, "native", device)
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    x, grad, y = (torch.randn(9, 5, device=device).bfloat16() for _ in range(3))
    bias, grad_bias = torch.randn(5, device=device), torch.randn(5, device=device)
    opcheck(torch.ops.fastadv.bias_gelu.default, (x, bias, y), test_utils=checks)
    for again in (None, y):
        opcheck(
            torch.ops.fastadv.bias_gelu_backward.default,
            (grad, x, bias, torch.empty_like(x), again, grad_bias),
            test_utils=checks,
        )


@pytest.mark.parametrize("backend", ["torch", "native"])
def test_compiles_in_one_graph(backend: str) -> None:
    need(OP, backend, "cpu")
    x, bias = torch.randn(9, 5, requires_grad=True), torch.randn(5, requires_grad=True)

    def loss(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return bias_gelu(x, bias, leading=2, backend=backend).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(x, bias), (x, bias))
    # The same kernels in the same order, so the same bits.
    for one, other in zip(got, torch.autograd.grad(loss(x, bias), (x, bias)), strict=True):
        assert torch.equal(one, other)


def test_same_bits_on_any_number_of_threads() -> None:
    need(OP, "native", "cpu")
    x, bias = torch.randn(731, 771, requires_grad=True), torch.randn(771, requires_grad=True)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        y = bias_gelu(x, bias, backend="native")
        results.append((y, *torch.autograd.grad(y.square().sum(), (x, bias))))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


def test_nothing_is_saved_for_leading_rows() -> None:
    need(OP, "native", "cpu")
    x, bias = torch.randn(9, 5, requires_grad=True), torch.randn(5)
    with torch.no_grad():
        assert bias_gelu(x, bias).grad_fn is None
    node = bias_gelu(x, bias, leading=6, backend="native").grad_fn
    assert node is not None
    assert [tuple(saved.shape) for saved in node.saved_tensors] == [(3, 5), (5,)]  # type: ignore[attr-defined]


X, BIAS = torch.zeros(4, 3), torch.zeros(3)


@pytest.mark.parametrize(
    ("args", "leading", "message"),
    [
        ((X.int(), BIAS), 0, "x has dtype torch.int32"),
        ((X[None], BIAS), 0, "x has shape .1, 4, 3., expected .T, I."),
        ((X, BIAS.double()), 0, "bias has dtype torch.float64, expected torch.float32"),
        ((X.double(), BIAS), 0, "bias has dtype torch.float32, expected torch.float64"),
        ((X.bfloat16(), BIAS.bfloat16()), 0, "bias has dtype torch.bfloat16, expected torch.floa"),
        ((X, BIAS[:2]), 0, "bias has shape .2,., expected .3,."),
        ((X, BIAS), 5, "leading is 5, expected at least 0 and at most the rows, 4"),
        ((X, BIAS), -1, "leading is -1"),
    ],
)
def test_bad_input(args: tuple[torch.Tensor, ...], leading: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bias_gelu(*args, leading=leading)


def test_bad_raw_input() -> None:
    need(OP, "native", "cpu")
    op, backward = torch.ops.fastadv.bias_gelu, torch.ops.fastadv.bias_gelu_backward
    with pytest.raises(ValueError, match=r"y has shape .3, 3., expected .4, 3."):
        op(X, BIAS, X[:3])
    with pytest.raises(ValueError, match=r"y has strides .1, 4., expected a contiguous tensor"):
        op(X, BIAS, torch.zeros(3, 4).t())
    with pytest.raises(ValueError, match="grad has dtype Double, expected Float"):
        backward(X.double(), X, BIAS, X.clone(), None, BIAS.clone())
    with pytest.raises(ValueError, match=r"grad_bias has shape .2., expected .3."):
        backward(X, X, BIAS, X.clone(), None, BIAS[:2].clone())
