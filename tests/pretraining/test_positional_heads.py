"""Heads that look at neighbours from the start."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertModel

from fastadv.pretraining.positional_heads import OFFSETS, set_positional_heads


def attention(heads: int, width: int) -> list[torch.Tensor]:
    """Of random pieces, (heads, L, L) a layer."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=500, hidden_size=width, num_hidden_layers=3, num_attention_heads=heads,
        intermediate_size=64, max_position_embeddings=128, attn_implementation="eager",
    )  # fmt: skip
    model = BertModel(config, add_pooling_layer=False).eval()
    set_positional_heads(model)
    ids = torch.randint(500, (1, 64))
    with torch.no_grad():
        return [a[0] for a in model(ids, output_attentions=True).attentions]


@pytest.mark.parametrize(("heads", "width"), [(4, 256), (8, 256), (12, 384), (2, 64)])
def test_each_head_looks_at_its_offset(heads: int, width: int) -> None:
    layers = attention(heads, width)
    for found, offsets in zip(layers, OFFSETS, strict=False):
        for head, offset in list(enumerate(offsets))[:heads]:
            inner = torch.arange(16, 48)
            # Random pieces add noise to the scores, so this holds in the mean over positions.
            mean = {k: float(found[head][inner, inner + k].mean()) for k in range(-16, 17)}
            assert max(mean, key=lambda k: mean[k]) == offset
            assert mean[offset] > 3 / 64, "three times what an even spread would give"
    # The third layer begins at random: no head of it prefers one place by much.
    assert layers[2].max() < 0.5


def test_weights_stay_finite_where_the_head_is_odd() -> None:
    config = BertConfig(
        vocab_size=50, hidden_size=15, num_hidden_layers=1, num_attention_heads=3,
        intermediate_size=16, max_position_embeddings=16,
    )  # fmt: skip
    model = BertModel(config, add_pooling_layer=False)
    set_positional_heads(model)
    assert all(torch.isfinite(p).all() for p in model.parameters())
