"""The encoder h_θ: which one runs a transformers model."""

from __future__ import annotations

import functools
import logging

import torch
from transformers import PreTrainedModel

from fastadv.config import EncoderChoice
from fastadv.nn.architectures import why_not
from fastadv.nn.packed_encoder import PackedBert
from fastadv.nn.padded_encoder import PaddedEncoder

Encoder = PackedBert | PaddedEncoder


def build_encoder(
    model: PreTrainedModel,
    choice: EncoderChoice = "auto",
    autocast: torch.dtype | None = None,
    backend: str | None = None,
) -> Encoder:
    """The fastest encoder that runs a transformers model, or the one asked for.

    Args:
        model: The bare encoder, changed in place.
        choice: As in `FinetuneConfig.encoder`.
        autocast: What the matrix products read; None for float32.
        backend: Backend of the operations; None for the default.

    Raises:
        ValueError: "packed" was asked for, and cannot run the model.
    """
    reason = why_not(model.config)
    if choice == "packed" or (choice == "auto" and reason is None):
        return PackedBert(model, autocast or torch.float32, backend)
    if choice == "auto" and reason is not None:
        _say_padded(reason)
    return PaddedEncoder(model, autocast)


@functools.cache
def _say_padded(reason: str) -> None:
    """Says it once a process, on standard error unless logging is set up otherwise."""
    logging.getLogger("fastadv").warning(
        "the encoder runs padded, by transformers' own code, which is slower: %s", reason
    )
