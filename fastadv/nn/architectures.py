"""The encoders that `PackedBert` runs: what their configurations say, and how weights are named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MODEL_TYPES = ("bert", "roberta", "xlm-roberta", "distilbert")

# Our names to theirs, within the embeddings and within a layer; where one of ours has several of
# theirs, those matrices are stacked in it.
_BERT_EMBEDDINGS = {
    "word": ("word_embeddings",),
    "position": ("position_embeddings",),
    "token_type": ("token_type_embeddings",),
    "norm": ("LayerNorm",),
}
_DISTILBERT_EMBEDDINGS = {n: t for n, t in _BERT_EMBEDDINGS.items() if n != "token_type"}
_BERT_LAYER = {
    "qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention_output": ("attention.output.dense",),
    "attention_norm": ("attention.output.LayerNorm",),
    "intermediate": ("intermediate.dense",),
    "output": ("output.dense",),
    "output_norm": ("output.LayerNorm",),
}
_DISTILBERT_LAYER = {
    "qkv": ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    "attention_output": ("attention.out_lin",),
    "attention_norm": ("sa_layer_norm",),
    "intermediate": ("ffn.lin1",),
    "output": ("ffn.lin2",),
    "output_norm": ("output_layer_norm",),
}


@dataclass(frozen=True)
class DropoutRates:
    """Dropout probabilities, by site."""

    embedding: float
    attention: float
    attention_output: float
    output: float

    def any(self) -> bool:
        """Whether there is any dropout at all."""
        return max(self.embedding, self.attention, self.attention_output, self.output) > 0


@dataclass(frozen=True)
class Architecture:
    """A transformers encoder of one of `MODEL_TYPES`, as its configuration describes it.

    Attributes:
        hidden_size, heads, layers, intermediate_size: H, N, L and I.
        vocabulary, positions: Rows of the word and position tables.
        token_types: Rows of the token-type table, of which row 0 is used; 0 for no table.
        eps: The eps of every layer norm.
        dropout: Its probabilities, by site.
        padding_idx: The word that gets no gradient; None for none.
        position_padding_idx: The position of a padding id, which gets no gradient; real positions
            count from the next one on (RoBERTa). None where they count from 0.
        names: Our name to theirs, for every parameter; "embeddings.word.weight" and so on.
    """

    hidden_size: int
    heads: int
    layers: int
    intermediate_size: int
    vocabulary: int
    positions: int
    token_types: int
    eps: float
    dropout: DropoutRates
    padding_idx: int | None
    position_padding_idx: int | None
    names: Mapping[str, tuple[str, ...]]

    @property
    def max_length(self) -> int:
        """The longest sequence that there are positions for, in tokens."""
        before = 0 if self.position_padding_idx is None else self.position_padding_idx + 1
        return self.positions - before

    def to_packed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors under our names, given under transformers': weights, or their gradients.

        Q, K and V become one new tensor, all others are the ones given. Any part of the parameters
        will do, if none of Q, K and V comes without the other two.

        Raises:
            ValueError: A name is not one of the encoder's, or a part of Q, K and V is missing.
        """
        left, packed = dict(tensors), dict[str, Tensor]()
        for ours, theirs in self.names.items():
            missing = [name for name in theirs if name not in left]
            if len(missing) == len(theirs):
                continue
            if missing:
                raise ValueError(f"found no {missing[0]}, expected it beside the rest of {ours}")
            parts = [left.pop(name) for name in theirs]
            packed[ours] = parts[0] if len(parts) == 1 else torch.cat(parts)
        if left:
            raise ValueError(f"found {next(iter(left))}, expected a parameter of the encoder")
        return packed

    def to_huggingface(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of `to_packed`; Q, K and V are views of the tensor that holds them.

        Raises:
            ValueError: A name is not one of the encoder's.
        """
        found = dict[str, Tensor]()
        for ours, tensor in tensors.items():
            if ours not in self.names:
                raise ValueError(f"found {ours}, expected a parameter of the encoder")
            theirs = self.names[ours]
            found.update(zip(theirs, tensor.chunk(len(theirs)), strict=True))
        return found


def supports(config: Any) -> bool:
    """Whether a transformers configuration is of one of the types that `PackedBert` runs."""
    return getattr(config, "model_type", None) in MODEL_TYPES


def why_not(config: Any) -> str | None:
    """Why `PackedBert` cannot run an encoder, "found X, expected Y"; None if it can."""
    if not supports(config):
        kind = getattr(config, "model_type", None)
        return f"found a model of type {kind!r}, expected one of {', '.join(MODEL_TYPES)}"
    if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
        return "found a decoder, expected an encoder"
    activation = config.activation if config.model_type == "distilbert" else config.hidden_act
    if activation != "gelu":
        return f"found activation {activation!r}, expected 'gelu', the one with erf"
    scheme = getattr(config, "position_embedding_type", None) or "absolute"
    if scheme != "absolute":
        return f"found positions of type {scheme!r}, expected 'absolute'"
    if "roberta" in config.model_type and config.pad_token_id is None:
        return "found no pad_token_id, expected one, from which RoBERTa counts positions"
    if config.pad_token_id is not None and config.pad_token_id < 0:
        return f"found pad_token_id {config.pad_token_id}, expected a row of the word table"
    return None


def architecture_of(config: Any) -> Architecture:
    """What a transformers configuration says.

    Raises:
        ValueError: `PackedBert` cannot run it; see `why_not`.
    """
    reason = why_not(config)
    if reason is not None:
        raise ValueError(reason)
    return _distilbert(config) if config.model_type == "distilbert" else _bert(config)


def _bert(config: Any) -> Architecture:
    hidden = float(config.hidden_dropout_prob)
    roberta = "roberta" in config.model_type
    return Architecture(
        hidden_size=config.hidden_size,
        heads=config.num_attention_heads,
        layers=config.num_hidden_layers,
        intermediate_size=config.intermediate_size,
        vocabulary=config.vocab_size,
        positions=config.max_position_embeddings,
        token_types=config.type_vocab_size,
        eps=config.layer_norm_eps,
        dropout=DropoutRates(hidden, float(config.attention_probs_dropout_prob), hidden, hidden),
        padding_idx=config.pad_token_id,
        position_padding_idx=config.pad_token_id if roberta else None,
        names=_names(
            _BERT_EMBEDDINGS, _BERT_LAYER, "encoder.layer.{}.".format, config.num_hidden_layers
        ),
    )


def _distilbert(config: Any) -> Architecture:
    hidden = float(config.dropout)
    return Architecture(
        hidden_size=config.dim,
        heads=config.n_heads,
        layers=config.n_layers,
        intermediate_size=config.hidden_dim,
        vocabulary=config.vocab_size,
        positions=config.max_position_embeddings,
        token_types=0,
        # transformers writes this one into the model, not into its configuration.
        eps=1e-12,
        dropout=DropoutRates(hidden, float(config.attention_dropout), 0.0, hidden),
        padding_idx=config.pad_token_id,
        position_padding_idx=None,
        names=_names(
            _DISTILBERT_EMBEDDINGS,
            _DISTILBERT_LAYER,
            "transformer.layer.{}.".format,
            config.n_layers,
        ),
    )


def _names(
    embeddings: Mapping[str, tuple[str, ...]],
    layer: Mapping[str, tuple[str, ...]],
    prefix: Callable[[int], str],
    layers: int,
) -> dict[str, tuple[str, ...]]:
    modules = {f"embeddings.{n}": _under("embeddings.", t) for n, t in embeddings.items()}
    for i in range(layers):
        modules |= {f"layers.{i}.{n}": _under(prefix(i), t) for n, t in layer.items()}
    names = {}
    for ours, theirs in modules.items():
        table = ours.startswith("embeddings.") and not ours.endswith(".norm")
        for kind in ("weight",) if table else ("weight", "bias"):
            names[f"{ours}.{kind}"] = tuple(f"{name}.{kind}" for name in theirs)
    return names


def _under(prefix: str, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(prefix + name for name in names)
