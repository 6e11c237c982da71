"""What configurations say, and that names go over into ours and back without loss."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import Tensor
from transformers import AlbertConfig, BertConfig

from fastadv.nn.architectures import DropoutRates, architecture_of, supports, why_not


def parameters(kind: str) -> dict[str, Tensor]:
    """The encoder's parameters by transformers' names, without the pooler."""
    named = tiny.tiny_model(kind).named_parameters()
    return {n: p.detach() for n, p in named if not n.startswith("pooler.")}


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_weights_go_over_and_back(kind: str) -> None:
    architecture, theirs = architecture_of(tiny.tiny_config(kind)), parameters(kind)
    ours = architecture.to_packed(theirs)
    assert ours.keys() == architecture.names.keys()
    assert sum(t.numel() for t in ours.values()) == sum(t.numel() for t in theirs.values())
    back = architecture.to_huggingface(ours)
    assert back.keys() == theirs.keys()
    assert [n for n in theirs if not torch.equal(back[n], theirs[n])] == []
    again = architecture.to_packed(back)
    assert [n for n in ours if not torch.equal(ours[n], again[n])] == []


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_queries_keys_and_values_lie_in_this_order_and_are_views(kind: str) -> None:
    architecture, theirs = architecture_of(tiny.tiny_config(kind)), parameters(kind)
    ours = architecture.to_packed(theirs)
    qkv = ours["layers.1.qkv.weight"]
    assert qkv.shape == (96, 32) and ours["layers.1.qkv.bias"].shape == (96,)
    names = architecture.names["layers.1.qkv.weight"]
    assert [n.split(".")[-2][0] for n in names] == ["q", "k", "v"]
    back = architecture.to_huggingface(ours)
    for place, name in enumerate(names):
        assert torch.equal(qkv[32 * place : 32 * (place + 1)], theirs[name])
        back[name].fill_(place)
        assert qkv[32 * place : 32 * (place + 1)].eq(place).all()
    # What stands alone is not copied in either direction.
    table = "embeddings.word.weight"
    assert ours[table].data_ptr() == theirs[architecture.names[table][0]].data_ptr()


def test_parts_go_over_as_well() -> None:
    """Gradients of some parameters, and of part of Q, K and V, which is a mistake."""
    architecture = architecture_of(tiny.tiny_config("bert"))
    start = "encoder.layer.0.attention.self."
    parts = {f"{start}{n}.bias": torch.full((32,), k) for k, n in enumerate(("query", "key"))}
    with pytest.raises(ValueError, match=r"found no .*self\.value\.bias, expected it beside"):
        architecture.to_packed(parts)
    parts[f"{start}value.bias"] = torch.full((32,), 2)
    assert (
        architecture.to_packed(parts)["layers.0.qkv.bias"].tolist()
        == [0] * 32 + [1] * 32 + [2] * 32
    )


@pytest.mark.parametrize("name", ["pooler.dense.weight", "encoder.layer.2.output.dense.bias"])
def test_unknown_names_are_refused(name: str) -> None:
    architecture = architecture_of(tiny.tiny_config("bert"))
    for change in (architecture.to_packed, architecture.to_huggingface):
        with pytest.raises(ValueError, match=f"found {name}, expected a parameter of the encoder"):
            change({name: torch.ones(1)})


def test_rates_are_where_the_architecture_has_them() -> None:
    rates = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3}
    for kind in ("bert", "roberta", "xlm-roberta"):
        found = architecture_of(tiny.tiny_config(kind, **rates)).dropout
        assert found == DropoutRates(0.2, 0.3, 0.2, 0.2)
    distil = tiny.tiny_config("distilbert", dropout=0.2, attention_dropout=0.3)
    assert architecture_of(distil).dropout == DropoutRates(0.2, 0.3, 0.0, 0.2)
    assert not architecture_of(tiny.tiny_config("bert")).dropout.any()
    only = tiny.tiny_config("bert", attention_probs_dropout_prob=0.1)
    assert architecture_of(only).dropout.any()


def test_sizes_positions_and_padding() -> None:
    bert = architecture_of(tiny.tiny_config("bert", layer_norm_eps=1e-6, pad_token_id=3))
    assert (bert.hidden_size, bert.heads, bert.layers, bert.intermediate_size) == (32, 4, 2, 64)
    assert (bert.eps, bert.padding_idx, bert.position_padding_idx) == (1e-6, 3, None)
    assert (bert.token_types, bert.max_length) == (2, 514)
    roberta = architecture_of(tiny.tiny_config("roberta", pad_token_id=1))
    assert (roberta.padding_idx, roberta.position_padding_idx, roberta.max_length) == (1, 1, 512)
    distil = architecture_of(tiny.tiny_config("distilbert", dim=36, hidden_dim=40, n_heads=6))
    assert (distil.hidden_size, distil.heads, distil.intermediate_size) == (36, 6, 40)
    assert (distil.eps, distil.token_types, distil.max_length) == (1e-12, 0, 514)
    assert architecture_of(tiny.tiny_config("bert", pad_token_id=None)).padding_idx is None


def legacy(**attributes: object) -> BertConfig:
    config = BertConfig()
    for name, value in attributes.items():
        setattr(config, name, value)
    return config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (AlbertConfig(), "found a model of type 'albert', expected one of bert, roberta, xlm-rob"),
        (BertConfig(hidden_act="gelu_new"), "found activation 'gelu_new', expected 'gelu'"),
        (BertConfig(hidden_act="relu"), "found activation 'relu', expected 'gelu'"),
        (tiny.tiny_config("distilbert", activation="relu"), "found activation 'relu'"),
        (BertConfig(is_decoder=True), "found a decoder, expected an encoder"),
        (BertConfig(add_cross_attention=True), "found a decoder, expected an encoder"),
        (legacy(position_embedding_type="relative_key"), "found positions of type 'relative_key'"),
        (tiny.tiny_config("roberta", pad_token_id=None), "found no pad_token_id"),
        (BertConfig(pad_token_id=-1), "found pad_token_id -1"),
    ],
)
def test_what_cannot_run_is_refused_by_name(config: object, message: str) -> None:
    reason = why_not(config)
    assert reason is not None and reason.startswith(message)
    with pytest.raises(ValueError, match=message):
        architecture_of(config)


def test_what_can_run() -> None:
    for kind in tiny.KINDS:
        assert supports(tiny.tiny_config(kind)) and why_not(tiny.tiny_config(kind)) is None
    assert not supports(AlbertConfig())
    assert supports(BertConfig(hidden_act="relu"))
    assert why_not(legacy(position_embedding_type="absolute")) is None
    assert why_not(BertConfig(chunk_size_feed_forward=8)) is None
    assert why_not(tiny.tiny_config("distilbert", sinusoidal_pos_embds=True)) is None
