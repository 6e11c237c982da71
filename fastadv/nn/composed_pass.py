"""The encoder's forward pass, one public operation after another; autograd does the rest."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastadv.nn.packed_weights import PackedLayer, PackedWeights, Tokens
from fastadv.ops.bias_gelu import bias_gelu
from fastadv.ops.dropout_add_layer_norm import dropout_add_layer_norm
from fastadv.ops.embedding_layer_norm import embedding_layer_norm
from fastadv.ops.linear import linear
from fastadv.ops.varlen_attention import varlen_attention


def composed_forward(encoder: PackedWeights, tokens: Tokens) -> Tensor:
    """Last hidden states of packed tokens.

    Args:
        encoder: Its weights, architecture, dtype and backend are read.
        tokens: The tokens, of which the leading ones need no gradient.

    Returns:
        (T, H) in the type of the weights, float32 (float64 for a float64 encoder).
    """
    kind, tables = encoder.architecture, encoder.embeddings
    token_type = tables.token_type.weight[0] if tables.token_type is not None else None
    seed = tokens.seed
    common: dict[str, Any] = {"leading": tokens.leading, "backend": encoder.backend}
    hidden = embedding_layer_norm(
        tokens.input_ids,
        tokens.position_ids,
        tables.word.weight,
        tables.position.weight,
        token_type,
        tables.norm.weight,
        tables.norm.bias,
        eps=kind.eps,
        p=kind.dropout.embedding if seed is not None else 0.0,
        seed=seed,
        site=0,
        padding_idx=kind.padding_idx,
        position_padding_idx=kind.position_padding_idx,
        **common,
    )
    for number, layer in enumerate(encoder.layers):
        hidden = _layer(encoder, layer, number, hidden, tokens)
    return hidden


def _layer(
    encoder: PackedWeights,
    layer: PackedLayer,
    number: int,
    hidden: Tensor,
    tokens: Tokens,
) -> Tensor:
    kind, rates, seed = encoder.architecture, encoder.architecture.dropout, tokens.seed
    common: dict[str, Any] = {"leading": tokens.leading, "backend": encoder.backend}

    def drawn(rate: float, site: int) -> dict[str, Any]:
        return {"p": rate if seed is not None else 0.0, "seed": seed, "site": 3 * number + site}

    # The matrix products read `encoder.dtype`; what bypasses them stays in the type of the weights.
    qkv = linear(hidden.to(encoder.dtype), layer.qkv.weight, layer.qkv.bias, **common)
    context = varlen_attention(
        qkv, tokens.cu_seqlens, tokens.max_seqlen, kind.heads, **drawn(rates.attention, 1), **common
    )
    hidden = dropout_add_layer_norm(
        linear(context, layer.attention_output.weight, **common),
        layer.attention_output.bias,
        hidden,
        layer.attention_norm.weight,
        layer.attention_norm.bias,
        eps=kind.eps,
        **drawn(rates.attention_output, 2),
        **common,
    )
    inner = bias_gelu(
        linear(hidden.to(encoder.dtype), layer.intermediate.weight, **common),
        layer.intermediate.bias,
        **common,
    )
    return dropout_add_layer_norm(
        linear(inner, layer.output.weight, **common),
        layer.output.bias,
        hidden,
        layer.output_norm.weight,
        layer.output_norm.bias,
        eps=kind.eps,
        **drawn(rates.output, 3),
        **common,
    )
