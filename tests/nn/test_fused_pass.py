"""The encoder's pass as a whole against the same in public operations and autograd."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.parameter import Parameter
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel

from fastadv import backends
from fastadv.batches.packing import PackedBatch, TableRows
from fastadv.nn import packed_encoder as encoder_module
from fastadv.nn.composed_pass import composed_forward
from fastadv.nn.fused_pass import packed_forward
from fastadv.nn.packed_encoder import PackedBert
from fastadv.nn.pass_buffers import Stack
from fastadv.ops.memory import empty
from fastadv.weights.layouts import WeightLayouts

pytestmark = [
    pytest.mark.usefixtures("two_threads"),
    pytest.mark.skipif(backends.extension is None, reason=str(backends.extension_error)),
]


def batch(lengths: tuple[int, ...], seed: int = 0) -> PackedBatch:
    random = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *lengths]).cumsum(0).int()
    positions = torch.cat([torch.arange(n) for n in lengths])
    ids = torch.randint(0, 90, (sum(lengths),), generator=random)
    return PackedBatch(ids, positions, offsets, max(lengths), None, None, len(lengths))


def encoder(
    kind: str = "bert", dtype: torch.dtype = torch.float32, intermediate: int = 96
) -> PackedBert:
    torch.manual_seed(0)
    if kind == "distilbert":
        # DistilBERT has no token types and one dropout fewer.
        config = DistilBertConfig(
            vocab_size=90, dim=32, n_layers=2, n_heads=4, hidden_dim=64, initializer_range=0.1
        )
        return PackedBert(DistilBertModel(config), dtype).train()
    bert = BertConfig(
        vocab_size=90,
        hidden_size=64,
        num_hidden_layers=3,
        intermediate_size=intermediate,
        num_attention_heads=4,
        initializer_range=0.1,
    )
    return PackedBert(BertModel(bert), dtype).train()


def run(model: PackedBert, first: PackedBatch, leading: PackedBatch | None) -> list[Tensor]:
    """Hidden states, and the gradient of every parameter."""
    torch.manual_seed(1)
    hidden = model(first, leading=leading)
    loss = (hidden * weights(hidden)).sum()
    return [hidden.detach(), *torch.autograd.grad(loss, model.parameters())]


def weights(hidden: Tensor) -> Tensor:
    """Some numbers, counted from the last row, so that leading rows move none."""
    return torch.cos(torch.arange(-hidden.numel(), 0)).view_as(hidden).to(hidden.dtype)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("leading", [None, (33, 2), (60,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_equals_the_composed_pass(
    kind: str,
    dtype: torch.dtype,
    leading: tuple[int, ...] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Under dropout too: the same operations in the same order, so the same hidden states, and
    gradients that differ by where two of them are added, float32 rounding.
    """
    model = encoder(kind, dtype)
    parts = batch((5, 40, 17)), None if leading is None else batch(leading, seed=1)
    fast = run(model, *parts)
    monkeypatch.setattr(encoder_module, "packed_forward", composed_forward)
    composed = run(model, *parts)
    assert torch.equal(fast[0], composed[0])
    for found, expected in zip(fast[1:], composed[1:], strict=True):
        scale = expected.abs().max()
        tolerance = 8 * torch.finfo(expected.dtype).eps
        assert (found - expected).abs().max() <= tolerance * (scale + 1e-3)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("backend", ["native", "triton"])
@pytest.mark.parametrize("leading", [None, (9,)], ids=str)
def test_the_word_tables_sparse_gradient_is_the_dense_one(
    leading: tuple[int, ...] | None, backend: str
) -> None:
    """Its rows are those of the tokens that are not leading, ascending, id 0 (padding) among them
    without a gradient, and its values have the same bits: the same numbers in the same order.
    """
    model = encoder()
    model.backend = backend
    first = batch((5, 7) if backend == "triton" else (5, 40, 17))
    first.input_ids[3] = 0
    parts = first, None if leading is None else batch(leading, seed=1)
    dense = run(model, *parts)
    model.embeddings.word.sparse = True
    sparse = run(model, *parts)
    place = 1 + [n for n, _ in model.named_parameters()].index("embeddings.word.weight")
    found = sparse[place]
    assert found.is_sparse and found.is_coalesced()
    assert torch.equal(found.indices()[0], first.input_ids.unique())
    assert not found.to_dense()[0].any() and found.to_dense().any()
    for a, b in zip(dense, sparse, strict=True):
        assert torch.equal(a, b.to_dense())


def test_rows_of_other_ids_are_refused() -> None:
    model = encoder()
    model.embeddings.word.sparse = True
    first = replace(batch((5, 7)), rows=TableRows.of(batch((5, 7)).input_ids))
    run(model, first, None)
    with pytest.raises(ValueError, match="rows are not those of its input_ids"):
        run(model, replace(first, input_ids=first.input_ids.flip(0)), None)


def test_leading_tokens_change_nothing() -> None:
    """Without dropout, whose masks count rows from the first of all."""
    model = encoder().eval()
    alone = run(model, batch((5, 40, 17)), None)
    together = run(model, batch((5, 40, 17)), batch((33, 2), seed=1))
    assert torch.equal(together[0][35:], alone[0])
    assert torch.equal(together[0][:35], run(model, batch((33, 2), seed=1), None)[0])
    for found, expected in zip(together[1:], alone[1:], strict=True):
        # The same sums over the same rows.
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max() + 1e-8


def test_leading_tokens_leave_nothing_behind() -> None:
    """Rows kept: of the leading tokens one layer's, of the others every layer's."""
    stack = Stack(torch.zeros(1), 3, 5, 2, 4, torch.float32)
    assert stack.rows.shape == (5 + 3 * 2, 4)
    for layer in range(3):
        stack.all(layer).fill_(layer)
    for layer in range(3):
        assert stack.kept(layer).tolist() == [[float(layer)] * 4] * 2
    assert stack.all(2)[:5].tolist() == [[2.0] * 4] * 5


def test_without_gradient() -> None:
    model = encoder(dtype=torch.bfloat16).eval()
    one, other = batch((5, 40)), batch((3,), seed=1)
    expected = model(one, leading=other)
    assert expected.requires_grad
    with torch.no_grad():
        found = model(one, leading=other)
    assert not found.requires_grad and torch.equal(found, expected)
    with torch.inference_mode():
        assert torch.equal(model(one, leading=other), expected)


@pytest.mark.parametrize("products", ["native", "torch"])
def test_trains_after_inference(products: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of the weights that an evaluation made are written again by training."""
    if backends.why_not("linear", products, "cpu") is not None:
        pytest.skip(str(backends.why_not("linear", products, "cpu")))
    monkeypatch.setitem(backends.DEFAULTS, ("linear", "cpu"), (products,))
    model = encoder(dtype=torch.bfloat16).eval()
    with torch.inference_mode():
        before = model(batch((9,)))
    with torch.no_grad():
        model.layers[1].output.weight.mul_(2)
    after = model(batch((9,)))
    after.square().sum().backward()
    assert not torch.equal(after.detach(), before)
    assert torch.equal(copy.deepcopy(model)(batch((9,))), after)


@pytest.mark.parametrize("shape", [(48, 64), (49, 64), (48, 63)], ids=str)
@pytest.mark.parametrize("products", ["native", "torch"])
def test_layouts_follow_their_weight(products: str, shape: tuple[int, int]) -> None:
    """For either direction, also where a weight of odd size is no pairs to lay out."""
    random = torch.Generator().manual_seed(0)
    weight = Parameter(torch.randn(shape, generator=random))
    x = torch.randn(5, shape[1], generator=random).bfloat16()
    grad = torch.randn(5, shape[0], generator=random).bfloat16()
    layouts = WeightLayouts(torch.bfloat16, products)
    for _ in range(3):
        y, grad_x = torch.empty_like(grad), torch.empty_like(x)
        layouts.product(x, weight, None, y)
        layouts.backward_input(grad, weight, grad_x)
        low = weight.detach().bfloat16().float()
        # Half a unit of the result's last place, and float32 sums of at most 64 products.
        for found, exact in ((y, x.float() @ low.t()), (grad_x, grad.float() @ low)):
            torch.testing.assert_close(found.float(), exact, rtol=2**-8, atol=1e-4)
        with torch.no_grad():
            weight.mul_(-2).add_(1)


@pytest.mark.parametrize("intermediate", [96, 97], ids=["laid_out", "plain"])
def test_an_update_is_seen(intermediate: int) -> None:
    """Copies of the weights are made again after every change of the weights, in both directions;
    matrices of odd size have plain ones.
    """
    model = encoder(dtype=torch.bfloat16, intermediate=intermediate).eval()
    before = model(batch((9,))).detach()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, fused=True)
    model(batch((9,))).square().sum().backward()
    optimizer.step()
    after = model(batch((9,))).detach()
    assert not torch.equal(after, before)
    fresh = copy.deepcopy(model)
    for found, expected in zip(
        run(model, batch((9,)), None), run(fresh, batch((9,)), None), strict=True
    ):
        assert torch.equal(found, expected)
    assert torch.equal(fresh(batch((9,))).detach(), after)
    with torch.no_grad():
        model.layers[1].output.weight.mul_(2)
    assert not torch.equal(model(batch((9,))).detach(), after)


def test_a_change_before_the_backward_is_refused() -> None:
    model = encoder()
    hidden = model(batch((9,)))
    with torch.no_grad():
        model.layers[0].qkv.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        hidden.sum().backward()


def test_a_second_backward_is_refused() -> None:
    hidden = encoder()(batch((9,)))
    hidden.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="a second time"):
        hidden.sum().backward()


def test_two_passes_at_once() -> None:
    """Buffers of one are not the other's."""
    model = encoder().eval()
    alone = run(model, batch((5, 40)), None)
    first, _ = model(batch((5, 40))), model(batch((30, 31), seed=3))
    found = torch.autograd.grad((first * weights(first)).sum(), model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(found, alone[1:], strict=True))


def test_frozen_parameters() -> None:
    model = encoder()
    model.embeddings.requires_grad_(False)
    model(batch((9,))).sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith("embeddings."), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_two_runs_have_the_same_bits(dtype: torch.dtype) -> None:
    model = encoder(dtype=dtype)
    runs = [run(model, batch((5, 40, 17)), batch((33, 2), seed=1)) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_blocks_come_back() -> None:
    """A large block is used again once nothing refers to it, and not before."""
    like, shape = torch.zeros(1), (3_000_017,)
    first = empty(like, shape, torch.float32)
    place = first.data_ptr()
    view = first[5:]
    del first
    assert empty(like, shape, torch.float32).data_ptr() != place
    del view
    assert empty(like, shape, torch.float32).data_ptr() == place


def test_reference_backend_composes() -> None:
    model = encoder()
    model.backend = "torch"
    hidden = model(batch((9,)))
    assert "PackedPass" not in type(hidden.grad_fn).__name__
    assert packed_forward.__module__ == "fastadv.nn.fused_pass"
