"""Any transformers encoder behind a packed interface: padding in between."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fastadv.batches.packing import PackedBatch
from fastadv.nn.architectures import Architecture
from fastadv.weights.flat import FlatParameters
from fastadv.weights.layouts import WeightLayouts
from fastadv.weights.waiting_rows import WaitingRows


class PaddedEncoder(nn.Module):
    """A transformers encoder that takes and gives packed tokens, padding in between.

    Args:
        model: Any transformers model whose output has `last_hidden_state`. Its pooler, which the
            paper does not use, is set aside: it is not run, not trained, and saved as it was.
        autocast: dtype of `torch.autocast` around the model; None runs it in its own dtype.

    It keeps no copies of weights, reads the whole word table, and knows nothing of its gradients:
    it does none of what an `Encoder` may do beyond encoding.
    """

    operations: ClassVar[tuple[str, ...]] = ()
    seeded_dropout: ClassVar[bool] = False

    def __init__(self, model: PreTrainedModel, autocast: torch.dtype | None = None) -> None:
        super().__init__()
        # A list hides the pooler from `parameters()`, so that no optimiser ever sees it.
        self._pooler = [getattr(model, "pooler", None)]
        if self._pooler[0] is not None:
            _set_pooler(model, None)
        self.model = model
        self.autocast = autocast
        self.dtype = autocast or torch.float32
        self.architecture: Architecture | None = None
        self.layouts: WeightLayouts | None = None
        self.waiting: WaitingRows | None = None
        self.tied = False

    @property
    def config(self) -> Any:
        """The transformers configuration."""
        return self.model.config

    @property
    def hidden_size(self) -> int:
        return int(self.model.config.hidden_size)

    @property
    def word_table(self) -> None:
        """None: transformers' own code reads it."""
        return None

    @property
    def pad_id(self) -> int:
        return int(getattr(self.model.config, "pad_token_id", None) or 0)

    def forward(self, batch: PackedBatch, leading: PackedBatch | None = None) -> Tensor:
        """Last hidden states of the batch's tokens, in the order they are packed.

        Returns:
            (T, H); if `leading` is given, after its rows, which carry no gradient.
        """
        if leading is None:
            return self._hidden(batch)
        with torch.no_grad():
            before = self._hidden(leading)
        return torch.cat([before, self._hidden(batch)])

    def _hidden(self, batch: PackedBatch) -> Tensor:
        input_ids, attention_mask = batch.pad(self.pad_id)
        enabled = self.autocast is not None
        with torch.autocast(input_ids.device.type, dtype=self.autocast, enabled=enabled):
            padded = self.model(
                input_ids=input_ids, attention_mask=attention_mask
            ).last_hidden_state
        return padded.flatten(0, 1).index_select(0, batch.padded_indices())

    def to_huggingface(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by transformers' names, from tensors by the names of `named_parameters`."""
        return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}

    def take_squares(self) -> dict[str, Tensor]:
        """Nothing: no sums of squares are known."""
        return {}

    def flattened(self, flat: FlatParameters) -> None:
        """Nothing here depends on where weights lie."""

    def reading(self) -> AbstractContextManager[None]:
        """Does nothing: weights are always as after all steps."""
        return nullcontext()

    @contextmanager
    def complete(self) -> Iterator[PreTrainedModel]:
        """The model as it was given, pooler and all, for saving."""
        if self._pooler[0] is not None:
            _set_pooler(self.model, self._pooler[0])
        try:
            yield self.model
        finally:
            if self._pooler[0] is not None:
                _set_pooler(self.model, None)


def _set_pooler(model: nn.Module, pooler: nn.Module | None) -> None:
    # The stubs of nn.Module do not know that a submodule may be set to None.
    setattr(model, "pooler", pooler)  # noqa: B010
