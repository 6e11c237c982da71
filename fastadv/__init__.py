"""Language-adversarial finetuning of multilingual encoders, with fused kernels.

Keung, Lu and Bhardwaj, "Adversarial Learning with Contextual Embeddings for Zero-resource
Cross-lingual Classification and NER", EMNLP 2019.
"""

from fastadv.config import FinetuneConfig
from fastadv.data import Document, Sentence
from fastadv.finetuner import AdversarialFinetuner, Losses
from fastadv.fit import History
from fastadv.packing import PackedBatch
from fastadv.predictions import DocumentPrediction, SentencePrediction

__version__ = "0.1.0"

__all__ = [
    "AdversarialFinetuner",
    "Document",
    "DocumentPrediction",
    "FinetuneConfig",
    "History",
    "Losses",
    "PackedBatch",
    "Sentence",
    "SentencePrediction",
    "__version__",
]
