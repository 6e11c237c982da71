"""The encoder's first layer: rows of the embedding tables, summed, normalised, dropped out."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.library import register_fake

from fastadv import backends
from fastadv.ops.dtypes import check_dtype, check_leading, check_like
from fastadv.ops.philox import check_dropout, dropout_ref


def embedding_layer_norm_ref(
    input_ids: Tensor,
    position_ids: Tensor,
    word: Tensor,
    position: Tensor,
    token_type: Tensor | None,
    gain: Tensor,
    bias: Tensor,
    *,
    eps: float,
    p: float = 0.0,
    seed: Tensor | None = None,
    site: int = 0,
    leading: int = 0,
    padding_idx: int | None = None,
    position_padding_idx: int | None = None,
) -> Tensor:
    """What `embedding_layer_norm` computes, in plain PyTorch."""
    x = F.embedding(input_ids, word, padding_idx)
    x = x + F.embedding(position_ids, position, position_padding_idx)
    if token_type is not None:
        x = x + token_type
    y = dropout_ref(F.layer_norm(x, x.shape[1:], gain, bias, eps), seed, site, p)
    return torch.cat([y[:leading].detach(), y[leading:]])


def embedding_layer_norm(
    input_ids: Tensor,
    position_ids: Tensor,
    word: Tensor,
    position: Tensor,
    token_type: Tensor | None,
    gain: Tensor,
    bias: Tensor,
    *,
    eps: float,
    p: float = 0.0,
    seed: Tensor | None = None,
    site: int = 0,
    leading: int = 0,
    padding_idx: int | None = None,
    position_padding_idx: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """dropout(LN(word[id] + position[index] + token_type)), BERT's embeddings (Devlin et al. 2019).

    input_ids and position_ids are (T,) int64; word (V, H), position (P, H), token_type (H,), the
    table's row 0, or None, gain and bias (H,), all float32 or all float64.  LN(z) = (z - mean) /
    sqrt(var + eps) * gain + bias over the H columns of a row.  Dropout keeps what
    `philox.keep_mask_ref` says for seed (1,) int64, site and the row's number; there is none for
    p = 0 or seed None.  The first `leading` rows need no gradient.

    Returns:
        (T, H) in word's dtype.  The tables get dense gradients in their own dtype; rows
        padding_idx of word and position_padding_idx of position get none.

    Raises:
        ValueError: A shape, dtype or device does not fit; p is not in [0, 1); on a CPU, an id or a
            position is not in its table (on a GPU the caller must see to that).
        RuntimeError: The backend asked for cannot run.
    """
    _check(input_ids, position_ids, word, position, token_type, gain, bias, leading)
    check_dropout(p, seed, site, word.device)
    chosen = backends.resolve("embedding_layer_norm", word.device, backend)
    if chosen != "native" and word.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_range(input_ids, word, "input_ids")
        _check_range(position_ids, position, "position_ids")
    if chosen == "torch":
        return embedding_layer_norm_ref(
            input_ids, position_ids, word, position, token_type, gain, bias, eps=eps, p=p,
            seed=seed, site=site, leading=leading, padding_idx=padding_idx,
            position_padding_idx=position_padding_idx,
        )  # fmt: skip
    input_ids, position_ids = input_ids.contiguous(), position_ids.contiguous()
    word, position = word.contiguous(), position.contiguous()
    gain, bias = gain.contiguous(), bias.contiguous()
    token_type = None if token_type is None else token_type.contiguous()
    parameters = [word, position, token_type, gain, bias]
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in parameters):
        return _EmbeddingLayerNorm.apply(
            input_ids, position_ids, *parameters, eps, p, seed, site, leading,
            _row_or_none(padding_idx, word), _row_or_none(position_padding_idx, position), chosen,
        )  # fmt: skip
    y = word.new_empty(input_ids.shape[0], word.shape[1])
    backends.kernels("embedding_layer_norm", chosen).embedding_layer_norm(
        input_ids, position_ids, *parameters, eps, p, seed, site, y, None
    )
    return y


def _row_or_none(index: int | None, table: Tensor) -> int:
    """A row index as the kernels take it, -1 for none; torch counts negative ones from the end."""
    if index is None:
        return -1
    return index + table.shape[0] if index < 0 else index


def _check(
    input_ids: Tensor,
    position_ids: Tensor,
    word: Tensor,
    position: Tensor,
    token_type: Tensor | None,
    gain: Tensor,
    bias: Tensor,
    leading: int,
) -> None:
    if word.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"word has dtype {word.dtype}, expected float32 or float64")
    if word.dim() != 2:
        raise ValueError(f"word has shape {tuple(word.shape)}, expected (V, H)")
    if input_ids.dim() != 1:
        raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}, expected (T,)")
    for name, ids in (("input_ids", input_ids), ("position_ids", position_ids)):
        check_dtype(ids, torch.int64, name)
        check_like(ids, tuple(input_ids.shape), word, name)
    if position.dim() != 2:
        raise ValueError(f"position has shape {tuple(position.shape)}, expected (P, H)")
    hidden = word.shape[1]
    check_dtype(position, word.dtype, "position")
    check_like(position, (position.shape[0], hidden), word, "position")
    for name, vector in (("token_type", token_type), ("gain", gain), ("bias", bias)):
        if vector is not None:
            check_dtype(vector, word.dtype, name)
            check_like(vector, (hidden,), word, name)
    check_leading(leading, input_ids.shape[0])


def _check_range(ids: Tensor, table: Tensor, name: str) -> None:
    if ids.numel() == 0:
        return
    low, high = (int(x) for x in ids.aminmax())
    if low < 0 or high >= table.shape[0]:
        wrong = low if low < 0 else high
        raise ValueError(f"{name} holds {wrong}, expected a row of {table.shape[0]}")


class _EmbeddingLayerNorm(torch.autograd.Function):
    """Ids (T,) int64; tables (rows, H) and vectors (H,) of one dtype; seed (1,) int64 or None."""

    @staticmethod
    def forward(
        ctx: Any,
        input_ids: Tensor,
        position_ids: Tensor,
        word: Tensor,
        position: Tensor,
        token_type: Tensor | None,
        gain: Tensor,
        bias: Tensor,
        eps: float,
        p: float,
        seed: Tensor | None,
        site: int,
        leading: int,
        padding_idx: int,
        position_padding_idx: int,
        chosen: str,
    ) -> Tensor:
        y = word.new_empty(input_ids.shape[0], word.shape[1])
        backends.kernels("embedding_layer_norm", chosen).embedding_layer_norm(
            input_ids, position_ids, word, position, token_type, gain, bias, eps, p, seed, site, y,
            None,
        )  # fmt: skip
        ctx.save_for_backward(
            input_ids[leading:], position_ids[leading:], word, position, token_type, gain, seed
        )
        ctx.rest = (site, leading, None, padding_idx, position_padding_idx)
        ctx.eps, ctx.p, ctx.leading, ctx.chosen = eps, p, leading, chosen
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input_ids, position_ids, word, position, token_type, gain, seed = ctx.saved_tensors
        grad_word, grad_position = torch.zeros_like(word), torch.zeros_like(position)
        grad_token_type = None if token_type is None else torch.zeros_like(token_type)
        vectors = gain.new_empty(2, gain.shape[0])
        backends.kernels("embedding_layer_norm", ctx.chosen).embedding_layer_norm_backward(
            grad[ctx.leading :].contiguous(), None, input_ids, position_ids, word, position,
            token_type, gain, ctx.eps, ctx.p, seed, *ctx.rest, grad_word, grad_position,
            grad_token_type, vectors,
        )  # fmt: skip
        tables = (grad_word, grad_position, grad_token_type)
        return (None, None, *tables, vectors[0], vectors[1], *[None] * 8)


if backends.extension is not None:

    @register_fake("fastadv::embedding_layer_norm")
    def _fake(
        input_ids: Tensor, position_ids: Tensor, word: Tensor, position: Tensor,
        token_type: Tensor | None, gain: Tensor, bias: Tensor, eps: float, p: float,
        seed: Tensor | None, site: int, y: Tensor, y_low: Tensor | None,
    ) -> None:  # fmt: skip
        return None

    @register_fake("fastadv::embedding_layer_norm_backward")
    def _fake_backward(
        grad: Tensor, grad_low: Tensor | None, input_ids: Tensor, position_ids: Tensor,
        word: Tensor, position: Tensor, token_type: Tensor | None, gain: Tensor, eps: float,
        p: float, seed: Tensor | None, site: int, leading: int, word_rows: Tensor | None,
        padding_row: int, position_padding_idx: int, grad_word: Tensor, grad_position: Tensor,
        grad_token_type: Tensor | None, grad_vectors: Tensor,
    ) -> None:  # fmt: skip
        return None
