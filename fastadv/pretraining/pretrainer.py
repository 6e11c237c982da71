"""A model that is being pretrained: weights, optimisers, data and the order of steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertModel

from fastadv.batches.packing import PackedBatch
from fastadv.device import autocast_dtype, default_device, is_gpu, resolve_precision
from fastadv.nn.packed_encoder import PackedBert
from fastadv.pretraining.batches import LanguageBatches
from fastadv.pretraining.config import PretrainConfig
from fastadv.pretraining.corpus import Corpus
from fastadv.pretraining.export import save_masked_language_model
from fastadv.pretraining.masking import MaskedBatch
from fastadv.pretraining.model import MaskedLanguageModel
from fastadv.pretraining.positional_heads import set_positional_heads
from fastadv.training.trainer import StepLosses, Trainer

Batches = tuple[MaskedBatch, PackedBatch | None, PackedBatch | None]
HELD_OUT_TOKENS = 8192


class Pretrainer:
    """One run's model; `run_state` saves it as it saves a finetuner.

    Args:
        corpus: Tokenised text.
        tokenizer: Its tokenizer, saved with the model.
        config: Settings.
        device: Where to run; by default the GPU if there is one.

    Raises:
        ValueError: The settings do not fit the corpus.

    Attributes:
        trainer: T, D and G; its step count and the seed are the whole random state.
    """

    task = "mlm"

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Any,
        config: PretrainConfig,
        device: str | torch.device | None = None,
    ) -> None:
        self.device = default_device(device)
        self.corpus, self.tokenizer = corpus, tokenizer
        precision = resolve_precision(config.precision, self.device)
        self.config = dataclasses.replace(config, precision=precision)
        self.labels: Sequence[str] = corpus.languages
        if config.max_length != corpus.max_length:
            raise ValueError(
                f"max_length is {config.max_length}, expected {corpus.max_length}, which the text "
                "was cut to"
            )
        if config.adversary == "source" and config.source_language not in corpus.languages:
            raise ValueError(
                f"found no text of source_language {config.source_language!r}, expected one of "
                f"{', '.join(corpus.languages)}"
            )
        if config.adversary != "none" and len(corpus.languages) < 2:
            raise ValueError("found one language with an adversary, expected two or more")
        self.model = self._build(precision).to(self.device)
        # On a GPU the whole gradient is written once; ids would have to be copied there.
        self.model.encoder.word_table.sparse = not is_gpu(self.device)
        self.trainer = Trainer(self.model, self.config)
        self.batches = LanguageBatches(
            corpus,
            config.tokens_per_batch,
            config.seed,
            exponent=config.exponent,
            mask_rate=config.mask_rate,
            source=config.source_language,
        )

    def _build(self, precision: Any) -> MaskedLanguageModel:
        config = self.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            bert = BertModel(_shape(config, len(self.tokenizer)), add_pooling_layer=False)
        if config.positional_heads:
            set_positional_heads(bert)
        encoder = PackedBert(bert, autocast_dtype(precision) or torch.float32, config.backend)
        outputs = len(self.labels) if config.adversary == "all" else None
        frequencies = torch.from_numpy(self.corpus.frequencies(config.exponent))
        return MaskedLanguageModel(encoder, outputs, config.seed, frequencies, config.backend)

    def prepare(self, step: int) -> Batches:
        """The batches of a step, on the host; they depend on the seed and the step alone."""
        masked = self.batches.masked_batch(step, self.config.length(step))
        if self.config.adversary == "none":
            return masked, None, None
        tokens = self.config.adversary_tokens
        draws = [self.batches.plain_batch(step, stream, tokens) for stream in ("D", "G")]
        return masked, draws[0], draws[1]

    def step(self, batches: Batches) -> StepLosses:
        """One update of each phase, with the rates of this step; batches on the device."""
        return self.trainer.step(*batches)

    @torch.no_grad()
    def held_out_losses(self) -> dict[str, float]:
        """By language, the mean cross-entropy in nats over masked pieces of text held out, always
        the same ones.
        """
        self.model.eval()
        found = {}
        with self.model.encoder.reading():
            for language in self.labels:
                total = torch.zeros((), dtype=torch.float64, device=self.device)
                count = 0
                for batch in self.batches.held_out_batches(language, HELD_OUT_TOKENS):
                    losses = self.model.token_losses(batch.to(self.device))  # type: ignore[arg-type]
                    total += losses.double().sum()
                    count += losses.numel()
                found[language] = float(total) / count
        return found

    def save_pretrained(self, folder: Path) -> None:
        """Writes a Hugging Face folder; see `save_masked_language_model`."""
        dtype = torch.bfloat16 if self.config.saved_precision == "bf16" else torch.float32
        save_masked_language_model(
            folder, self.model, self.tokenizer, self.config.saved_dropout, dtype
        )


def _shape(config: PretrainConfig, vocabulary: int) -> BertConfig:
    return BertConfig(
        vocab_size=vocabulary,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=config.intermediate_size,
        max_position_embeddings=config.max_positions,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.dropout,
        initializer_range=config.initializer_range,
        pad_token_id=0,
    )
