"""An initialisation with which heads look at neighbours from the first step on.

A BERT that starts at random has no use for attention until it has found positions, and stays on a
plateau meanwhile: it predicts every masked piece from the frequencies of pieces alone. Here the
position table is sinusoidal (Vaswani et al. 2017, section 3.5) in as many units as a head has,
where the other tables begin as zeros. In those units query and key weights hold the identity, the
query's turned by one angle per frequency. This makes a head's score a bump around position i +
offset (ibid.: a fixed offset is a linear function of the encoding). Trockman and Kolter (2023,
"Mimetic initialization of self-attention layers") start from Q K^T near the identity for the same
reason. All of it is trained on like any other weight.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from transformers import BertModel

# Where the heads of the first and of the second layer look.
OFFSETS = ((-1, 1, -2, 2, -3, 3, -4, 4), (-1, 1, -2, 2, -4, 4, -8, 8))
# How much higher a head scores the position that it looks at than its neighbours; natural logarithm
# of the ratio of attention weights.
SHARPNESS = 3.0


@torch.no_grad()
def set_positional_heads(model: BertModel) -> None:
    """Changes a model that transformers has initialised, in place."""
    config: Any = model.config
    size = config.hidden_size // config.num_attention_heads
    pairs = size // 2
    angles = _frequencies(pairs)
    tables: Any = model.embeddings
    layers: Any = model.encoder.layer
    amplitude = config.initializer_range * math.sqrt(2)
    encoding = torch.arange(config.max_position_embeddings)[:, None] * angles
    tables.position_embeddings.weight.zero_()
    tables.position_embeddings.weight[:, : 2 * pairs] = amplitude * _interleaved(
        encoding.sin(), encoding.cos()
    )
    tables.word_embeddings.weight[:, : 2 * pairs] = 0
    tables.token_type_embeddings.weight.zero_()
    gain = _gain(config, amplitude, angles)
    for layer, offsets in zip(layers, OFFSETS, strict=False):
        attention = layer.attention.self
        for head in range(min(config.num_attention_heads, len(offsets))):
            rows = slice(head * size, head * size + 2 * pairs)
            # Half of the noise, so that scores begin as the scores of positions.
            attention.query.weight[rows] *= 0.5
            attention.key.weight[rows] *= 0.5
            attention.query.weight[rows, : 2 * pairs] += gain * _turn(angles * offsets[head])
            attention.key.weight[rows, : 2 * pairs] += gain * torch.eye(2 * pairs)


def _frequencies(pairs: int) -> Tensor:
    """(pairs,) radians a position, from one turn in 300 positions to almost half a turn in one."""
    return torch.linspace(math.log(2 * math.pi / 300), math.log(2.5), pairs).exp()


def _interleaved(first: Tensor, second: Tensor) -> Tensor:
    return torch.stack([first, second], -1).flatten(-2)


def _turn(angles: Tensor) -> Tensor:
    """(2P, 2P): the matrix that turns (sin a, cos a) pairs into the pairs of a + angle."""
    blocks = [torch.tensor([[a.cos(), a.sin()], [-a.sin(), a.cos()]]) for a in angles]
    return torch.block_diag(*blocks)


def _gain(config: Any, amplitude: float, angles: Tensor) -> float:
    """The factor that makes the scores of positions 0 and 1 apart differ by SHARPNESS."""
    size, width = config.hidden_size // config.num_attention_heads, config.hidden_size
    # The embeddings' layer norm divides by the root mean square of a row.
    words = config.initializer_range**2 * (width - 2 * len(angles))
    positions = amplitude**2 * len(angles)
    normed = amplitude / math.sqrt((words + positions) / width)
    drop = normed**2 * float((1 - angles.cos()).sum())
    return math.sqrt(SHARPNESS * math.sqrt(size) / drop)
