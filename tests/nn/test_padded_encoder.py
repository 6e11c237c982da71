"""`PaddedEncoder`: transformers' own code behind the packed interface."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import tiny
import torch
from transformers import ElectraConfig, ElectraModel

from fastadv import AdversarialFinetuner, FinetuneConfig
from fastadv.batches.packing import PackedBatch, pack
from fastadv.batches.tokenized import TokenSequence
from fastadv.model_io.loading import set_dropout
from fastadv.nn.padded_encoder import PaddedEncoder

pytestmark = pytest.mark.usefixtures("one_thread")


def batch_of(*lengths: int) -> PackedBatch:
    rng = np.random.default_rng(sum(lengths))
    return pack([[TokenSequence(rng.integers(5, 90, n).astype(np.int32))] for n in lengths])


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_outputs_equal_transformers(kind: str) -> None:
    model = tiny.tiny_model(kind)
    encoder, batch = PaddedEncoder(copy.deepcopy(model)), batch_of(4, 1, 11)
    assert encoder.hidden_size == 32 and encoder.config.model_type == kind
    with torch.no_grad():
        found = encoder(batch)
        for begin, end in ((0, 4), (4, 5), (5, 16)):
            alone = model(input_ids=batch.input_ids[None, begin:end]).last_hidden_state[0]
            # float32 sums in another order, padding between them
            torch.testing.assert_close(found[begin:end], alone, atol=1e-5, rtol=0)


def test_leading_rows_are_a_pass_of_their_own() -> None:
    encoder = PaddedEncoder(tiny.tiny_model("bert"))
    first, second = batch_of(9, 2), batch_of(5, 5, 1)
    both = encoder(second, leading=first)
    with torch.no_grad():
        assert torch.equal(both, torch.cat([encoder(first), encoder(second)]))
    for gradient in torch.autograd.grad(
        both[:11].sum(), list(encoder.parameters()), retain_graph=True
    ):
        assert not gradient.any()
    shared = torch.autograd.grad(both[11:].square().sum(), list(encoder.parameters()))
    alone = torch.autograd.grad(encoder(second).square().sum(), list(encoder.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(shared, alone, strict=True))


def test_pooler_is_set_aside() -> None:
    model = tiny.tiny_model("bert")
    pooler, encoder = model.pooler, PaddedEncoder(model)
    assert not any("pooler" in name for name, _ in encoder.named_parameters())
    with encoder.complete() as complete:
        assert complete is model and model.pooler is pooler
    assert model.pooler is None


def test_parameters_by_transformers_names() -> None:
    model = tiny.tiny_model("distilbert")
    named = dict(PaddedEncoder(model).named_parameters())
    found = PaddedEncoder(model).to_huggingface(named)
    assert found.keys() == dict(model.named_parameters()).keys()


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_dropout_is_set_everywhere(kind: str) -> None:
    model = tiny.tiny_model(kind)
    set_dropout(model, model.config, 0.25)
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.25}


def test_an_architecture_of_its_own_trains() -> None:
    model = ElectraModel(
        ElectraConfig(
            vocab_size=len(tiny.tiny_tokenizer()),
            embedding_size=32,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=4,
            intermediate_size=64,
        )
    )
    config = FinetuneConfig(max_length=32, lr_task=1e-2, lr_generator=1e-3, batch_size=4, steps=2)
    tuner = AdversarialFinetuner(
        model, labels=tiny.LABELS, config=config, tokenizer=tiny.tiny_tokenizer(), device="cpu"
    )
    assert isinstance(tuner.model.encoder, PaddedEncoder)
    before = {n: p.detach().clone() for n, p in tuner.model.named_parameters()}
    tuner.fit(tiny.ENGLISH, {"de": tiny.GERMAN}, quiet=True)
    for name in ("encoder.model.encoder.layer.0.output.dense.weight", "discriminator.weight"):
        assert not torch.equal(tuner.model.get_parameter(name), before[name]), name
