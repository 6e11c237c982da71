"""What a packed pass reads of an encoder: its weights, and the tokens."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from fastadv.batches.packing import TableRows
from fastadv.nn.architectures import Architecture


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


@dataclass(frozen=True)
class Tokens:
    """The packed tokens of a pass, and how many leading ones need no gradient.

    input_ids and position_ids are (T,) int64, cu_seqlens (B + 1,) int32, seed (1,) int64 or None.
    With rows, those of the tokens after the leading ones, the word table's gradient is sparse.
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
