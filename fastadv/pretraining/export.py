"""Pretrained models as folders that the Hugging Face ecosystem reads."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BertForMaskedLM

from fastadv.model_io.loading import quiet_transformers
from fastadv.pretraining.model import MaskedLanguageModel


def save_masked_language_model(
    folder: Path,
    model: MaskedLanguageModel,
    tokenizer: Any,
    dropout: float,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Writes config.json, model.safetensors and the tokenizer's files.

    The folder loads with `AutoModelForMaskedLM`, the encoder alone with `AutoModel`.

    Args:
        dropout: The rate that the configuration states, hidden and attention.
        dtype: The type of the weights in the file; float32 or bfloat16.
    """
    with quiet_transformers(), model.encoder.complete() as encoder:
        config: Any = copy.deepcopy(encoder.config)
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = dropout
        config.architectures = ["BertForMaskedLM"]
        with torch.device("meta"):
            whole = BertForMaskedLM(config)
        weights = {f"bert.{n}": t for n, t in encoder.state_dict().items()}
        weights = {n: t for n, t in weights.items() if not n.startswith("bert.pooler.")}
        weights |= _head(model)
        weights = {n: t.detach().to("cpu", dtype) for n, t in weights.items()}
        # Tied in the saved model as they are here.
        weights["cls.predictions.decoder.weight"] = weights[
            "bert.embeddings.word_embeddings.weight"
        ]
        weights["cls.predictions.decoder.bias"] = weights["cls.predictions.bias"]
        _assign(whole, weights)
        whole.tie_weights()
        whole.config.dtype = dtype
        whole.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _head(model: MaskedLanguageModel) -> dict[str, Tensor]:
    head, prefix = model.task_head, "cls.predictions."
    return {
        f"{prefix}transform.dense.weight": head.dense.weight,
        f"{prefix}transform.dense.bias": head.dense.bias,
        f"{prefix}transform.LayerNorm.weight": head.norm.weight,
        f"{prefix}transform.LayerNorm.bias": head.norm.bias,
        f"{prefix}bias": head.bias,
    }


def _assign(whole: BertForMaskedLM, weights: dict[str, Tensor]) -> None:
    found = whole.load_state_dict(weights, assign=True, strict=False)
    # position_ids and the like are computed, not saved.
    lacking = [n for n in found.missing_keys if n in dict(whole.named_parameters())]
    if lacking or found.unexpected_keys:
        raise ValueError(f"the model does not match BertForMaskedLM at {found}")
