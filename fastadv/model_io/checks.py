"""Whether what a finetuner is made of fits together."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from fastadv.config import ResolvedConfig
from fastadv.model_io.loading import max_positions


def checked_tokenizer(tokenizer: Any, encoder: PreTrainedModel) -> Any:
    """The tokenizer, if it is a fast one, which knows the word of each piece, and the encoder has
    an embedding for each of its pieces.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"the tokenizer is a {type(tokenizer).__name__}, expected a fast one "
            "(PreTrainedTokenizerFast)"
        )
    table: Any = encoder.get_input_embeddings()
    rows = int(table.weight.shape[0])
    if len(tokenizer) > rows:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} entries and the encoder {rows} embeddings, "
            "expected a tokenizer that belongs to the encoder"
        )
    return tokenizer


def checked_length(config: ResolvedConfig, encoder: PreTrainedModel) -> ResolvedConfig:
    """The settings, if the encoder has positions for sequences of their length."""
    positions = max_positions(encoder.config)
    if positions is not None and config.max_length > positions:
        raise ValueError(
            f"max_length is {config.max_length}, expected at most the {positions} positions "
            "of the encoder"
        )
    return config
