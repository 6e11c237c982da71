"""The encoder h_θ: what the library asks of every encoder, and which one runs a model."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn.parameter import Parameter
from transformers import PreTrainedModel

from fastadv.batches.packing import PackedBatch
from fastadv.config import EncoderChoice
from fastadv.nn.architectures import Architecture, why_not
from fastadv.nn.packed_encoder import PackedBert
from fastadv.nn.padded_encoder import PaddedEncoder
from fastadv.weights.flat import FlatParameters
from fastadv.weights.layouts import WeightLayouts
from fastadv.weights.waiting_rows import WaitingRows


class Encoder(Protocol):
    """A module from packed tokens to hidden states.

    An encoder without its own way to do something returns None, or does nothing; the caller then
    does the usual thing.

    Attributes:
        waiting: The word table's optimisers, which bring rows up to date before they are read;
            None where the table always is.
        tied: Whether an output layer shares the word table, whose gradient then has every row.
        training: See `torch.nn.Module.training`.
    """

    waiting: WaitingRows | None
    tied: bool
    training: bool

    def __call__(self, batch: PackedBatch, leading: PackedBatch | None = None) -> Tensor:
        """Last hidden states of the batch's tokens, (T, H), in the order they are packed; if
        `leading` is given, its hidden states come first and carry no gradient.
        """

    @property
    def operations(self) -> tuple[str, ...]:
        """The operations of `fastadv.ops` that the encoder needs."""

    @property
    def dtype(self) -> torch.dtype:
        """The type that its matrix products read."""

    @property
    def architecture(self) -> Architecture | None:
        """What steps of fixed sizes must know of the encoder; None where it cannot run in them."""

    @property
    def layouts(self) -> WeightLayouts | None:
        """The copies of its weights that an optimiser keeps in step; None for none."""

    @property
    def config(self) -> Any:
        """The transformers configuration."""

    @property
    def hidden_size(self) -> int:
        """H."""

    @property
    def seeded_dropout(self) -> bool:
        """Whether dropout is drawn from a batch's seed; else PyTorch's generator draws it."""

    @property
    def word_table(self) -> nn.Embedding | None:
        """The word table, if its gradient may hold only the rows that were read; else None."""

    def take_squares(self) -> dict[str, Tensor]:
        """Sums of squares of some weights' gradients, () float64 by name, of the backward passes
        since the last call; an optimiser need not read those gradients again.
        """

    def flattened(self, flat: FlatParameters) -> None:
        """Tells the encoder that weights, under names with "encoder.", are in one buffer now."""

    def to_huggingface(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by transformers' names, from tensors by the names of `named_parameters`."""

    def complete(self) -> AbstractContextManager[PreTrainedModel]:
        """The transformers model, pooler and all, for saving."""

    def reading(self) -> AbstractContextManager[None]:
        """Inside, weights are as after all steps, and forward passes change nothing."""

    # The rest belongs to torch.nn.Module.
    def parameters(self, recurse: bool = True) -> Iterator[Parameter]: ...
    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]: ...
    def train(self, mode: bool = True) -> Self: ...
    def eval(self) -> Self: ...
    def to(self, *args: Any, **kwargs: Any) -> Self: ...


def build_encoder(
    model: PreTrainedModel,
    choice: EncoderChoice = "auto",
    autocast: torch.dtype | None = None,
    backend: str | None = None,
) -> Encoder:
    """The fastest encoder that runs a transformers model, or the one asked for.

    Args:
        model: The bare encoder, changed in place.
        choice: "auto", "packed" or "padded", as in `FinetuneConfig.encoder`.
        autocast: The type that the matrix products read; None for float32.
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
    """Says it once per process, on standard error unless logging is set up otherwise."""
    logging.getLogger("fastadv").warning(
        "the encoder runs padded, by transformers' own code, which is slower: %s", reason
    )
