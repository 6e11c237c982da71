"""Embedding rows, layer norm and dropout: by hand, against the reference in float64, raw."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from layer_checks import EPS, LAYER_CASES, check_embedding_layer_norm
from op_checks import DEVICES, DTYPES, need
from torch import Tensor
from torch.library import opcheck

from fastadv.backends import BACKENDS
from fastadv.ops.dtypes import acc_dtype
from fastadv.ops.embedding_layer_norm import embedding_layer_norm
from fastadv.ops.philox import keep_mask_ref

OP = "embedding_layer_norm"
SEED = torch.tensor([2**40 + 7])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend: str, device: str) -> None:
    """Two tokens of the same word: z = (1, 3, 5, 7) has mean 4 and variance 5; eps is 4."""
    need(OP, backend, device)
    ids = torch.tensor([1, 1], device=device)
    places = torch.tensor([0, 2], device=device)
    rows: list[Any] = [
        [[9.0] * 4, [0.0, 1.0, 2.0, 3.0]],
        [[0.0, 1.0, 2.0, 3.0], [9.0] * 4, [4.0, 5.0, 6.0, 7.0]],
        [1.0, 1.0, 1.0, 1.0],
        [1.0, 3.0, 6.0, 2.0],
        [0.0, 0.0, 1.0, 10.0],
    ]
    leaves = [torch.tensor(row, device=device, requires_grad=True) for row in rows]
    y = embedding_layer_norm(ids, places, *leaves, eps=4.0, backend=backend)
    # Units in the last place of float32 at 12; the numbers are simple and the error is mostly 0.
    close = partial(torch.testing.assert_close, rtol=0, atol=4e-6)
    close(y.detach(), torch.tensor([[-1.0, -1.0, 3.0, 12.0]] * 2, device=device))
    grad = torch.tensor([[3.0, 1.0, 0.0, 0.0], [6.0, 2.0, 0.0, 0.0]], device=device)
    grads = torch.autograd.grad(y, leaves, grad)
    # With n = (-1, -1/3, 1/3, 1), h = grad * gain = (3, 3, 0, 0) has mean 1.5 and h n has mean -1:
    # (h - 1.5 + n) / 3.
    one = torch.tensor([0.5 / 3, (1.5 - 1 / 3) / 3, (-1.5 + 1 / 3) / 3, -0.5 / 3], device=device)
    close(grads[0], torch.stack([0 * one, 3 * one]))
    close(grads[1], torch.stack([one, 0 * one, 2 * one]))
    close(grads[2], 3 * one)
    close(grads[3], torch.tensor([-9.0, -1.0, 0.0, 0.0], device=device))
    assert grads[4].tolist() == [9.0, 3.0, 0.0, 0.0]


@pytest.mark.usefixtures("poisoned_memory", "two_threads")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("token_type", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", LAYER_CASES)
def test_against_reference(
    case: str, backend: str, dtype: torch.dtype, token_type: bool, device: str
) -> None:
    need(OP, backend, device)
    op = partial(embedding_layer_norm, backend=backend)
    check_embedding_layer_norm(op, LAYER_CASES[case], dtype, device, token_type)


def tables(hidden: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """word (20, H), position (12, H), token_type, gain and bias (H,)."""
    shapes = ((20, hidden), (12, hidden), (hidden,), (hidden,), (hidden,))
    return [torch.randn(shape, dtype=dtype) for shape in shapes]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_rows_get_no_gradient(backend: str, device: str) -> None:
    """Also those counted from the end, and also where the padding row is used."""
    need(OP, backend, device)
    ids = torch.tensor([19, 3, 19, 0], device=device)
    places = torch.tensor([11, 1, 2, 11], device=device)
    leaves = [x.to(device).requires_grad_() for x in tables(16)]
    y = embedding_layer_norm(
        ids, places, *leaves, eps=EPS, padding_idx=-1, position_padding_idx=11, backend=backend
    )
    grads = torch.autograd.grad(y, leaves, torch.randn_like(y))
    used = [[int(x) for x in grad.abs().sum(1).nonzero()] for grad in grads[:2]]
    assert used == [[0, 3], [1, 2]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropped_elements(backend: str) -> None:
    need(OP, backend, "cpu")
    ids = torch.arange(9)
    word, position, kind, gain, _ = tables(150)
    bias = torch.full((150,), 100.0)
    op = partial(
        embedding_layer_norm, ids, ids, word, position, kind, gain, bias, eps=EPS, backend=backend
    )
    kept = keep_mask_ref(SEED, 6, ids, 150, 0.4)
    assert torch.equal(op(p=0.4, seed=SEED, site=6) != 0, kept)
    assert (op(p=0.4, seed=None) != 0).all()


def raw_forward(ids: Tensor, places: Tensor, given: list[Tensor], low: torch.dtype) -> list[Tensor]:
    """y and y_low of the raw function, NaN before it ran."""
    y = torch.full((ids.shape[0], given[0].shape[1]), torch.nan, dtype=given[0].dtype)
    y_low = torch.full_like(y, torch.nan, dtype=low)
    torch.ops.fastadv.embedding_layer_norm(ids, places, *given, EPS, 0.2, SEED, 3, y, y_low)
    return [y, y_low]


@pytest.mark.parametrize("low", DTYPES, ids=str)
def test_raw_low_copy(low: torch.dtype) -> None:
    """y_low is y rounded, bit by bit; y does not depend on it."""
    need(OP, "native", "cpu")
    ids, places = torch.randint(0, 20, (41,)), torch.randint(0, 12, (41,))
    given = tables(77, acc_dtype(low))
    y, y_low = raw_forward(ids, places, given, low)
    assert torch.equal(y_low, y.to(low))
    wanted = embedding_layer_norm(
        ids, places, *given, eps=EPS, p=0.2, seed=SEED, site=3, backend="native"
    )
    assert torch.equal(y, wanted)


@pytest.mark.parametrize("low", DTYPES, ids=str)
def test_raw_backward_adds_into(low: torch.dtype) -> None:
    """grad_low is added first, bit by bit; the tables' gradients are added to what was there."""
    need(OP, "native", "cpu")
    ids, places = torch.randint(0, 20, (41,)), torch.randint(0, 12, (41,))
    word, position, kind, gain, _ = tables(77, acc_dtype(low))
    grad, grad_low = torch.randn_like(word[ids]), torch.randn(41, 77).to(low)
    backward = torch.ops.fastadv.embedding_layer_norm_backward

    def run(start: float, *given: Tensor | None) -> list[Tensor]:
        out = [torch.full_like(x, start) for x in (word, position, kind)]
        out.append(torch.full_like(word[:2], torch.nan))
        backward(*given, ids, places, word, position, kind, gain, EPS, 0.2, SEED, 3, 9, None,
                 5, -1, *out)  # fmt: skip
        return out

    first = run(0, grad, grad_low)
    for one, other in zip(first, run(0, grad + grad_low.to(grad.dtype), None), strict=True):
        assert torch.equal(one, other)
        assert one.isfinite().all()
    added = run(1, grad, grad_low)
    for one, other in zip(first[:3], added[:3], strict=True):
        # Sums of some ten numbers near 1, begun at another one.
        tolerance = 30 * torch.finfo(grad.dtype).eps
        torch.testing.assert_close(one + 1, other, rtol=tolerance, atol=tolerance)
    assert added[0][5].eq(1).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("leading", [0, 2])
def test_gradcheck(leading: int, backend: str, device: str) -> None:
    need(OP, backend, device)
    ids = torch.tensor([4, 1, 4, 0, 19], device=device)
    places = torch.tensor([0, 1, 2, 0, 11], device=device)
    leaves = [x.to(device).requires_grad_() for x in tables(5, torch.float64)]

    def op(*given: Tensor) -> Tensor:
        return embedding_layer_norm(
            ids, places, *given, eps=EPS, p=0.3, seed=SEED.to(device), leading=leading,
            backend=backend,
        )[leading:]  # fmt: skip

    assert torch.autograd.gradcheck(op, leaves)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("token_type", [True, False])
def test_opcheck(token_type: bool, device: str) -> None:
    need(OP, "native", device)
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    ids = torch.tensor([4, 1, 4, 0, 19], device=device)
    places, seed = torch.arange(5, device=device), SEED.to(device)
    given: list[Any] = [x.to(device) for x in tables(6)]
    if not token_type:
        given[2] = None
    y, low = torch.randn(5, 6, device=device), torch.randn(5, 6, device=device).bfloat16()
    forward = torch.ops.fastadv.embedding_layer_norm.default
    backward = torch.ops.fastadv.embedding_layer_norm_backward.default
    rest = (EPS, 0.1, seed, 1)
    for copy in (low, None):
        opcheck(forward, (ids, places, *given, *rest, y.clone(), copy), test_utils=checks)
        out = [None if x is None else x.clone() for x in (*given[:3], given[0][:2])]
        opcheck(
            backward, (y, copy, ids, places, *given[:4], *rest, 3, None, 0, -1, *out),
            test_utils=checks,
        )  # fmt: skip
        out[0] = given[0][:2].clone()
        opcheck(
            backward, (y, copy, ids, places, *given[:4], *rest, 3, ids % 2, 0, -1, *out),
            test_utils=checks,
        )  # fmt: skip


@pytest.mark.parametrize("backend", ["torch", "native"])
def test_compiles_in_one_graph(backend: str) -> None:
    need(OP, backend, "cpu")
    ids, places = torch.randint(0, 20, (9,)), torch.randint(0, 12, (9,))
    leaves = [x.requires_grad_() for x in tables(16)]

    def loss(*given: Tensor) -> Tensor:
        y = embedding_layer_norm(
            ids, places, *given, eps=EPS, p=0.2, seed=SEED, leading=2, backend=backend
        )
        return y.square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(*leaves), leaves)
    # The same kernels in the same order, so the same bits.
    for one, other in zip(got, torch.autograd.grad(loss(*leaves), leaves), strict=True):
        assert torch.equal(one, other)


def test_same_bits_on_any_number_of_threads() -> None:
    need(OP, "native", "cpu")
    ids, places = torch.randint(0, 20, (1731,)), torch.randint(0, 12, (1731,))
    leaves = [x.requires_grad_() for x in tables(331)]
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        y = embedding_layer_norm(ids, places, *leaves, eps=EPS, p=0.1, seed=SEED, backend="native")
        results.append((y, *torch.autograd.grad(y.square().sum(), leaves)))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


def test_nothing_is_saved_for_leading_rows() -> None:
    need(OP, "native", "cpu")
    ids = torch.arange(9)
    leaves = [x.requires_grad_() for x in tables(6)]
    with torch.no_grad():
        assert embedding_layer_norm(ids, ids, *leaves, eps=EPS).grad_fn is None
    node: Any = embedding_layer_norm(
        ids, ids, *leaves, eps=EPS, leading=6, backend="native"
    ).grad_fn
    assert [tuple(saved.shape) for saved in node.saved_tensors[:2]] == [(3,), (3,)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("ids", "places", "message"),
    [
        ([0, 20], [0, 0], "input_ids holds 20, expected a row of 20"),
        ([0, -1], [0, 0], "input_ids holds -1, expected a row of 20"),
        ([0, 0], [12, 0], "position_ids holds 12, expected a row of 12"),
    ],
)
def test_out_of_range(ids: list[int], places: list[int], message: str, backend: str) -> None:
    need(OP, backend, "cpu")
    with pytest.raises(ValueError, match=message):
        embedding_layer_norm(
            torch.tensor(ids), torch.tensor(places), *tables(8), eps=EPS, backend=backend
        )


IDS, W, V = torch.zeros(4, dtype=torch.int64), torch.zeros(20, 3), torch.zeros(3)


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        ((IDS.int(), IDS, W, W, V, V, V), {}, "input_ids has dtype torch.int32, expected torch.in"),
        ((IDS[None], IDS, W, W, V, V, V), {}, "input_ids has shape .1, 4., expected .T,."),
        ((IDS, IDS[:3], W, W, V, V, V), {}, "position_ids has shape .3,., expected .4,."),
        ((IDS, IDS, W.half(), W, V, V, V), {}, "word has dtype torch.float16, expected float32"),
        ((IDS, IDS, W[0], W, V, V, V), {}, "word has shape .3,., expected .V, H."),
        ((IDS, IDS, W, W[0], V, V, V), {}, "position has shape .3,., expected .P, H."),
        ((IDS, IDS, W, W[:, :2], V, V, V), {}, "position has shape .20, 2., expected .20, 3."),
        ((IDS, IDS, W, W.double(), V, V, V), {}, "position has dtype torch.float64, expected"),
        ((IDS, IDS, W, W, W, V, V), {}, "token_type has shape .20, 3., expected .3,."),
        ((IDS, IDS, W, W, None, V[:2], V), {}, "gain has shape .2,., expected .3,."),
        ((IDS, IDS, W, W, None, V, V.double()), {}, "bias has dtype torch.float64, expected"),
        ((IDS, IDS, W, W, V, V, V), {"leading": 5}, "leading is 5, expected at least 0"),
        ((IDS, IDS, W, W, V, V, V), {"p": -1.0}, "p is -1.0, expected a probability"),
    ],
)
def test_bad_input(args: tuple[Any, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        embedding_layer_norm(*args, eps=EPS, **options)


def test_bad_raw_input() -> None:
    need(OP, "native", "cpu")
    op = partial(torch.ops.fastadv.embedding_layer_norm, IDS, IDS, W, W, None, V, V, EPS, 0.0, None)
    with pytest.raises(ValueError, match=r"y has shape .20, 3., expected .4, 3."):
        op(0, W, None)
    with pytest.raises(ValueError, match="y_low has dtype Double, expected one whose sums"):
        op(0, W[:4].clone(), W[:4].double())
