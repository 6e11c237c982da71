"""Whose the weights of `PackedBert` are, which of them train, and which models get one."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import tiny
import torch
from encoders import batch_of, made, reference
from transformers import BertForMaskedLM, ElectraConfig, ElectraModel

import fastadv.nn.composed_pass
import fastadv.nn.packed_encoder
from fastadv.batches.packing import pack
from fastadv.batches.tokenized import TokenSequence
from fastadv.nn.encoder import build_encoder
from fastadv.nn.packed_encoder import PackedBert
from fastadv.nn.padded_encoder import PaddedEncoder

pytestmark = pytest.mark.usefixtures("one_thread")

# float32 sums of some hundred numbers near 1 through two layers, in another order.
TOLERANCE = 1e-5


def storages(*modules: torch.nn.Module) -> dict[int, int]:
    """Bytes of every storage that parameters lie in."""
    found = [p.untyped_storage() for module in modules for p in module.parameters()]
    return {s.data_ptr(): s.nbytes() for s in found}


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_the_model_stays_a_view_of_the_weights(kind: str) -> None:
    model = tiny.tiny_model(kind)
    model.pooler = None
    held = list(model.parameters())
    before = sum(storages(model).values())
    encoder = PackedBert(model)
    assert sum(storages(encoder).values()) == before
    assert storages(encoder) == storages(encoder, model)
    # Nor does one keep a second copy alive who holds the parameters that were there before.
    assert {p.untyped_storage().data_ptr() for p in held} <= storages(encoder).keys()
    # Weights that move, or are replaced, take the model along.
    encoder.to(torch.float64).to(torch.float32)
    assert storages(encoder) == storages(encoder, model)
    encoder.layers[1].qkv.weight.data = torch.zeros(96, 32)
    with encoder.complete() as complete:
        assert complete is model and storages(encoder) == storages(encoder, model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_weights_written_on_either_side_are_read_on_the_other(
    kind: str, dtype: torch.dtype
) -> None:
    """No pass runs on weights of yesterday."""
    model = tiny.tiny_model(kind)
    encoder, batch = PackedBert(model, dtype).eval(), batch_of((12, 3))
    tolerance = TOLERANCE if dtype == torch.float32 else 0.1
    seen = []

    def check() -> None:
        with torch.no_grad(), encoder.complete() as complete:
            found, expected = encoder(batch), reference(complete, batch)
            assert complete is model
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)
        assert all((found - earlier).abs().max() > 0.3 for earlier in seen)
        seen.append(found)

    check()
    model.load_state_dict(tiny.tiny_model(kind, seed=1).state_dict())
    check()
    optimizer = torch.optim.Adam(encoder.parameters(), lr=0.1, fused=True)
    encoder(batch).square().sum().backward()
    optimizer.step()
    check()
    for parameter in encoder.parameters():
        parameter.data = parameter.data.flip(0)
    check()


def test_the_pooler_is_set_aside_and_kept() -> None:
    model = tiny.tiny_model("bert")
    pooler = model.pooler.dense.weight.detach().clone()
    encoder = PackedBert(model)
    assert len(list(encoder.parameters())) == 5 + 2 * 12
    assert not any("pooler" in name for name in encoder.state_dict())
    with encoder.complete() as complete:
        assert torch.equal(complete.pooler.dense.weight, pooler)


def test_frozen_parameters_stay_frozen() -> None:
    model = tiny.tiny_model("bert")
    for part in (model.embeddings, model.encoder.layer[0].attention.self):
        part.requires_grad_(False)
    names = {n for n, p in PackedBert(model).named_parameters() if not p.requires_grad}
    assert names == {
        *(f"embeddings.{n}.weight" for n in ("word", "position", "token_type", "norm")),
        "embeddings.norm.bias",
        "layers.0.qkv.weight",
        "layers.0.qkv.bias",
    }
    half = tiny.tiny_model("bert")
    half.encoder.layer[1].attention.self.key.requires_grad_(False)
    with pytest.raises(ValueError, match=r"found layers\.1\.qkv\.weight frozen in part"):
        PackedBert(half)


def test_weights_of_fewer_bits_become_float32() -> None:
    model = tiny.tiny_model("bert").to(torch.bfloat16)
    encoder = PackedBert(model, torch.bfloat16)
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    assert encoder(batch_of((3,))).dtype == torch.float32
    double = PackedBert(tiny.tiny_model("bert"), torch.float64)
    assert double(batch_of((3,))).dtype == torch.float64


def test_what_does_not_fit_is_refused_in_words() -> None:
    encoder, _ = made("bert", max_position_embeddings=16)
    encoder(batch_of((16,)))
    with pytest.raises(ValueError, match="found a sequence of 17 tokens, expected at most 16"):
        encoder(batch_of((3, 17)))
    with pytest.raises(ValueError, match="found a sequence of 20 tokens"):
        encoder(batch_of((3,)), leading=batch_of((20,)))
    size = len(tiny.tiny_tokenizer())
    batch = pack([[TokenSequence(np.array([5, size], np.int32))]])
    with pytest.raises(ValueError, match=str(size)):
        encoder(batch)
    with pytest.raises(ValueError, match="found a BertForMaskedLM, expected the encoder alone"):
        PackedBert(BertForMaskedLM(tiny.tiny_config("bert")))
    with pytest.raises(ValueError, match="found activation 'relu'"):
        PackedBert(tiny.tiny_model("bert", hidden_act="relu"))


def electra() -> ElectraModel:
    return ElectraModel(
        ElectraConfig(
            vocab_size=99,
            embedding_size=32,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=4,
            intermediate_size=64,
        )
    )


def test_the_encoder_is_chosen_by_architecture(caplog: pytest.LogCaptureFixture) -> None:
    fastadv.nn.encoder._say_padded.cache_clear()
    with caplog.at_level(logging.INFO, logger="fastadv"):
        assert isinstance(build_encoder(tiny.tiny_model("roberta")), PackedBert)
        # Who asks for it needs not be told.
        assert isinstance(build_encoder(tiny.tiny_model("roberta"), "padded"), PaddedEncoder)
        assert isinstance(build_encoder(electra(), "padded"), PaddedEncoder)
        assert not caplog.records
        for _ in range(2):
            assert isinstance(build_encoder(electra()), PaddedEncoder)
        [record] = caplog.records
        assert "padded" in record.message and "type 'electra'" in record.message
        build_encoder(tiny.tiny_model("bert", hidden_act="gelu_new"))
        assert "'gelu_new'" in caplog.records[-1].message and len(caplog.records) == 2
    with pytest.raises(ValueError, match="found a model of type 'electra', expected one of bert"):
        build_encoder(electra(), "packed")
    low = build_encoder(tiny.tiny_model("bert"), "auto", torch.bfloat16, "torch")
    assert isinstance(low, PackedBert)
    assert (low.dtype, low.backend) == (torch.bfloat16, "torch")
