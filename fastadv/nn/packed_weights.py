"""What a packed pass reads of an encoder: its weights, and the tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parameter import Parameter

from fastadv.batches.packing import TableRows
from fastadv.nn.architectures import Architecture
from fastadv.weights.flat import FlatParameters
from fastadv.weights.layouts import WeightLayouts


class PackedEmbeddings(nn.Module):
    """Three tables, the last of which DistilBERT does not have, and a layer norm."""

    def __init__(self, kind: Architecture) -> None:
        super().__init__()
        width = kind.hidden_size
        self.word = nn.Embedding(kind.vocabulary, width)
        self.position = nn.Embedding(kind.positions, width)
        self.token_type = nn.Embedding(kind.token_types, width) if kind.token_types else None
        self.norm = nn.LayerNorm(width, kind.eps)


class PackedLayer(nn.Module):
    """The weights of a layer; Q, K and V are one matrix, in this order."""

    def __init__(self, kind: Architecture) -> None:
        super().__init__()
        width, inner = kind.hidden_size, kind.intermediate_size
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_output = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, kind.eps)
        self.intermediate = nn.Linear(width, inner)
        self.output = nn.Linear(inner, width)
        self.output_norm = nn.LayerNorm(width, kind.eps)


class PackedWeights(Protocol):
    """What a pass reads of an encoder.

    Attributes:
        architecture: Sizes, rates and what the architecture does its own way.
        embeddings, layers: The weights; `layers` is a sequence of `PackedLayer`.
        dtype: The type that matrix products read.
        backend: Backend of the operations; None for the default.
        layouts: The copies of weights that matrix products read.
        flat: Weights in one buffer, whose gradients are also written to one; None for none.
    """

    architecture: Architecture
    embeddings: PackedEmbeddings
    layers: Any
    dtype: torch.dtype
    backend: str | None
    layouts: WeightLayouts
    flat: FlatParameters | None

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """See `torch.nn.Module`."""

    def keep_squares(self, name: str, squares: Tensor) -> None:
        """Takes the sum of squares of a weight's gradient, () float64, from a backward pass."""


@dataclass(frozen=True)
class Tokens:
    """The packed tokens of a pass, and how many leading ones need no gradient.

    input_ids and position_ids are (T,) int64, cu_seqlens (B + 1,) int32, seed (1,) int64 or None.
    With `rows`, the rows of the tokens after the leading ones, the word table's gradient is sparse.
    """

    input_ids: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    leading: int
    seed: Tensor | None
    rows: TableRows | None = None

    @property
    def total(self) -> int:
        """T."""
        return self.input_ids.shape[0]
