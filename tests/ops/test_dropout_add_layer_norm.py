"""Bias, dropout, residual and layer norm: by hand, against the reference in float64, raw."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from layer_checks import EPS, LAYER_CASES, check_dropout_add_layer_norm
from op_checks import DEVICES, DTYPES, need
from torch import Tensor
from torch.library import opcheck

from fastadv.backends import BACKENDS
from fastadv.ops.dropout_add_layer_norm import dropout_add_layer_norm
from fastadv.ops.dtypes import acc_dtype
from fastadv.ops.philox import keep_mask_ref

OP = "dropout_add_layer_norm"
SEED = torch.tensor([2**40 + 7])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend: str, device: str) -> None:
    """z = (1, 3, 5, 7) has mean 4 and variance 5; with eps 4, n = (-1, -1/3, 1/3, 1)."""
    need(OP, backend, device)
    rows = {
        "x": [[1.0, 0.0, 2.0, 3.0]],
        "bias": [0.0, 1.0, 1.0, 1.0],
        "residual": [[0.0, 2.0, 2.0, 3.0]],
        "gain": [1.0, 3.0, 6.0, 2.0],
        "beta": [0.0, 0.0, 1.0, 10.0],
    }
    leaves = [torch.tensor(row, device=device, requires_grad=True) for row in rows.values()]
    y = dropout_add_layer_norm(*leaves, eps=4.0, backend=backend)
    # Units in the last place of float32 at 12; the numbers are simple and the error is mostly 0.
    close = partial(torch.testing.assert_close, rtol=0, atol=2e-6)
    close(y.detach(), torch.tensor([[-1.0, -1.0, 3.0, 12.0]], device=device))
    grad = torch.tensor([[3.0, 1.0, 0.0, 0.0]], device=device)
    grads = torch.autograd.grad(y, leaves, grad)
    # grad * gain = (3, 3, 0, 0) has mean 1.5, and -1 with n: (h - 1.5 + n) / 3.
    grad_z = torch.tensor([0.5 / 3, (1.5 - 1 / 3) / 3, (-1.5 + 1 / 3) / 3, -0.5 / 3], device=device)
    close(grads[0], grad_z[None])
    close(grads[1], grad_z)
    close(grads[2], grad_z[None])
    close(grads[3], torch.tensor([-3.0, -1 / 3, 0.0, 0.0], device=device))
    assert grads[4].tolist() == [3.0, 1.0, 0.0, 0.0]


@pytest.mark.usefixtures("poisoned_memory", "two_threads")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", LAYER_CASES)
def test_against_reference(case: str, backend: str, dtype: torch.dtype, device: str) -> None:
    need(OP, backend, device)
    op = partial(dropout_add_layer_norm, backend=backend)
    check_dropout_add_layer_norm(op, LAYER_CASES[case], dtype, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_dropped_elements(backend: str, device: str) -> None:
    """The gradient of x is zero exactly where the mask says, leading rows counted."""
    need(OP, backend, device)
    x = torch.randn(9, 150, device=device, requires_grad=True)
    vector = torch.ones(150, device=device)
    y = dropout_add_layer_norm(
        x, vector, torch.randn_like(x), vector, vector, eps=1e-12, p=0.4, seed=SEED.to(device),
        site=2, leading=3, backend=backend,
    )  # fmt: skip
    (grad,) = torch.autograd.grad(y, x, torch.randn_like(y))
    rows = torch.arange(9, device=device)
    mask = keep_mask_ref(SEED.to(device), 2, rows, 150, 0.4)
    assert torch.equal(grad[3:] != 0, mask[3:])
    assert grad[:3].eq(0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_seed_no_dropout(backend: str) -> None:
    need(OP, backend, "cpu")
    x, vector = torch.randn(5, 40), torch.randn(40)
    op = partial(dropout_add_layer_norm, x, vector, x, vector, vector, eps=EPS, backend=backend)
    plain = op()
    assert torch.equal(op(p=0.5, seed=None), plain)
    assert torch.equal(op(p=0.0, seed=SEED), plain)
    assert not torch.equal(op(p=0.5, seed=SEED), plain)
    assert not torch.equal(op(p=0.5, seed=SEED), op(p=0.5, seed=SEED + 1))
    assert not torch.equal(op(p=0.5, seed=SEED), op(p=0.5, seed=SEED, site=1))


def raw_forward(dtype: torch.dtype, tokens: int, leading: int, **some: Any) -> dict[str, Tensor]:
    """The raw function's inputs and outputs, the outputs NaN before it ran."""
    acc, width = acc_dtype(dtype), 77
    x = torch.randn(tokens, width).to(dtype)
    residual = torch.randn(tokens, width, dtype=acc)
    bias, gain, beta = (torch.randn(width, dtype=acc) for _ in range(3))
    outputs = {
        "y": torch.full_like(residual, torch.nan),
        "y_low": torch.full_like(x, torch.nan),
        "z": torch.full_like(x[leading:], torch.nan),
        "stats": torch.full((tokens - leading, 2), torch.nan, dtype=acc),
    } | some
    torch.ops.fastadv.dropout_add_layer_norm(
        x, bias, residual, gain, beta, EPS, 0.2, SEED, 3, leading, *outputs.values()
    )
    return {"x": x, "residual": residual, "bias": bias, "gain": gain, "beta": beta, **outputs}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tokens", "leading"), [(9, 0), (9, 4), (70, 70), (0, 0)])
def test_raw_outputs(tokens: int, leading: int, dtype: torch.dtype) -> None:
    """The rounded copies are the rounded values, bit by bit; z and stats leave leading rows out."""
    need(OP, "native", "cpu")
    all_ = raw_forward(dtype, tokens, leading)
    y, y_low, z, stats = all_["y"], all_["y_low"], all_["z"], all_["stats"]
    assert torch.equal(y_low, y.to(dtype))
    kept = keep_mask_ref(SEED, 3, torch.arange(tokens), 77, 0.2)
    acc = acc_dtype(dtype)
    x = torch.where(kept, (all_["x"].to(acc) + all_["bias"]) / (1 - 13107 / 65536), 0)
    exact = (x + all_["residual"])[leading:]
    # Half a unit of the low type, and two roundings in the other.
    limit = (torch.finfo(dtype).eps / 2 + 3 * torch.finfo(acc).eps) * (exact.abs() + 1)
    assert ((z.to(acc) - exact).abs() <= limit).all()
    mean = exact.mean(1)
    var = (exact - mean[:, None]).square().mean(1)
    torch.testing.assert_close(stats[:, 0], mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(stats[:, 1], (var + EPS).rsqrt(), rtol=1e-5, atol=0)


def test_raw_outputs_left_out() -> None:
    need(OP, "native", "cpu")
    torch.manual_seed(1)
    all_ = raw_forward(torch.bfloat16, 9, 2)
    torch.manual_seed(1)
    less = raw_forward(torch.bfloat16, 9, 2, y_low=None, z=None, stats=None)
    assert torch.equal(all_["y"], less["y"])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_raw_backward_adds_the_low_gradient(dtype: torch.dtype) -> None:
    """grad_low is added in the sums' type, before anything else, bit by bit."""
    need(OP, "native", "cpu")
    all_ = raw_forward(dtype, 40, 11)
    acc = acc_dtype(dtype)
    grad, grad_low = torch.randn(29, 77, dtype=acc), torch.randn(29, 77).to(dtype)
    results = []
    for given in ((grad, grad_low), (grad + grad_low.to(acc), None)):
        out = [torch.full_like(x, torch.nan) for x in (all_["z"], grad, grad[:3])]
        torch.ops.fastadv.dropout_add_layer_norm_backward(
            *given, all_["z"], all_["stats"], all_["gain"], 0.2, SEED, 3, 11, *out
        )
        results.append(out)
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
        assert one.isfinite().all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("leading", [0, 2])
def test_gradcheck(leading: int, backend: str, device: str) -> None:
    need(OP, backend, device)
    x, residual = (torch.randn(6, 5, dtype=torch.float64, device=device) for _ in range(2))
    vectors = [torch.randn(5, dtype=torch.float64, device=device) for _ in range(3)]
    leaves = [t.clone().requires_grad_() for t in (x[leading:], residual[leading:], *vectors)]

    def op(x_rest: Tensor, residual_rest: Tensor, bias: Tensor, *others: Tensor) -> Tensor:
        return dropout_add_layer_norm(
            torch.cat([x[:leading], x_rest]), bias, torch.cat([residual[:leading], residual_rest]),
            *others, eps=EPS, p=0.3, seed=SEED.to(device), site=1, leading=leading, backend=backend,
        )[leading:]  # fmt: skip

    assert torch.autograd.gradcheck(op, leaves)


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device: str) -> None:
    need(OP, "native", device)
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    x = torch.randn(9, 5, device=device).bfloat16()
    vector, residual = torch.randn(5, device=device), torch.randn(9, 5, device=device)
    z, stats, seed = x[:7].clone(), torch.rand(7, 2, device=device), SEED.to(device)
    forward = torch.ops.fastadv.dropout_add_layer_norm.default
    inputs = (x, vector, residual, vector, vector, EPS, 0.1, seed, 1, 2)
    opcheck(forward, (*inputs, residual.clone(), x.clone(), z, stats), test_utils=checks)
    opcheck(forward, (*inputs, residual.clone(), None, None, None), test_utils=checks)
    backward = torch.ops.fastadv.dropout_add_layer_norm_backward.default
    rows, sums = residual[:7].clone(), torch.empty(3, 5, device=device)
    for low in (None, x[:7].clone()):
        opcheck(
            backward,
            (rows, low, z, stats, vector, 0.1, seed, 1, 2, z.clone(), rows.clone(), sums),
            test_utils=checks,
        )


@pytest.mark.parametrize("backend", ["torch", "native"])
def test_compiles_in_one_graph(backend: str) -> None:
    need(OP, backend, "cpu")
    x, residual = torch.randn(9, 5, requires_grad=True), torch.randn(9, 5, requires_grad=True)
    vectors = [torch.randn(5, requires_grad=True) for _ in range(3)]

    def loss(*leaves: Tensor) -> Tensor:
        y = dropout_add_layer_norm(*leaves, eps=EPS, p=0.2, seed=SEED, leading=2, backend=backend)
        return y.square().sum()

    leaves = (x, vectors[0], residual, *vectors[1:])
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(*leaves), leaves)
    # The same kernels in the same order, so the same bits.
    for one, other in zip(got, torch.autograd.grad(loss(*leaves), leaves), strict=True):
        assert torch.equal(one, other)


def test_same_bits_on_any_number_of_threads() -> None:
    need(OP, "native", "cpu")
    leaves = [torch.randn(shape, requires_grad=True) for shape in ((731, 771), 771, (731, 771))]
    leaves += [torch.randn(771, requires_grad=True) for _ in range(2)]
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        y = dropout_add_layer_norm(*leaves, eps=EPS, p=0.1, seed=SEED, backend="native")
        results.append((y, *torch.autograd.grad(y.square().sum(), leaves)))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


def test_nothing_is_saved_for_leading_rows() -> None:
    need(OP, "native", "cpu")
    x, vector = torch.randn(9, 5, requires_grad=True), torch.randn(5)
    op = partial(dropout_add_layer_norm, x, vector, x.detach(), vector, vector, eps=EPS)
    with torch.no_grad():
        assert op().grad_fn is None
    node = op(leading=6, backend="native").grad_fn
    shapes = [None if s is None else tuple(s.shape) for s in node.saved_tensors]  # type: ignore[union-attr]
    assert shapes == [(3, 5), (3, 2), (5,), None]


X, V = torch.zeros(4, 3), torch.zeros(3)


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        ((X.int(), V, X, V, V), {}, "x has dtype torch.int32"),
        ((X[None], V, X, V, V), {}, "x has shape .1, 4, 3., expected .T, H."),
        ((X, V, X.double(), V, V), {}, "residual has dtype torch.float64, expected torch.float32"),
        ((X, V, X[:2], V, V), {}, "residual has shape .2, 3., expected .4, 3."),
        ((X, V.half(), X, V, V), {}, "bias has dtype torch.float16, expected torch.float32"),
        ((X, V, X, V[:2], V), {}, "gain has shape .2,., expected .3,."),
        ((X, V, X, V, V[None]), {}, "beta has shape .1, 3., expected .3,."),
        ((X, V, X, V, V), {"leading": 5}, "leading is 5, expected at least 0 and at most"),
        ((X, V, X, V, V), {"p": 1.0}, "p is 1.0, expected a probability"),
        ((X, V, X, V, V), {"seed": torch.tensor(1)}, "seed has shape .., expected .1,."),
    ],
)
def test_bad_input(args: tuple[Tensor, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dropout_add_layer_norm(*args, eps=EPS, **options)


def test_bad_raw_input() -> None:
    need(OP, "native", "cpu")
    op = partial(torch.ops.fastadv.dropout_add_layer_norm, X, V, X, V, V, EPS, 0.0, None, 0)
    y, stats = torch.empty(4, 3), torch.empty(4, 2)
    with pytest.raises(ValueError, match=r"y has shape .3, 3., expected .4, 3."):
        op(0, y[:3], None, None, None)
    with pytest.raises(ValueError, match=r"z has shape .4, 3., expected .3, 3."):
        op(1, y, None, y, stats)
    with pytest.raises(ValueError, match="y_low has dtype BFloat16, expected Float"):
        op(0, y, y.bfloat16(), None, None)
    with pytest.raises(ValueError, match="leading is 5, expected at least 0 and at most the rows"):
        op(5, y, None, None, None)
