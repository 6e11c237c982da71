"""A corpus of a few sentences in three languages, and settings that fit it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fastadv.pretraining.config import PretrainConfig
from fastadv.pretraining.corpus import Corpus
from fastadv.pretraining.run import CORPUS, TOKENIZER, write_settings
from fastadv.pretraining.vocabulary import train_vocabulary

_SENTENCES = {
    "en": "rain falls on the harbour while a slow song ends and the wind turns north",
    "de": "regen fällt auf den hafen und ein langsames lied endet wenn der wind dreht",
    "fr": "la pluie tombe sur le port et une chanson lente finit quand le vent tourne",
}


def texts(count: int = 60) -> dict[str, list[str]]:
    """Made-up paragraphs: a sentence over and over, 4 to 40 words of it from anywhere on, so that
    neighbours say which word is masked.
    """
    rng = np.random.default_rng(0)
    found = {}
    for language, sentence in _SENTENCES.items():
        words = sentence.split() * 4
        starts, sizes = rng.integers(15, size=count), rng.integers(4, 41, count)
        pairs = zip(starts, sizes, strict=True)
        found[language] = [" ".join(words[start : start + size]) for start, size in pairs]
    return found


SMALL: dict[str, Any] = {
    "vocabulary_size": 150,
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 2,
    "intermediate_size": 48,
    "max_positions": 40,
    "max_length": 24,
    "short_length": 10,
    "steps": 6,
    "tokens_per_batch": 96,
    "adversary_tokens": 64,
    "warmup_steps": 2,
    "decay_steps": 2,
    "precision": "fp32",
    "log_every": 2,
    "eval_every": 3,
    "checkpoint_every": 1,
}


def settings(**changes: Any) -> PretrainConfig:
    return PretrainConfig(**{**SMALL, **changes})


def prepared(folder: Path, config: PretrainConfig) -> Path:
    """A folder as `fastadv pretrain --prepare_only` leaves it."""
    found = texts()
    tokenizer = train_vocabulary(found, config.vocabulary_size)
    tokenizer.save_pretrained(folder / TOKENIZER)
    Corpus.of(found, tokenizer, config.max_length).save(folder / CORPUS)
    write_settings(folder, config)
    return folder
