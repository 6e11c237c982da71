"""The encoders that step_time.py runs, and what all systems start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertModel, PreTrainedModel

from fastadv import FinetuneConfig
from fastadv.device import resolve_precision
from fastadv.model_io.loading import load_encoder
from fastadv.nn.heads import output_projection
from step.batches import Shape
from step.systems import Setup

# Weights are random, because time does not depend on their values.
MODEL_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "vocab_size": 500,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    },
    # BERT-Mini (Turc et al., 2019) with multilingual BERT's vocabulary.
    "mini": {
        "vocab_size": 119547,
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 1024,
    },
    # intfloat/multilingual-e5-small.
    "e5-small": {
        "vocab_size": 250037,
        "hidden_size": 384,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    },
    # bert-base-multilingual-cased.
    "mbert": {
        "vocab_size": 119547,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
    },
}


def make_encoder(size: str, folder: Path | None, least_vocab: int) -> PreTrainedModel:
    """The model in `folder`, or, where that is None, one of `size` with random weights.

    Args:
        size: A name in `MODEL_SIZES`.
        least_vocab: The number of ids that texts may hold; a smaller table is enlarged to it.

    Raises:
        ValueError: The folder holds no encoder.
    """
    if folder is not None:
        return load_encoder(folder)
    settings = MODEL_SIZES[size]
    settings = settings | {"vocab_size": max(settings["vocab_size"], least_vocab)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return BertModel(BertConfig(**settings))


def make_setup(
    encoder: PreTrainedModel,
    tokenizer: Any,
    shape: Shape,
    device: torch.device,
    precision: Any,
    backend: str | None,
) -> Setup:
    """What every system of one shape starts from."""
    precision = resolve_precision(precision, device)
    config = FinetuneConfig(precision=precision, max_length=shape.max_length, backend=backend)
    hidden, std = encoder.config.hidden_size, encoder.config.initializer_range
    return Setup(
        encoder,
        output_projection(hidden, len(shape.labels), std, seed=1),
        output_projection(hidden, 1, std, seed=2),
        tokenizer,
        shape.task,
        shape.labels,
        config.resolved(shape.task),
        device,
    )
