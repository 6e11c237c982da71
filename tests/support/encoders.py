"""Packed encoders for tests, with what transformers makes of the same tokens."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import tiny
import torch
from torch import Tensor
from transformers import PreTrainedModel

from fastadv.batches.packing import PackedBatch, pack
from fastadv.batches.tokenized import TokenSequence
from fastadv.nn.packed_encoder import PackedBert


def batch_of(lengths: Sequence[int], seed: int = 0, low: int = 5) -> PackedBatch:
    """Random ids, special ones left out."""
    rng, size = np.random.default_rng(seed), len(tiny.tiny_tokenizer())
    ids = [rng.integers(low, size, n).astype(np.int32) for n in lengths]
    return pack([[TokenSequence(i)] for i in ids])


def reference(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    """(T, H): transformers' last hidden states, one sequence at a time."""
    starts = batch.cu_seqlens.tolist()
    ids = [batch.input_ids[a:b] for a, b in itertools.pairwise(starts)]
    return torch.cat([model(input_ids=i[None]).last_hidden_state[0] for i in ids])


def made(
    kind: str, dtype: torch.dtype = torch.float32, backend: str | None = None, **changes: Any
) -> tuple[PackedBert, PreTrainedModel]:
    """An encoder, its pass the one under test, and the same model by transformers."""
    model = tiny.tiny_model(kind, **changes)
    return PackedBert(copy.deepcopy(model), dtype, backend).eval(), model
