"""Language-adversarial finetuning of multilingual encoders, with fused kernels.

Keung, Lu and Bhardwaj, "Adversarial Learning with Contextual Embeddings for Zero-resource
Cross-lingual Classification and NER", EMNLP 2019.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastadv.batches.packing import PackedBatch
    from fastadv.config import FinetuneConfig
    from fastadv.data import DataFile, Document, Sentence
    from fastadv.embedder import Embedder
    from fastadv.finetuner import AdversarialFinetuner, Losses
    from fastadv.records.history import History
    from fastadv.run.stopping import Stopped
    from fastadv.tasks.classification import DocumentPrediction
    from fastadv.tasks.ner import Entity, SentencePrediction

__version__ = "0.1.0"

# Imported on first use: `fastadv --help` needs neither torch nor transformers.
_HOMES = {
    "AdversarialFinetuner": "finetuner",
    "DataFile": "data",
    "Document": "data",
    "DocumentPrediction": "tasks.classification",
    "Embedder": "embedder",
    "Entity": "tasks.ner",
    "FinetuneConfig": "config",
    "History": "records.history",
    "Losses": "finetuner",
    "PackedBatch": "batches.packing",
    "Sentence": "data",
    "SentencePrediction": "tasks.ner",
    "Stopped": "run.stopping",
}

__all__ = [
    "AdversarialFinetuner",
    "DataFile",
    "Document",
    "DocumentPrediction",
    "Embedder",
    "Entity",
    "FinetuneConfig",
    "History",
    "Losses",
    "PackedBatch",
    "Sentence",
    "SentencePrediction",
    "Stopped",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
