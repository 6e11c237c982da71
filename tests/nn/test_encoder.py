"""`PackedBert` against transformers, sequence by sequence."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from encoders import batch_of, made, reference
from torch import Tensor
from transformers import PreTrainedModel

import fastadv.nn.composed_pass
import fastadv.nn.packed_encoder
from fastadv import backends
from fastadv.batches.packing import PackedBatch, pack
from fastadv.batches.tokenized import TokenSequence
from fastadv.nn.packed_encoder import PackedBert

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTHS = ((5, 1, 9), (1,), (512,), (1,) * 64, (33, 2, 17, 64, 31))
DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
# float32 sums of some hundred numbers near 1 through two layers, in another order.
TOLERANCE = 1e-5


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", [None, "torch"])
@pytest.mark.parametrize("lengths", LENGTHS, ids=lambda n: f"{len(n)}x{max(n)}")
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_outputs_equal_transformers(
    kind: str, lengths: tuple[int, ...], backend: str | None, device: str
) -> None:
    encoder, model = made(kind, backend=backend)
    encoder, model, batch = encoder.to(device), model.to(device), batch_of(lengths).to(device)
    with torch.no_grad():
        found, expected = encoder(batch), reference(model, batch)
    assert found.dtype == torch.float32 and found.shape == (sum(lengths), 32)
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


def gradients(
    encoder: PackedBert, batch: PackedBatch, weight: Tensor, leading: PackedBatch | None = None
) -> dict[str, Tensor]:
    """Of sum(weight * hidden) over the batch's rows, under transformers' names."""
    hidden = encoder(batch, leading)[-batch.num_tokens :]
    names, parameters = zip(*encoder.named_parameters(), strict=True)
    found = torch.autograd.grad((hidden * weight).sum(), parameters)
    return encoder.to_huggingface(dict(zip(names, found, strict=True)))


def reference_gradients(
    model: PreTrainedModel, batch: PackedBatch, weight: Tensor, autocast: bool = False
) -> dict[str, Tensor]:
    named = {n: p for n, p in model.named_parameters() if not n.startswith("pooler.")}
    with torch.autocast(weight.device.type, torch.bfloat16, enabled=autocast):
        hidden = reference(model, batch)
    found = torch.autograd.grad((hidden * weight).sum(), list(named.values()))
    return dict(zip(named, found, strict=True))


def cotangent(batch: PackedBatch, device: str = "cpu") -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(batch.num_tokens, 32, generator=generator).to(device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", [None, "torch"])
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_every_gradient_equals_transformers(kind: str, backend: str | None, device: str) -> None:
    encoder, model = made(kind, backend=backend)
    batch = batch_of(LENGTHS[-1], low=0).to(device)
    weight = cotangent(batch, device)
    found = gradients(encoder.to(device), batch, weight)
    expected = reference_gradients(model.to(device).double(), batch, weight.double())
    assert found.keys() == expected.keys()
    whole = torch.stack([g.norm() for g in expected.values()]).norm()
    for name, gradient in expected.items():
        # Rounding of float32 through two layers, relative; key biases, whose exact gradient is
        # zero, get what is left of sums as large as the whole.
        allowed = 1e-5 * gradient.norm() + 1e-7 * whole
        assert found[name].dtype == torch.float32
        assert (found[name] - gradient).norm() <= allowed, name


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_bfloat16_errs_no_more_than_transformers(kind: str, device: str) -> None:
    """Outputs and every gradient in bfloat16, against float64."""
    ours: dict[str, float] = {}
    theirs: dict[str, float] = {}
    # Of a vector of 32 numbers alone, either may round luckily: errors are summed over ten models.
    for seed in range(10):
        encoder, model = made(kind, torch.bfloat16, seed=seed)
        exact = copy.deepcopy(model).double().to(device)
        model, encoder = model.to(device), encoder.to(device)
        batch = batch_of((60, 3, 120, 41, 90), seed).to(device)
        weight = cotangent(batch, device)
        with torch.no_grad(), torch.autocast(device, torch.bfloat16):
            rounded = {"output": reference(model, batch)}
        with torch.no_grad():
            found, right = {"output": encoder(batch)}, {"output": reference(exact, batch)}
        assert found["output"].dtype == torch.float32
        found |= gradients(encoder, batch, weight)
        rounded |= reference_gradients(model, batch, weight, autocast=True)
        right |= reference_gradients(exact, batch, weight.double())
        for name, value in right.items():
            # Sums that meet no bfloat16 at all are float32's in some order.
            floor = 1e-6 * float(value.norm())
            error, own = (float((x[name] - value).norm()) for x in (found, rounded))
            ours[name] = ours.get(name, 0.0) + error**2
            theirs[name] = theirs.get(name, 0.0) + (own + floor) ** 2
    for name, error in ours.items():
        # The library's promise: at most half as much again as transformers under autocast.
        assert error <= 1.5**2 * theirs[name], f"{name}: {(error / theirs[name]) ** 0.5:.2f}"


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta"])
def test_positions_are_counted_over_ids_that_are_no_padding(kind: str) -> None:
    """As transformers' create_position_ids_from_input_ids: in a text, [PAD] has no place."""
    encoder, model = made(kind, pad_token_id=7)
    texts = [[5, 7, 9, 7, 7, 8], [7], [7, 6], [9, 9, 7]]
    batch = pack([[TokenSequence(np.array(t, np.int32))] for t in texts])
    assert encoder._positions(batch).tolist() == [8, 7, 9, 7, 7, 10, 7, 7, 8, 8, 9, 7]
    with torch.no_grad():
        torch.testing.assert_close(encoder(batch), reference(model, batch), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_padding_rows_get_no_gradient(kind: str) -> None:
    encoder, _ = made(kind, pad_token_id=7)
    batch = pack([[TokenSequence(np.array([5, 7, 9, 7], np.int32))]])
    found = gradients(encoder, batch, cotangent(batch))
    word = found["embeddings.word_embeddings.weight"]
    assert word[5].any() and word[9].any() and not word[7].any()
    position = found["embeddings.position_embeddings.weight"]
    rows = [8, 9] if "roberta" in kind else [0, 1, 2, 3]
    assert position.any(dim=1).nonzero().flatten().tolist() == rows


def test_documents_do_not_see_each_other() -> None:
    """Bit for bit: a document's rows are the same whatever is packed beside it."""
    encoder, _ = made("bert", torch.bfloat16)
    one, two = batch_of((7, 40, 12)), batch_of((7, 40, 12), seed=1)
    mixed = one.input_ids.clone()
    mixed[7:47] = two.input_ids[7:47]
    changed = PackedBatch(**{**vars(one), "input_ids": mixed})
    with torch.no_grad():
        before, after = encoder(one), encoder(changed)
    assert torch.equal(before[:7], after[:7]) and torch.equal(before[47:], after[47:])
    assert not torch.isclose(before[7:47], after[7:47]).all(dim=1).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_leading_rows_come_along_without_gradient(kind: str, dtype: torch.dtype) -> None:
    encoder, _ = made(kind, dtype)
    first, second = batch_of((9, 30, 1), seed=1), batch_of((5, 44), seed=2)
    with torch.no_grad():
        alone, behind = encoder(first), encoder(second)
    both = encoder(second, leading=first)
    tolerance = TOLERANCE if dtype == torch.float32 else 0.1
    # Blocks of a product may fall otherwise in a larger batch; bfloat16 rounds that to 8 bits.
    torch.testing.assert_close(both[:40], alone, atol=tolerance, rtol=0)
    torch.testing.assert_close(both[40:], behind, atol=tolerance, rtol=0)
    weight = cotangent(second)
    separate, shared = gradients(encoder, second, weight), gradients(encoder, second, weight, first)
    whole = torch.stack([g.norm() for g in separate.values()]).norm()
    relative = 1e-5 if dtype == torch.float32 else 2e-2
    for name, gradient in separate.items():
        # As above, and what a batch's place in memory does to sums.
        allowed = relative * gradient.norm() + 0.01 * relative * whole
        assert (shared[name] - gradient).norm() <= allowed, name


def test_leading_rows_have_no_gradient_at_all() -> None:
    encoder, _ = made("bert")
    hidden = encoder(batch_of((5,)), leading=batch_of((9,), seed=1))
    for gradient in torch.autograd.grad(hidden[:9].sum(), list(encoder.parameters())):
        assert not gradient.any()


RATES = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3}


def training(backend: str | None, dtype: torch.dtype = torch.float32) -> PackedBert:
    return made("bert", dtype, backend, **RATES)[0].train()


def seeded(
    encoder: PackedBert, batch: PackedBatch, seed: int, leading: PackedBatch | None = None
) -> list[Tensor]:
    """Hidden states and gradients of a pass in training mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        hidden = encoder(batch, leading)
    loss = (hidden[-batch.num_tokens :] * cotangent(batch)).sum()
    found = torch.autograd.grad(loss, list(encoder.parameters()))
    return [hidden.detach(), *found]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_seed_gives_one_result(dtype: torch.dtype) -> None:
    encoder, batch = training(None, dtype), batch_of((20, 7))
    once, again, other = (seeded(encoder, batch, seed) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    # Every row loses some of its numbers, others each time.
    assert not torch.isclose(once[0], other[0]).all(dim=1).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["bert", "distilbert"])
@pytest.mark.parametrize("backend", ["native", "triton"])
def test_backends_drop_the_same_units(backend: str, kind: str, dtype: torch.dtype) -> None:
    """Every site, in the leading rows and behind them, forward and backward."""
    for operation in PackedBert.operations:
        try:
            backends.resolve(operation, "cpu", backend)
        except RuntimeError as error:
            pytest.skip(str(error))
    rates = RATES if kind == "bert" else {"dropout": 0.2, "attention_dropout": 0.3}
    leading, batch = batch_of((3, 11), seed=1), batch_of((20, 7, 1))
    found: list[list[Tensor]] = []
    for name in (backend, "torch", "torch"):
        encoder = made(kind, dtype, name, **rates)[0].train()
        found.append(seeded(encoder, batch, 3 if len(found) < 2 else 4, leading))
    for ours, theirs, otherwise in zip(*found, strict=True):
        apart, different = (ours - theirs).norm(), (theirs - otherwise).norm()
        # Rounding: float32's through two layers, or bfloat16's. Other masks move every number but
        # the last layer norm's bias gradient, which is a sum over rows and no more.
        allowed = (1e-4 if dtype == torch.float32 else 0.1) * different + 1e-6 * theirs.norm()
        assert apart <= allowed


def test_sites_and_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every place has a number of its own and the rate of its architecture; one seed for all."""
    drawn: list[tuple[int, float, int]] = []
    for name in ("embedding_layer_norm", "varlen_attention", "dropout_add_layer_norm"):
        original = getattr(fastadv.nn.composed_pass, name)

        def spy(*args: Any, original: Any = original, **options: Any) -> Tensor:
            drawn.append((options["site"], options["p"], int(options["seed"])))
            return original(*args, **options)

        monkeypatch.setattr(fastadv.nn.composed_pass, name, spy)
    made("bert", backend="torch", **RATES)[0].train()(batch_of((3,)))
    sites = [(0, 0.2), (1, 0.3), (2, 0.2), (3, 0.2), (4, 0.3), (5, 0.2), (6, 0.2)]
    assert [(site, p) for site, p, _ in drawn] == sites
    assert len({seed for *_, seed in drawn}) == 1
    drawn.clear()
    distil = made("distilbert", backend="torch", dropout=0.2, attention_dropout=0.3)[0].train()
    distil(batch_of((3,)))
    assert [p for _, p, _ in drawn] == [0.2, 0.3, 0.0, 0.2, 0.3, 0.0, 0.2]


def test_nothing_is_drawn_where_nothing_is_dropped() -> None:
    batch = batch_of((4,))
    for encoder in (training(None).eval(), made("bert")[0].train()):
        state = torch.get_rng_state()
        encoder(batch)
        assert torch.equal(torch.get_rng_state(), state)
