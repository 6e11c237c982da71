"""Products with weights: by hand, against the reference in float64, and as operators of PyTorch."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from op_checks import DEVICES, DTYPES, assert_close, need, run_with_environment
from torch import Tensor
from torch.library import opcheck

from fastadv import backends
from fastadv.ops.linear import linear, linear_ref

OP = "linear"
BACKENDS = ("torch", "native")
# Rows, depth, width and leading rows. Blocks are 32 rows, panels 128 or 256 columns, and gradients
# of weights go by 512 tokens; odd depths have no pairs.
SHAPES = [
    (1, 1, 1, 0),
    (1, 64, 48, 0),
    (33, 34, 50, 0),
    (31, 7, 9, 3),
    (100, 384, 1152, 36),
    (65, 768, 770, 64),
    (20, 1026, 260, 0),
    (1100, 64, 32, 520),
    (40, 33, 64, 40),
]


def acc_of(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def inputs(rows: int, depth: int, width: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    """x, weight, bias and a gradient of y; weights round alike in every precision."""
    random = torch.Generator().manual_seed(rows * 31 + depth * 7 + width)
    x, grad = (torch.randn(rows, n, generator=random).to(dtype) for n in (depth, width))
    weight = (torch.randn(width, depth, generator=random) / depth**0.5).to(dtype).to(acc_of(dtype))
    bias = torch.randn(width, generator=random).to(acc_of(dtype))
    return [t.to(device) for t in (x, weight, bias, grad)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend: str, device: str) -> None:
    need(OP, backend, device)
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]], device=device, requires_grad=True)
    weight = torch.tensor([[1.0, 0.0], [0.0, 10.0], [1.0, 1.0]], device=device, requires_grad=True)
    bias = torch.tensor([0.0, 0.0, 100.0], device=device, requires_grad=True)
    y = linear(x, weight, bias, leading=1, backend=backend)
    assert y.tolist() == [[1.0, 20.0, 103.0], [3.0, 40.0, 107.0]]
    y.backward(torch.tensor([[9.0, 9.0, 9.0], [1.0, 2.0, 3.0]], device=device))
    assert x.grad is not None and weight.grad is not None and bias.grad is not None
    assert x.grad.tolist() == [[0.0, 0.0], [4.0, 23.0]]
    assert weight.grad.tolist() == [[3.0, 4.0], [6.0, 8.0], [9.0, 12.0]]
    assert bias.grad.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.usefixtures("poisoned_memory", "two_threads")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_reference(
    shape: tuple[int, ...], backend: str, dtype: torch.dtype, device: str
) -> None:
    need(OP, backend, device)
    rows, depth, width, leading = shape
    *tensors, grad = inputs(rows, depth, width, dtype, device)

    def run(function: object, double: bool) -> list[Tensor]:
        leaves = [(t.double() if double else t).detach().requires_grad_() for t in tensors]
        y = function(*leaves, leading=leading)  # type: ignore[operator]
        return [y.detach(), *torch.autograd.grad(y, leaves, grad.to(y.dtype))]

    exact, plain = run(linear_ref, True), run(linear_ref, False)
    got = run(partial(linear, backend=backend), False)
    x, weight, _ = (t.double().abs() for t in tensors)
    flow = torch.cat([grad[:leading] * 0, grad[leading:]]).double().abs()
    scales = (x @ weight.t() + 4, flow @ weight, flow.t() @ x, flow.sum(0))
    for name, *values in zip(("y", "x", "w", "b"), got, plain, exact, scales, strict=True):
        try:
            assert_close(*values)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_do_not_know_each_other(dtype: torch.dtype) -> None:
    """A row has the same bits wherever it stands among others."""
    need(OP, "native", "cpu")
    x, weight, bias, _ = inputs(70, 64, 96, dtype, "cpu")
    y = linear(x, weight, bias, backend="native")
    changed = x.clone()
    changed[:40] = 7
    assert torch.equal(linear(changed, weight, bias, backend="native")[40:], y[40:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_on_any_number_of_threads(dtype: torch.dtype) -> None:
    need(OP, "native", "cpu")
    x, weight, bias, grad = inputs(1300, 130, 522, dtype, "cpu")
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
        y = linear(*leaves, backend="native")
        results.append((y.detach(), *torch.autograd.grad(y, leaves, grad)))
    torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend: str) -> None:
    need(OP, backend, "cpu")
    x, weight, bias, _ = inputs(5, 4, 3, torch.float64, "cpu")
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    assert torch.autograd.gradcheck(partial(linear, backend=backend), leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    need(OP, "native", "cpu")
    x, weight, bias, grad = inputs(5, 4, 6, dtype, "cpu")
    checks = ("test_schema", "test_faketensor")
    forward, _ = torch.ops.fastadv.linear_pack(weight, dtype)
    squares = torch.empty((), dtype=torch.float64)
    opcheck(torch.ops.fastadv.linear.default, (x, forward, bias, grad.clone()), test_utils=checks)
    opcheck(
        torch.ops.fastadv.linear_backward_weight.default,
        (grad, x, torch.empty_like(weight), torch.empty_like(bias), squares),
        test_utils=checks,
    )


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(1, 2, 4), (5, 3, 7), (70, 34, 66), (600, 700, 900)], ids=str)
def test_squares_of_the_weights_gradient(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    """Rows, N and K beyond one block, chunk and task each; a NaN in one block is in the sum."""
    need(OP, "native", "cpu")
    rows, n, k = shape
    x, weight, _, grad = inputs(rows, k, n, dtype, "cpu")
    squares = torch.full((), -1.0, dtype=torch.float64)
    found = torch.empty(n, k, dtype=weight.dtype)
    torch.ops.fastadv.linear_backward_weight(grad, x, found, None, squares)
    # Sums of up to 256 squares in the type, the rest in float64.
    assert float(squares) == pytest.approx(float(found.double().square().sum()), rel=1e-5)
    grad[rows - 1, n - 1] = float("nan")
    torch.ops.fastadv.linear_backward_weight(grad, x, found, None, squares)
    assert float(squares) != float(squares)


def test_refused() -> None:
    x, weight = torch.zeros(2, 3), torch.zeros(4, 3)
    with pytest.raises(ValueError, match=r"expected \(T, K\) and \(N, K\)"):
        linear(x[0], weight)
    with pytest.raises(ValueError, match=r"weight has shape \(3, 4\), expected \(3, 3\)"):
        linear(x, weight.t())
    with pytest.raises(ValueError, match=r"weight has dtype torch\.bfloat16"):
        linear(x, weight.bfloat16())
    with pytest.raises(ValueError, match=r"bias has shape \(3,\), expected \(4,\)"):
        linear(x, weight, torch.zeros(3))
    with pytest.raises(
        ValueError, match="leading is 3, expected at least 0 and at most the rows, 2"
    ):
        linear(x, weight, leading=3)


@pytest.mark.usefixtures("poisoned_memory", "two_threads")
@pytest.mark.parametrize(("rows", "depth", "width"), [(1, 64, 48), (70, 130, 522), (33, 768, 300)])
def test_with_gelu(rows: int, depth: int, width: int) -> None:
    """The product and what follows it in one: bit for bit the one after the other."""
    need(OP, "native", "cpu")
    ops = torch.ops.fastadv
    x, weight, bias, grad = inputs(rows, depth, width, torch.bfloat16, "cpu")
    layout, _ = ops.linear_pack(weight, torch.bfloat16)
    if layout.dim() == 2:
        pytest.skip("no bfloat16 products on this processor")
    plain, expected, kept, found, alone = (torch.empty_like(grad) for _ in range(5))
    ops.linear(x, layout, None, plain)
    ops.bias_gelu(plain, bias, expected)
    ops.linear_gelu(x, layout, bias, kept, found)
    ops.linear_gelu(x, layout, bias, None, alone)
    assert torch.equal(kept, plain)
    assert torch.equal(found, expected) and torch.equal(alone, expected)
    # Backward through a second product, of weight (depth, width), here with x as its gradient.
    second, back = ops.linear_pack(weight.t().contiguous(), torch.bfloat16)
    assert second.dim() == 1
    through, grad_plain, again, grad_found, activated = (torch.empty_like(grad) for _ in range(5))
    sums_plain, sums_found = (torch.empty_like(bias) for _ in range(2))
    ops.linear(x, back, None, through)
    ops.bias_gelu_backward(through, plain, bias, grad_plain, again, sums_plain)
    ops.linear_gelu_backward(x, back, plain, bias, grad_found, activated, sums_found)
    assert torch.equal(grad_found, grad_plain) and torch.equal(activated, expected)
    # The same float32 sums over rows, in another order.
    size = grad_plain.double().abs().sum(0)
    assert ((sums_found - sums_plain).abs() <= 1e-6 * (size + 1)).all()


ISA_SCRIPT = """
import sys
import torch
from test_linear import SHAPES, test_against_reference, test_same_bits_on_any_number_of_threads
layout, _ = torch.ops.fastadv.linear_pack(torch.ones(64, 64), torch.bfloat16)
assert layout.dim() == int(sys.argv[1]), layout.dim()
for shape in SHAPES:
    test_against_reference(shape, "native", torch.bfloat16, "cpu")
test_same_bits_on_any_number_of_threads(torch.bfloat16)
"""


@pytest.mark.parametrize(("isa", "dimensions"), [("AVX512_CORE_BF16", 1), ("AVX512_CORE", 2)])
def test_without_amx(isa: str, dimensions: int) -> None:
    """Weights are laid out where the processor multiplies bfloat16, be it not in tiles; where
    oneDNN may not use that, ATen's product does it.
    """
    need(OP, "native", "cpu")
    assert backends.extension is not None
    if not backends.extension.cpu_features()["avx512_bf16"]:
        dimensions = 2
    run_with_environment(ISA_SCRIPT, {"ONEDNN_MAX_CPU_ISA": isa}, str(dimensions))
