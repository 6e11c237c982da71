"""The encoder h_θ over packed tokens, no padding anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fastadv.batches.packing import PackedBatch, TableRows, concat
from fastadv.nn.architectures import Architecture, architecture_of
from fastadv.nn.fused_pass import KERNELS, packed_forward
from fastadv.nn.packed_weights import PackedEmbeddings, PackedLayer, Tokens
from fastadv.ops.dtypes import acc_dtype
from fastadv.weights.flat import FlatParameters
from fastadv.weights.layouts import WeightLayouts
from fastadv.weights.waiting_rows import WaitingRows


class PackedBert(nn.Module):
    """BERT, RoBERTa, XLM-RoBERTa or DistilBERT over packed tokens.

    The transformers model that it is made from lends its weights and stays usable: its parameters
    are views of the ones here. Its pooler, which the paper does not use, is set aside: it is not
    run, not trained, and saved as it was.

    Args:
        model: The bare encoder (`BertModel`, `RobertaModel`, ...), changed in place. Weights of
            fewer than 32 bits become float32.
        dtype: What the matrix products read: float32, bfloat16, float16 or float64. Weights,
            sums and what runs past them are float32 (float64 for float64).
        backend: Backend of the operations; None for the default.

    The word table's gradient is dense, or, where `embeddings.word.sparse` is set, sparse over the
    rows that were read, as with `torch.nn.Embedding`.

    Attributes:
        operations: The operations that it needs.
        flat: Weights of one buffer, whose gradients are written to one too; None for none.
        waiting: The word table's optimisers, which bring rows up to date before they are read;
            None where the table always is.
        tied: Whether an output layer shares the word table, whose gradient then has every row.

    Raises:
        ValueError: `architectures.why_not`, or the model is more than an encoder.
    """

    operations: ClassVar[tuple[str, ...]] = (*KERNELS, "linear")
    seeded_dropout: ClassVar[bool] = True

    def __init__(
        self,
        model: PreTrainedModel,
        dtype: torch.dtype = torch.float32,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.architecture: Architecture = architecture_of(model.config)
        if model.base_model is not model:
            raise ValueError(
                f"found a {type(model).__name__}, expected the encoder alone, its base_model"
            )
        self.dtype, self.backend = dtype, backend
        self.layouts = WeightLayouts(dtype, backend)
        self.waiting: WaitingRows | None = None
        self.flat: FlatParameters | None = None
        self.tied = False
        self._squares: dict[str, Tensor] = {}
        with torch.device("meta"):
            self.embeddings = PackedEmbeddings(self.architecture)
            self.layers: Any = nn.ModuleList(
                PackedLayer(self.architecture) for _ in range(self.architecture.layers)
            )
        # What waits for rows is done before they are read as a whole or replaced.
        self.register_state_dict_pre_hook(_flush)
        self.register_load_state_dict_pre_hook(_flush)
        # A list hides the model from `parameters()` and `state_dict()`.
        self._lender = [model]
        self._borrow(acc_dtype(dtype))

    @property
    def config(self) -> Any:
        """The transformers configuration."""
        return self._lender[0].config

    @property
    def hidden_size(self) -> int:
        return self.architecture.hidden_size

    def forward(self, batch: PackedBatch, leading: PackedBatch | None = None) -> Tensor:
        """Last hidden states of the batch's tokens, in the order they are packed.

        In training mode dropout is drawn from `batch.seed`, or where there is none from the
        device's default generator: one seed a call, from which each site and element follows.

        Returns:
            (T, H) float32 (float64 for float64); after the rows of `leading`, which are computed
            in the same pass and carry no gradient, if it is given.

        Raises:
            ValueError: A sequence is longer than there are positions; on the CPU, an id is not in
                the word table.
        """
        joint = batch if leading is None else concat(leading, batch)
        if joint.max_seqlen > self.architecture.max_length:
            raise ValueError(
                f"found a sequence of {joint.max_seqlen} tokens, expected at most "
                f"{self.architecture.max_length}, as many as there are positions"
            )
        sparse = self.embeddings.word.sparse
        rows = _rows(batch) if self.waiting is not None or sparse else None
        if self.waiting is not None and rows is not None:
            if leading is not None:
                self.waiting.catch_up(_rows(leading))
            self.waiting.catch_up(rows)
        tokens = Tokens(
            joint.input_ids,
            self._positions(joint),
            joint.cu_seqlens,
            joint.max_seqlen,
            0 if leading is None else leading.num_tokens,
            self._seed(batch),
            rows if sparse else None,
        )
        return packed_forward(self, tokens)

    def to_huggingface(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by transformers' names, given by those of `named_parameters`; views."""
        return self.architecture.to_huggingface(tensors)

    def flattened(self, flat: FlatParameters) -> None:
        """Says that weights, under names that begin with "encoder.", are in one buffer now."""
        self.flat = flat
        if flat.low is not None:
            self.layouts.keep_in(flat)
        self._lend()

    @contextmanager
    def complete(self) -> Iterator[PreTrainedModel]:
        """The transformers model, pooler and all; its other weights are views of ours."""
        try:
            with self.reading():
                self._lend()
                yield self._lender[0]
        finally:
            if self.waiting is not None:
                # The table that was lent may have been one made for reading.
                self._lend()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Inside, the word table is up to date in whole, and forward passes change nothing."""
        with nullcontext() if self.waiting is None else self.waiting.reading():
            yield

    @property
    def word_table(self) -> nn.Embedding:
        """The word table; `sparse` says whether gradients hold the rows read alone."""
        return self.embeddings.word

    def keep_squares(self, name: str, squares: Tensor) -> None:
        """Keeps the sum of squares of a weight's gradient until `take_squares`."""
        self._squares[name] = squares

    def take_squares(self) -> dict[str, Tensor]:
        """Sums of squares of some weights' gradients, () float64 by name, of the backward passes
        since the last call; what an optimiser need not read again.
        """
        taken, self._squares = self._squares, {}
        return taken

    def _positions(self, batch: PackedBatch) -> Tensor:
        """(T,) rows of the position table."""
        padding = self.architecture.position_padding_idx
        if padding is None:
            return batch.position_ids
        # As transformers' RoBERTa: position padding + 1 + k for the k-th id that is no padding,
        # and position `padding` for those that are.
        real = batch.input_ids.ne(padding)
        counted = real.cumsum(0)
        first = torch.arange(len(real), device=real.device) - batch.position_ids
        before = (counted - real.long())[first]
        return (counted - before) * real + padding

    def _seed(self, batch: PackedBatch) -> Tensor | None:
        if not (self.training and self.architecture.dropout.any()):
            return None
        if batch.seed is not None:
            return batch.seed
        device = batch.input_ids.device
        return torch.randint(2**63 - 1, (1,), device=device)

    @torch.no_grad()
    def _borrow(self, dtype: torch.dtype) -> None:
        """Takes over the model's parameters, part by part: Q, K and V are never all there twice."""
        for prefix, part in self._parts():
            names = {n: t for n, t in self.architecture.names.items() if n.startswith(prefix)}
            theirs = {t: self._lender[0].get_parameter(t) for ts in names.values() for t in ts}
            packed = self.architecture.to_packed(
                {name: parameter.detach().to(dtype) for name, parameter in theirs.items()}
            )
            part.load_state_dict(
                {n.removeprefix(prefix): t for n, t in packed.items()}, strict=True, assign=True
            )
            for name, parameter in part.named_parameters(prefix.removesuffix(".")):
                trained = {theirs[t].requires_grad for t in names[name]}
                if len(trained) > 1:
                    raise ValueError(f"found {name} frozen in part, expected all of it or none")
                parameter.requires_grad_(trained.pop())
            self._lend(prefix)

    def _parts(self) -> list[tuple[str, nn.Module]]:
        return [
            ("embeddings.", self.embeddings),
            *((f"layers.{i}.", layer) for i, layer in enumerate(self.layers)),
        ]

    def _lend(self, prefix: str = "") -> None:
        """Makes the model's parameters views of ours, those under `prefix`."""
        ours = {n: p for n, p in self.named_parameters() if n.startswith(prefix)}
        for name, view in self.to_huggingface({n: p.detach() for n, p in ours.items()}).items():
            place, _, leaf = name.rpartition(".")
            module = self._lender[0].get_submodule(place)
            old = getattr(module, leaf)
            # Whoever holds the old one sees the same memory. A new one counts versions with ours,
            # so that what is written into it is known here.
            old.data = view
            setattr(module, leaf, nn.Parameter(view, old.requires_grad))

    def _apply(self, fn: Any, recurse: bool = True) -> PackedBert:
        # Parameters that moved to another device would leave the model's behind, a second copy.
        super()._apply(fn, recurse)
        self._lend()
        for module in self._lender[0].modules():
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else fn(buffer)
        return self


def _flush(encoder: PackedBert, *_: Any) -> None:
    """A hook of the module's own, so that copies and pickles of it have theirs."""
    if encoder.waiting is not None:
        encoder.waiting.flush()


def _rows(batch: PackedBatch) -> TableRows:
    rows, ids = batch.rows, batch.input_ids
    if rows is None:
        return TableRows.of(ids)
    # On a GPU this would wait for the ids; those that are there already were made with the batch.
    here = ids.device.type == "cpu" and rows.device_ids is None
    if here and not torch.equal(rows.ids[rows.inverse], ids):
        raise ValueError("the batch's rows are not those of its input_ids, expected rows of pack()")
    return rows
