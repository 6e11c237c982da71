"""A model over whole data sets: probabilities, embeddings and scores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fastadv.batches.packing import PackedBatch, pack
from fastadv.batches.sizes import similar_lengths
from fastadv.batches.tokenization import TokenizedDataset, TokenSequence
from fastadv.nn.encoder import Encoder
from fastadv.nn.heads import AdversarialModel
from fastadv.ops.masked_mean_pool import masked_mean_pool

Floats = NDArray[np.float32]


class Module(Protocol):
    """Anything with a mode, such as a `torch.nn.Module`."""

    training: bool

    def train(self, mode: bool = True) -> Any: ...
    def eval(self) -> Any: ...


def document_probabilities(
    model: AdversarialModel, dataset: TokenizedDataset, batch_size: int
) -> Floats:
    """p(Y | x) of every document, (N, K) float32, in the order of the data set."""
    result = np.empty((len(dataset), model.task_head.out_features), np.float32)
    with evaluating(model, model.encoder):
        for indices, batch in _batches(model.encoder, dataset, batch_size):
            result[indices] = torch.softmax(model.task_logits(batch), dim=-1).cpu().numpy()
    return result


def word_probabilities(
    model: AdversarialModel, dataset: TokenizedDataset, batch_size: int
) -> list[Floats]:
    """p(Y_t | x) of every word of every sentence: one (words, K) float32 array per sentence.

    Each word is scored in exactly one window. A word that has no word piece at all, such as a
    lone control character, is not seen by the model: its row is NaN.
    """
    words = dataset.num_words
    assert words is not None
    classes = model.task_head.out_features
    result = [np.full((int(words[i]), classes), np.nan, np.float32) for i in range(len(dataset))]
    windows: list[tuple[int, TokenSequence]] = [
        (i, window) for i in range(len(dataset)) for window in dataset[i]
    ]
    lengths = np.array([len(window.input_ids) for _, window in windows], np.int64)
    with evaluating(model, model.encoder):
        for indices in similar_lengths(lengths, batch_size):
            chosen = [windows[int(k)] for k in indices]
            batch = pack([[window] for _, window in chosen]).to(_device(model.encoder))
            starts = batch.cu_seqlens.tolist()
            probabilities = torch.softmax(model.task_logits(batch), dim=-1).cpu().numpy()
            for (sentence, window), first in zip(chosen, starts, strict=False):
                assert window.word_positions is not None and window.word_indices is not None
                result[sentence][window.word_indices] = probabilities[first + window.word_positions]
    return result


def embeddings(
    encoder: Encoder,
    dataset: TokenizedDataset,
    batch_size: int,
    backend: str | None = None,
) -> Floats:
    """h̄_θ(x) of every text, (N, H) float32: the mean over its word pieces, specials included."""
    result = np.empty((len(dataset), encoder.hidden_size), np.float32)
    with evaluating(encoder, encoder):
        for indices, batch in _batches(encoder, dataset, batch_size):
            pooled = masked_mean_pool(encoder(batch), batch.cu_seqlens, backend=backend)
            result[indices] = pooled.float().cpu().numpy()
    return result


def _batches(
    encoder: Encoder, dataset: TokenizedDataset, batch_size: int
) -> Iterator[tuple[NDArray[np.int64], PackedBatch]]:
    """Batches of similar length, longest first, with the indices of their examples.

    No mode is set here: a generator that is left before its end keeps it until it is collected.
    """
    for indices in similar_lengths(dataset.lengths, batch_size):
        yield indices, pack([dataset[int(i)] for i in indices]).to(_device(encoder))


@contextmanager
def evaluating(model: Module, encoder: Encoder) -> Iterator[None]:
    """Inside, there is no dropout and no gradient, and weights are as after all steps. Afterwards
    the model, of which the encoder is all or a part, has its former mode.
    """
    training = model.training
    model.eval()
    try:
        with encoder.reading(), torch.inference_mode():
            yield
    finally:
        model.train(training)


def _device(encoder: Encoder) -> torch.device:
    return next(encoder.parameters()).device
