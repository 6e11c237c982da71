"""Mean-pooled embeddings of texts, from a finetuned model or any pretrained encoder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastadv.batches.tokenization import tokenize_documents
from fastadv.config import EncoderChoice, FinetuneConfig, Precision
from fastadv.data import Data, Document, as_texts, iter_texts
from fastadv.data.chunks import chunks
from fastadv.device import autocast_dtype, default_device, resolve_precision
from fastadv.model_io.finetuned import saved_max_length
from fastadv.model_io.loading import load_encoder, load_tokenizer, max_positions
from fastadv.model_io.packaged import resolve_model
from fastadv.nn.encoder import Encoder, build_encoder
from fastadv.tasks.inference import embeddings

Floats = NDArray[np.float32]


class Embedder:
    """h̄_θ(x), the mean of the encoder's last hidden states (Keung, Lu and Bhardwaj, section 3.1).

    Args:
        encoder: The encoder, on its device.
        tokenizer: A fast tokenizer.
        max_length: The longest text in word pieces, special ones included; longer ones are cut.
        batch_size: Texts in a batch of the longest; of shorter ones as many as take no more
            word pieces.
        backend: Backend of the pooling operation; None for the default.
    """

    def __init__(
        self,
        encoder: Encoder,
        tokenizer: Any,
        max_length: int,
        batch_size: int = 32,
        backend: str | None = None,
    ) -> None:
        self.encoder, self.tokenizer = encoder, tokenizer
        self.max_length, self.batch_size, self.backend = max_length, batch_size, backend

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str],
        max_length: int | None = None,
        batch_size: int = 32,
        precision: Precision = "auto",
        device: str | torch.device | None = None,
        encoder: EncoderChoice = "auto",
    ) -> Embedder:
        """The encoder of any model: a hub id, a folder (a finetuned one too), or "e5-small".

        Args:
            model: What to load.
            max_length: By default what the model was finetuned with, else 256, and never more
                than the encoder has positions for.
            batch_size: Texts in a batch of the longest; of shorter ones as many as take no more
                word pieces.
            precision: "auto", "bf16", "fp16" or "fp32", as in `FinetuneConfig`.
            device: By default the GPU if there is one.
            encoder: "auto", "packed" or "padded", as in `FinetuneConfig`.

        Raises:
            ValueError: The model cannot be loaded, `max_length` is more than its positions, or it
                has no packed encoder and `encoder` asks for it.
        """
        device = default_device(device)
        path = resolve_model(model)
        tokenizer, loaded = load_tokenizer(path), load_encoder(path)
        positions = max_positions(loaded.config)
        usual = saved_max_length(Path(path)) or 256
        length = max_length or min(usual, positions or usual)
        if positions is not None and length > positions:
            raise ValueError(
                f"max_length is {length}, expected at most the {positions} positions of the encoder"
            )
        # Checks the arguments as those of a configuration are checked.
        config = FinetuneConfig(precision=precision, eval_batch_size=batch_size, encoder=encoder)
        dtype = autocast_dtype(resolve_precision(config.precision, device))
        wrapped = build_encoder(loaded, config.encoder, dtype)
        return cls(wrapped.to(device).eval(), tokenizer, length, batch_size)

    def embed(self, texts: Data) -> Floats:
        """(N, H) float32, in the order of the texts.

        Args:
            texts: Anything that `fastadv.data.as_texts` takes; labels are dropped.

        Raises:
            ValueError: Malformed data.
        """
        return self._embed(as_texts(texts, Document))

    def iter_embed(self, texts: Data, chunk_size: int = 1024) -> Iterator[Floats]:
        """`embed`, piece by piece: (n, H) float32 arrays with n at most `chunk_size`.

        Memory does not grow with the number of texts, if `texts` is a file or an iterator.
        """
        for chunk in chunks(iter_texts(texts, Document), chunk_size):
            yield self._embed(chunk)

    def _embed(self, documents: list[Document]) -> Floats:
        dataset = tokenize_documents(self.tokenizer, documents, None, self.max_length)
        return embeddings(self.encoder, dataset, self.batch_size, self.backend)
